"""Types of host data: tensors-dtypes.md section 2; annotations: core.md section 8."""

from __future__ import annotations

import inspect
import sys
from types import ModuleType
from typing import Union, get_args, get_type_hints

import numpy as np
import pytest

from popxl.typing_ import (
    HostScalarTensor,
    HostTensor,
    NewAliasAnnotation,
    ScalarType,
    host_tensor_types,
    is_torch_tensor,
)


def test_scalar_type_is_a_union_of_the_python_numbers():
    assert set(get_args(ScalarType)) == {int, float, bool}


def test_host_scalar_tensor_is_scalar_or_host_tensor():
    assert HostScalarTensor == Union[ScalarType, HostTensor]  # noqa: UP007


@pytest.mark.parametrize("value", [1, 1.5, True, np.zeros(2), np.float16(1), [1, 2], (1,), range(3)], ids=repr)
def test_host_data_is_an_instance_of_the_host_tensor_types(value):
    assert isinstance(value, host_tensor_types)


@pytest.mark.parametrize("value", [None, object(), len], ids=["None", "object", "function"])
def test_other_things_are_no_instances_of_the_host_tensor_types(value):
    assert not isinstance(value, host_tensor_types)


def test_nothing_is_a_torch_tensor_while_torch_is_not_loaded(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    assert not is_torch_tensor(np.zeros(2))


def test_a_torch_tensor_is_known_by_its_class(monkeypatch):
    torch = ModuleType("torch")
    torch.Tensor = type("Tensor", (), {})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert is_torch_tensor(torch.Tensor())
    assert not is_torch_tensor(np.zeros(2))


def test_alias_annotation_is_equal_only_to_itself():
    first, second = NewAliasAnnotation("First", int), NewAliasAnnotation("First", int)
    assert first == first
    assert first != second
    assert first is not int
    assert len({first, second, int}) == 3


def test_alias_annotation_prints_its_name():
    assert repr(NewAliasAnnotation("ByRef", int)) == "ByRef"


def test_calling_an_alias_annotation_raises():
    with pytest.raises(NotImplementedError, match="annotation ByRef cannot be called"):
        NewAliasAnnotation("ByRef", int)(3)


def test_alias_annotation_is_found_again_in_a_signature():
    by_ref = NewAliasAnnotation("ByRef", int)

    def build(x, y):
        return x, y

    build.__annotations__ = {"x": by_ref, "y": Union[by_ref, None]}  # noqa: UP007
    assert inspect.signature(build).parameters["x"].annotation is by_ref
    assert get_type_hints(build)["y"] == Union[by_ref, None]  # noqa: UP007
