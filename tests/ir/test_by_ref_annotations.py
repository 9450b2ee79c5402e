"""Which annotations make an input by reference (spec core.md §8). The annotations here are objects, not text."""

from typing import Any, List, Optional, Tuple  # noqa: UP035 - programs write the old forms too

import pytest

import popxl
from popxl import TensorByRef

SPEC = popxl.TensorSpec((), popxl.float32)


def by_ref(ir: popxl.Ir, fn: Any, *args: Any, **kwargs: Any) -> set[str]:
    return {t.name for t in ir.create_graph(fn, *args, **kwargs).by_ref_inputs}


def test_tensor_by_ref(ir: popxl.Ir) -> None:
    def f(a: TensorByRef, b: popxl.Tensor, c) -> None: ...

    assert by_ref(ir, f, SPEC, SPEC, SPEC) == {"a"}


@pytest.mark.parametrize(
    "annotation",
    [
        List[TensorByRef],  # noqa: UP006
        Tuple[TensorByRef],  # noqa: UP006
        list[TensorByRef],
        tuple[TensorByRef],
        tuple[TensorByRef, ...],
        tuple[TensorByRef, TensorByRef],
    ],
    ids=str,
)
def test_sequences_of_tensor_by_ref(ir: popxl.Ir, annotation: Any) -> None:
    def f(a) -> None: ...

    f.__annotations__["a"] = annotation
    assert by_ref(ir, f, [SPEC, SPEC]) == {"a_0", "a_1"}


@pytest.mark.parametrize(
    "annotation",
    [TensorByRef, popxl.Tensor, list, List[popxl.Tensor], tuple[TensorByRef, popxl.Tensor]],  # noqa: UP006
    ids=str,
)
def test_other_annotations_of_a_sequence_are_by_value(ir: popxl.Ir, annotation: Any) -> None:
    def f(a) -> None: ...

    f.__annotations__["a"] = annotation
    assert by_ref(ir, f, [SPEC, SPEC]) == set()


def test_list_annotation_of_a_single_tensor_is_by_value(ir: popxl.Ir) -> None:
    def f(a: List[TensorByRef]) -> None: ...  # noqa: UP006

    assert by_ref(ir, f, SPEC) == set()


def test_variable_arguments(ir: popxl.Ir) -> None:
    def f(*args: TensorByRef, **kwargs: TensorByRef) -> None: ...

    assert by_ref(ir, f, SPEC, SPEC, k=SPEC) == {"args_0", "args_1", "k"}


@pytest.mark.parametrize("annotation", [Optional[TensorByRef], TensorByRef | None], ids=str)  # noqa: UP045
def test_optional_tensor_by_ref(ir: popxl.Ir, annotation: Any) -> None:
    def f(a) -> None: ...

    f.__annotations__["a"] = annotation
    assert by_ref(ir, f, SPEC) == {"a"}


@pytest.mark.parametrize("text", ["TensorByRef", "popxl.TensorByRef", "TensorByRef | None", "Optional[TensorByRef]"])
def test_text_of_an_annotation(ir: popxl.Ir, text: str) -> None:
    def f(a) -> None: ...

    f.__annotations__["a"] = text
    assert by_ref(ir, f, SPEC) == {"a"}


@pytest.mark.parametrize("text", ["OnlyForTypeCheckers", "some words", "Float['2 3']", "1 / 0", ""])
def test_text_without_meaning_hides_no_other_annotation(ir: popxl.Ir, text: str) -> None:
    def f(a, b: TensorByRef) -> None: ...

    f.__annotations__["a"] = text
    assert by_ref(ir, f, SPEC, SPEC) == {"b"}


def test_module_uses_the_annotations_of_build(ir: popxl.Ir) -> None:
    class Layer(popxl.Module):
        def build(self, a: TensorByRef, b: "TensorByRef") -> None: ...

    assert by_ref(ir, Layer(), SPEC, SPEC) == {"a", "b"}


def test_identity_of_the_annotation_counts(ir: popxl.Ir) -> None:
    lookalike = popxl.typing_.NewAliasAnnotation("TensorByRef", popxl.Tensor)

    def f(a: lookalike) -> None: ...  # type: ignore[valid-type]

    assert by_ref(ir, f, SPEC) == set()


def test_annotation_cannot_be_called() -> None:
    with pytest.raises(NotImplementedError, match="cannot be called"):
        TensorByRef()
