"""Tensor types: tensors-dtypes.md section 1."""

from __future__ import annotations

import copy
import pickle
import sys
from types import ModuleType

import numpy as np
import pytest

from popxl import dtypes
from popxl.dtypes import ALL_DTYPES, dtype
from popxl.testing import get_all_dtypes, get_all_int_dtypes

# name, is_int, is_floating_point, is_complex, is_signed, NumPy type, torch name: the table of section 1.1
TABLE = [
    ("bool", False, False, False, False, np.bool_, "bool"),
    ("int8", True, False, False, True, np.int8, "int8"),
    ("int16", True, False, False, True, np.int16, "int16"),
    ("int32", True, False, False, True, np.int32, "int32"),
    ("int64", True, False, False, True, np.int64, "int64"),
    ("uint8", True, False, False, False, np.uint8, "uint8"),
    ("uint16", True, False, False, False, np.uint16, None),
    ("uint32", True, False, False, False, np.uint32, None),
    ("uint64", True, False, False, False, np.uint64, None),
    ("float8_143", False, True, False, True, [("float8_143", "u1")], None),
    ("float8_152", False, True, False, True, [("float8_152", "u1")], None),
    ("float16", False, True, False, True, np.float16, "float16"),
    ("float32", False, True, False, True, np.float32, "float32"),
    ("float64", False, True, False, True, np.float64, "float64"),
    ("complex64", False, False, True, True, np.complex64, "complex64"),
    ("complex128", False, False, True, True, np.complex128, "complex128"),
]
NAMES = [row[0] for row in TABLE]


class FakeTorchDtype:
    """Stands in for torch.dtype, whose str is "torch.<name>"."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __str__(self) -> str:
        return f"torch.{self.name}"


@pytest.fixture
def torch(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A module with torch's dtype class and objects."""
    module = ModuleType("torch")
    module.dtype = FakeTorchDtype  # type: ignore[attr-defined]
    for name in [row[6] for row in TABLE if row[6]] + ["bfloat16"]:
        setattr(module, name, FakeTorchDtype(name))
    monkeypatch.setitem(sys.modules, "torch", module)
    return module


@pytest.mark.parametrize(("name", "is_int", "is_float", "is_complex", "is_signed", "numpy_type", "_torch"), TABLE)
def test_properties_are_those_of_the_table(name, is_int, is_float, is_complex, is_signed, numpy_type, _torch):
    d = getattr(dtypes, name)
    assert (d.name, d.is_int, d.is_floating_point, d.is_complex, d.is_signed) == (
        name,
        is_int,
        is_float,
        is_complex,
        is_signed,
    )
    assert d.as_numpy() == np.dtype(numpy_type)


def test_all_dtypes_lists_each_type_once_in_the_order_of_the_table():
    assert [d.name for d in ALL_DTYPES] == NAMES


@pytest.mark.parametrize(("alias", "name"), [("half", "float16"), ("float", "float32"), ("double", "float64")])
def test_alias_is_the_same_object(alias, name):
    assert getattr(dtypes, alias) is getattr(dtypes, name)


@pytest.mark.parametrize("missing", ["int", "str", "bfloat16"])
def test_module_has_no_such_type(missing):
    assert not isinstance(getattr(dtypes, missing, None), dtype)


def test_constructor_raises_type_error():
    with pytest.raises(TypeError, match="Cannot create"):
        dtype()


def test_subclassing_raises_type_error():
    with pytest.raises(TypeError, match="cannot be subclassed"):
        type("mine", (dtype,), {})


@pytest.mark.parametrize("attribute", ["name", "is_int", "is_complex", "is_floating_point", "is_signed", "new"])
def test_attributes_are_read_only(attribute):
    with pytest.raises(AttributeError):
        setattr(dtypes.int8, attribute, True)


@pytest.mark.parametrize("d", ALL_DTYPES)
def test_repr_has_the_module_and_the_canonical_name(d):
    assert repr(d) == f"popxl.dtypes.{d.name}"


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda d: pickle.loads(pickle.dumps(d))])
def test_copies_are_the_same_object(duplicate):
    assert all(duplicate(d) is d for d in ALL_DTYPES)


def test_types_are_equal_only_to_themselves():
    assert all((a == b) is (a is b) for a in ALL_DTYPES for b in ALL_DTYPES)
    assert len(set(ALL_DTYPES)) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_from_name_finds_canonical_names(name):
    assert dtype.from_name(name) is getattr(dtypes, name)


