"""Host data as arrays: tensors-dtypes.md section 2. Tables as text: core.md section 1."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest

from popxl import dtypes
from popxl import utils as popxl_utils
from popxl.dtypes import float8_143, float8_152
from popxl.utils import downcast_np_dtypes, table_to_string, to_numpy


@pytest.fixture
def mapped(tmp_path):
    """Makes a memory-mapped array with the values of another."""

    def make(values: np.ndarray) -> np.memmap:
        array = np.memmap(tmp_path / "array.bin", values.dtype, "w+", shape=values.shape)
        array[...] = values
        return array

    return make


# ---------------------------------------------------------------- without a type


@pytest.mark.parametrize(
    ("x", "numpy_type"),
    [
        (1, np.int32),
        (1.0, np.float32),
        (True, np.bool_),
        (1j, np.complex128),
        (2**63, np.uint32),
        ([1, 2.5], np.float32),
        (np.zeros(2, np.int64), np.int32),
        (np.zeros(2, np.uint64), np.uint32),
        (np.zeros(2, np.float64), np.float32),
        (np.zeros(2, np.int8), np.int8),
        (np.zeros(2, np.float16), np.float16),
        (np.zeros(2, np.complex128), np.complex128),
        (np.float64(1), np.float32),
        (np.zeros(0), np.float32),
    ],
    ids=repr,
)
def test_type_is_inferred_and_64_bit_numbers_become_32_bit(x, numpy_type):
    assert to_numpy(x).dtype == numpy_type


@pytest.mark.parametrize(
    ("x", "numpy_type"),
    [(1, np.int64), (1.0, np.float64), (np.zeros(2, np.uint64), np.uint64), (True, np.bool_)],
    ids=repr,
)
def test_without_downcast_the_type_of_numpy_stays(x, numpy_type):
    assert to_numpy(x, downcast=False).dtype == numpy_type


def test_downcast_table_has_the_three_64_bit_types():
    assert {a.name: b.name for a, b in downcast_np_dtypes.items()} == {
        "int64": "int32",
        "uint64": "uint32",
        "float64": "float32",
    }


@pytest.mark.parametrize(
    "make", [list, tuple, np.array, iter, lambda x: (i for i in x), lambda x: dict.fromkeys(x).keys()]
)
def test_any_iterable_of_numbers_is_host_data(make):
    np.testing.assert_array_equal(to_numpy(make([3, 1, 2])), np.array([3, 1, 2], np.int32), strict=True)


def test_range_and_nested_lists_are_host_data():
    assert to_numpy(range(3)).tolist() == [0, 1, 2]
    assert to_numpy([[1, 2], [3, 4]]).tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize("x", [[], (), [[]], range(0)], ids=repr)
def test_nothing_without_a_type_raises_value_error(x):
    with pytest.raises(ValueError, match="no dtype to infer"):
        to_numpy(x)


@pytest.mark.parametrize(
    "x", ["abc", None, object, ["a"], {"a": 1}, [1, None], np.dtype(">f4").type, np.zeros(1, ">f4")]
)
def test_what_is_no_number_raises_value_error(x):
    with pytest.raises(ValueError, match="Hint"):
        to_numpy(x)


def test_rows_of_different_lengths_raise_value_error():
    with pytest.raises(ValueError, match="Cannot make an array of list"):
        to_numpy([[1, 2], [3]])


def test_tensor_of_a_graph_raises_type_error():
    class Tensor:
        dtype = dtypes.float32

        def __len__(self):
            raise AssertionError("read as a sequence")

    with pytest.raises(TypeError, match="has no host data"):
        to_numpy(Tensor())


# ---------------------------------------------------------------- with a type


@pytest.mark.parametrize(
    ("x", "kind", "expected"),
    [
        (1.7, dtypes.int32, 1),
        (-1.7, dtypes.int8, -1),
        ([300], dtypes.int8, [44]),
        (2, dtypes.bool, True),
        (1e300, dtypes.float32, np.inf),
        (0.1, dtypes.float64, 0.1),
        (2**40, dtypes.int64, 2**40),
        (np.array([1, 2], object), dtypes.int16, [1, 2]),
        (np.array([1.5], ">f4"), dtypes.float32, [1.5]),
        (1, dtypes.complex64, 1 + 0j),
    ],
    ids=repr,
)
def test_given_type_casts_silently(x, kind, expected):
    result = to_numpy(x, kind)
    assert result.dtype == kind.as_numpy()
    assert result.tolist() == expected


@pytest.mark.parametrize("downcast", [True, False])
def test_given_type_overrides_downcast(downcast):
    assert to_numpy([1.5], dtypes.float64, downcast=downcast).dtype == np.float64


@pytest.mark.parametrize("kind", [dtypes.float32, dtypes.int8, float8_143])
def test_nothing_with_a_type_has_no_elements(kind):
    result = to_numpy([], kind)
    assert result.shape == (0,)
    assert result.dtype == kind.as_numpy()


@pytest.mark.parametrize("x", ["abc", None, [1, None], 2**70], ids=repr)
def test_what_cannot_be_cast_raises_value_error(x):
    with pytest.raises(ValueError, match="Cannot convert"):
        to_numpy(x, dtypes.int32)


@pytest.mark.parametrize("kind", [None, dtypes.float16])
@pytest.mark.parametrize("argument", [{"log2_scale": 0}, {"nan_on_overflow": False}])
def test_float8_arguments_without_float8_raise_runtime_error(kind, argument):
    with pytest.raises(RuntimeError, match="are for float8 types"):
        to_numpy(1.0, kind, **argument)


# ---------------------------------------------------------------- memory


def test_copy_never_shares_memory():
    x = np.zeros((2, 3), np.float32)
    assert not np.shares_memory(to_numpy(x), x)
    assert not np.shares_memory(to_numpy(x, dtypes.float32), x)


def test_without_copy_memory_is_shared_when_nothing_is_converted():
    x = np.zeros((2, 3), np.float32)
    assert np.shares_memory(to_numpy(x, copy=False), x)
    assert np.shares_memory(to_numpy(x, dtypes.float32, copy=False), x)
    assert not np.shares_memory(to_numpy(x, dtypes.float16, copy=False), x)


@pytest.mark.parametrize("copy", [True, False])
@pytest.mark.parametrize("view", [np.s_[:, ::2], np.s_[::-1], np.s_[...]])
def test_result_is_c_contiguous(copy, view):
    x = np.asfortranarray(np.arange(12, dtype=np.float32).reshape(3, 4))[view]
    result = to_numpy(x, copy=copy)
    assert result.flags.c_contiguous
    np.testing.assert_array_equal(result, x)


def test_rank_zero_stays_rank_zero():
    assert to_numpy(3.0).shape == ()
    assert to_numpy(np.float32(3), copy=False).shape == ()


# ---------------------------------------------------------------- torch


@pytest.mark.parametrize("copy", [True, False])
def test_torch_tensor_is_detached_and_shared_unless_copied(monkeypatch, copy):
    module = ModuleType("torch")

    class Tensor:
        def __init__(self, array, requires_grad):
            self.array, self.requires_grad = array, requires_grad

        def detach(self):
            return Tensor(self.array, False)

        def numpy(self):
            assert not self.requires_grad
            return self.array

    module.Tensor = Tensor  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch", module)
    x = np.ones(3, np.float32)
    result = to_numpy(Tensor(x, True), copy=copy)
    np.testing.assert_array_equal(result, x)
    assert np.shares_memory(result, x) is not copy


# ---------------------------------------------------------------- float8


@pytest.mark.parametrize("numpy_type", [np.float16, np.float32, np.float64])
def test_floating_point_data_is_cast_to_float8(numpy_type):
    result = to_numpy(np.array([0.75, 1.5], numpy_type), float8_143)
    assert result.dtype == float8_143.as_numpy()
    assert result["float8_143"].tolist() == [0b00111100, 0b01000100]


def test_python_floats_are_cast_to_float8_with_the_scale():
    assert to_numpy(0.75, float8_143, log2_scale=-2)["float8_143"].tolist() == 0b00101100


@pytest.mark.parametrize(("nan_on_overflow", "code"), [(None, 0x80), (True, 0x80), (False, 0x7F)])
def test_float8_overflow_is_nan_unless_told_otherwise(nan_on_overflow, code):
    assert to_numpy([250.0], float8_143, nan_on_overflow=nan_on_overflow)["float8_143"].tolist() == [code]


@pytest.mark.parametrize(
    "x", [1, [1, 2], True, np.zeros(1, np.uint8), 1j, np.zeros(1, float8_152.as_numpy())], ids=repr
)
def test_other_data_to_float8_raises_type_error(x):
    with pytest.raises(TypeError, match="Cannot cast data of NumPy type"):
        to_numpy(x, float8_143)


@pytest.mark.parametrize("copy", [True, False])
def test_codes_of_the_type_are_used_as_they_are_whatever_the_scale(copy):
    x = np.arange(256, dtype=np.uint8).view(float8_143.as_numpy())
    result = to_numpy(x, float8_143, copy=copy, log2_scale=3)
    assert result.tobytes() == x.tobytes()
    assert np.shares_memory(result, x) is not copy


def test_codes_without_a_type_keep_theirs():
    assert to_numpy(np.zeros(2, float8_152.as_numpy())).dtype == float8_152.as_numpy()


# ---------------------------------------------------------------- memory-mapped arrays


@pytest.mark.parametrize("kind", [None, dtypes.float32])
def test_memmap_without_copy_is_returned_itself(mapped, kind):
    x = mapped(np.ones((2, 3), np.float32))
    assert to_numpy(x, kind, copy=False) is x


def test_memmap_with_copy_is_an_ordinary_array(mapped):
    x = mapped(np.ones((2, 3), np.float32))
    result = to_numpy(x)
    assert type(result) is np.ndarray
    assert not np.shares_memory(result, x)
    np.testing.assert_array_equal(result, x)


def test_memmap_of_codes_is_returned_itself(mapped):
    x = mapped(np.zeros(4, float8_143.as_numpy()))
    assert to_numpy(x, float8_143, copy=False) is x


@pytest.mark.parametrize("kind", [dtypes.float16, dtypes.float64, dtypes.int32, float8_143])
def test_memmap_with_another_type_raises_value_error(mapped, kind):
    with pytest.raises(ValueError, match=r"^When passing a memory-mapped NumPy array, the `dtype` parameter"):
        to_numpy(mapped(np.ones(4, np.float32)), kind)


def test_memmap_in_another_order_raises_value_error(mapped):
    x = mapped(np.ones((4, 4), np.float32))
    with pytest.raises(ValueError, match=r"^When passing a memory-mapped NumPy array, it must already be in C-ordered"):
        to_numpy(x[:, ::2])


def test_memmap_that_is_not_aligned_raises_value_error(tmp_path):
    (tmp_path / "odd.bin").write_bytes(bytes(9))
    whole = np.memmap(tmp_path / "odd.bin", np.uint8, "r")
    with pytest.raises(ValueError, match=r"^When passing a memory-mapped NumPy array, it must already be in C-ordered"):
        to_numpy(whole[1:].view(np.float32))


@pytest.mark.parametrize("downcast", [True, False])
@pytest.mark.parametrize("kind", [None, dtypes.float64])
def test_memmap_of_a_64_bit_type_raises_value_error(mapped, kind, downcast):
    start = (
        f"^When passing a memory-mapped NumPy array, the dtype {kind!r} is not supported, as it requires downcasting"
    )
    with pytest.raises(ValueError, match=start):
        to_numpy(mapped(np.ones(4)), kind, downcast=downcast)


def test_memmap_of_no_tensor_type_raises_value_error(mapped):
    with pytest.raises(ValueError, match="There is no tensor type for"):
        to_numpy(mapped(np.ones(4, ">f4")))


# ---------------------------------------------------------------- the rest of the module


@pytest.mark.parametrize("name", ["np_dtype_float8_143", "np_dtype_float8_152"])
def test_float8_numpy_types_are_re_exported(name):
    assert getattr(popxl_utils, name) is getattr(dtypes, name)


def test_cast_to_float8_is_re_exported():
    assert popxl_utils.host_pow2scale_cast_to_fp8(np.array([0.75]), float8_143)["float8_143"].tolist() == [0b00111100]


@pytest.mark.parametrize(
    ("rows", "arguments", "expected"),
    [
        ([["ab", 1], ["c", 22]], {}, "ab | 1 \n--------\nc  | 22\n"),
        ([["ab", 1], ["c", 22]], {"header": False}, "ab | 1 \nc  | 22\n"),
        ([["ab", 1], ["c", 22]], {"delimiter": ","}, "ab,1 \n------\nc ,22\n"),
        ([["only", None]], {}, "only | None\n"),
        ([["a"], ["b"], ["c"]], {}, "a\n--\nb\nc\n"),
        ([], {}, ""),
    ],
)
def test_table_is_aligned_with_dashes_under_its_header(rows, arguments, expected):
    assert table_to_string(rows, **arguments) == expected
