"""`popxl.TensorSpec` (spec tensors-dtypes.md §4)."""

from __future__ import annotations

import pytest

import popxl

SPEC = popxl.TensorSpec((2, 3), popxl.float16, (4, 3))


def test_it_is_a_mapping_of_three_keys() -> None:
    assert len(SPEC) == 3
    assert dict(SPEC) == {"shape": (2, 3), "dtype": popxl.float16, "meta_shape": (4, 3)}
    assert list(SPEC) == ["shape", "dtype", "meta_shape"]


def test_unknown_key_raises() -> None:
    with pytest.raises(KeyError):
        SPEC["name"]


def test_meta_shape_is_empty_by_default() -> None:
    assert popxl.TensorSpec((1,), popxl.int8).meta_shape == ()


def test_to_dict_and_to_tuple() -> None:
    assert SPEC.to_dict() == {"shape": (2, 3), "dtype": popxl.float16, "meta_shape": (4, 3)}
    assert SPEC.to_tuple() == ((2, 3), popxl.float16, (4, 3))


def test_attributes_are_plain_and_mutable() -> None:
    spec = popxl.TensorSpec((1,), popxl.int8)
    spec.shape, spec.dtype, spec.meta_shape = (2,), popxl.int16, (3,)
    assert spec.to_tuple() == ((2,), popxl.int16, (3,))
    assert spec["shape"] == (2,)


def test_equality_is_that_of_mappings() -> None:
    assert popxl.TensorSpec((2, 3), popxl.float16, (4, 3)) == SPEC
    assert SPEC.to_dict() == SPEC
    assert popxl.TensorSpec((2, 3), popxl.float16) != SPEC


def test_hash_is_that_of_the_tuple() -> None:
    assert hash(SPEC) == hash(SPEC.to_tuple())
    assert len({SPEC, popxl.TensorSpec((2, 3), popxl.float16, (4, 3))}) == 1


def test_spec_with_a_list_has_no_hash() -> None:
    with pytest.raises(TypeError):
        hash(popxl.TensorSpec([2], popxl.float16))  # type: ignore[arg-type]


def test_repr() -> None:
    assert repr(SPEC) == "TensorSpec(shape=(2, 3), dtype=popxl.dtypes.float16, meta_shape=(4, 3))"


def test_spec_of_a_tensor(main: popxl.Graph) -> None:
    t = popxl.variable([[1.0, 2.0]])
    assert t.spec == popxl.TensorSpec((1, 2), popxl.float32)