@pytest.mark.parametrize("name", ["half", "float", "double", "f4", "Float32", "", "bfloat16", None, ["int8"]])
def test_from_name_refuses_other_names(name):
    with pytest.raises(ValueError, match="Hint: use one of bool, int8"):
        dtype.from_name(name)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (bool, "bool"),
        (float, "float32"),
        (int, "int64"),
        (complex, "complex128"),
        ("half", "float16"),
        ("f4", "float32"),
        ("float", "float64"),
        ("double", "float64"),
        (None, "float64"),
        (np.uint16, "uint16"),
        (np.longlong, "int64"),
        (np.dtype("=f2"), "float16"),
        (np.zeros(2, np.int8), "int8"),
        (np.float32(1), "float32"),
        (np.bool_(True), "bool"),
        (dtypes.np_dtype_float8_143, "float8_143"),
        (dtypes.np_dtype_float8_152, "float8_152"),
        (np.zeros(2, dtypes.np_dtype_float8_152), "float8_152"),
    ],
    ids=repr,
)
def test_as_dtype_of(value, expected):
    assert dtype.as_dtype(value) is getattr(dtypes, expected)


@pytest.mark.parametrize("d", ALL_DTYPES)
def test_as_dtype_undoes_name_and_as_numpy_and_keeps_tensor_types(d):
    assert dtype.as_dtype(d.name) is d
    assert dtype.as_dtype(d.as_numpy()) is d
    assert dtype.as_dtype(d) is d


def test_as_dtype_of_a_tensor_is_its_tensor_type():
    class Tensor:
        dtype = dtypes.uint32

    assert dtype.as_dtype(Tensor()) is dtypes.uint32


@pytest.mark.parametrize(
    "value",
    [1, 1.5, [1], "no such type", str, "U5", bytes, object, np.dtype(">f4"), np.array(["a"]), np.dtype("i4,f4"), {}],
    ids=repr,
)
def test_as_dtype_refuses(value):
    with pytest.raises(ValueError, match="There is no tensor type for"):
        dtype.as_dtype(value)


@pytest.mark.parametrize(("name", "torch_name"), [(row[0], row[6]) for row in TABLE if row[6]])
def test_torch_types_map_both_ways(torch, name, torch_name):
    d = getattr(dtypes, name)
    assert d.as_torch() is getattr(torch, torch_name)
    assert dtype.as_dtype(getattr(torch, torch_name)) is d


def test_as_dtype_of_a_torch_tensor_is_the_type_of_its_elements(torch):
    class TorchTensor:
        dtype = torch.int16

    assert dtype.as_dtype(TorchTensor()) is dtypes.int16


def test_as_dtype_refuses_a_torch_type_without_counterpart(torch):
    with pytest.raises(ValueError, match="There is no tensor type for"):
        dtype.as_dtype(torch.bfloat16)


@pytest.mark.parametrize("name", [row[0] for row in TABLE if not row[6]])
@pytest.mark.usefixtures("torch")
def test_as_torch_without_counterpart_raises_type_error(name):
    with pytest.raises(TypeError, match=f"torch has no counterpart of popxl.dtypes.{name}"):
        getattr(dtypes, name).as_torch()


@pytest.mark.parametrize("name", ["float32", "uint32"])
def test_as_torch_without_torch_raises_module_not_found(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ModuleNotFoundError, match=f"{name}(?s:.*)Hint: pip install torch"):
        getattr(dtypes, name).as_torch()


@pytest.mark.parametrize("d", ALL_DTYPES)
def test_storage_and_nbytes_are_those_of_one_element(d):
    assert d.nbytes == np.zeros(1, d.as_numpy()).nbytes
    assert d.storage == (np.dtype(np.uint8) if d.name.startswith("float8") else d.as_numpy())


def test_get_all_dtypes_lists_all_but_bool():
    assert [d.name for d in get_all_dtypes()] == NAMES[1:]


@pytest.mark.parametrize(
    ("signed", "unsigned", "names"),
    [(True, True, NAMES[1:9]), (True, False, NAMES[1:5]), (False, True, NAMES[5:9]), (False, False, [])],
)
def test_get_all_int_dtypes_lists_what_is_asked_for(signed, unsigned, names):
    assert [d.name for d in get_all_int_dtypes(signed, unsigned)] == names


def test_get_all_dtypes_returns_a_new_list():
    get_all_dtypes().clear()
    assert get_all_dtypes()
