"""What the ops on shapes, slices, indices and regions refuse, and how they say it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import popxl
from popxl import ops
from popxl.errors import CoreError, PopxlError
from popxl.tensor import Tensor


def tensor(*shape: int, dtype: Any = np.float32) -> Tensor:
    return popxl.variable(np.zeros(shape, dtype), name="x")


def integers(*values: int) -> Tensor:
    return popxl.constant(np.array(values, np.int32))


Case = tuple[Callable[[], object], type[BaseException], str]

CASES: dict[str, Case] = {
    # ops-math.md 6.1
    "reshape to 0": (
        lambda: ops.reshape(tensor(2, 3), (0, 6)),
        ValueError,
        "Invalid shape value in reshape. Must be '>0' or '-1'. Provided (0, 6)",
    ),
    "reshape to less than -1": (
        lambda: ops.reshape(tensor(2, 3), (-2, 3)),
        ValueError,
        "Invalid shape value in reshape. Must be '>0' or '-1'. Provided (-2, 3)",
    ),
    "reshape with two unknown lengths": (
        lambda: ops.reshape_(tensor(2, 3), (-1, -1)),
        ValueError,
        "Reshape shape can contain at most one '-1' value. Provided (-1, -1)",
    ),
    "reshape to another size": (
        lambda: ops.reshape(tensor(2, 3), (4,)),
        CoreError,
        "Failure in ReshapeOp::setup()",
    ),
    "reshape_ to another size": (
        lambda: ops.reshape_(tensor(2, 3), (-1, 4)),
        CoreError,
        "Failure in ReshapeOp::setup()",
    ),
    "reshape to a number": (lambda: ops.reshape(tensor(6), 6), TypeError, "The shape of a reshape must be a tuple"),  # type: ignore[arg-type]
    # 6.2
    "transpose with an axis too large": (
        lambda: ops.transpose(tensor(2, 3), (0, 2)),
        ValueError,
        "Values in permutation must be less than the tensor's rank 2. Found (0, 2)",
    ),
    "transpose with a long permutation of axes too large": (
        lambda: ops.transpose_(tensor(2), (0, 1)),
        ValueError,
        "Values in permutation must be less than the tensor's rank 1. Found (0, 1)",
    ),
    "transpose without an axis": (
        lambda: ops.transpose(tensor(2, 3), (0,)),
        CoreError,
        "Rank of permutation tensor",
    ),
    "transpose with a repeated axis": (
        lambda: ops.transpose(tensor(2, 3), (1, 1)),
        ValueError,
        "Values in permutation must be distinct",
    ),
    "transpose with a negative axis": (
        lambda: ops.transpose(tensor(2, 3), (-1, 0)),
        ValueError,
        "Values in permutation must be distinct and not negative",
    ),
    # 6.3
    "squeeze of an axis given twice": (
        lambda: ops.squeeze(tensor(1, 2), [0, -2]),
        ValueError,
        "Axes contains duplicates",
    ),
    "squeeze of an axis too large": (
        lambda: ops.squeeze(tensor(1, 2), [2]),
        ValueError,
        "Can't squeeze axis '2' as tensor has rank",
    ),
    "squeeze of an axis too small": (
        lambda: ops.squeeze(tensor(1, 2), [-3]),
        ValueError,
        "Can't squeeze axis '-3' as tensor has rank",
    ),
    "squeeze of a long axis": (
        lambda: ops.squeeze(tensor(1, 2), [1]),
        ValueError,
        "Can't squeeze axis '1' as length of axis is >1: 2",
    ),
    "squeeze of an empty axis": (
        lambda: ops.squeeze(tensor(1, 0), [1]),
        ValueError,
        "Can't squeeze axis '1' as length of axis is >1: 0",
    ),
    # 6.4
    "concat of two dtypes": (
        lambda: ops.concat([tensor(2), tensor(2, dtype=np.float16)]),
        TypeError,
        "All inputs to a concat operation must have the same type:",
    ),
    "concat of two float8 dtypes": (
        lambda: ops.concat_([ops.init((2,), popxl.float8_143), ops.init((2,), popxl.float8_152)]),
        TypeError,
        "All inputs to a concat operation must have the same type: float8_143, float8_152",
    ),
    "concat of nothing": (lambda: ops.concat([]), ValueError, "A concat operation needs"),
    "concat along no axis": (lambda: ops.concat([tensor(2), tensor(2)], 1), CoreError, "Concat axis 1"),
    "concat along no axis from the end": (lambda: ops.concat_([tensor(2)], -2), CoreError, "Concat axis -2"),
    "concat of two ranks": (
        lambda: ops.concat([tensor(2), tensor(2, 1)]),
        CoreError,
        "Input 1 of 2 to concat does not have matching output rank",
    ),
    "concat of shapes that differ": (
        lambda: ops.concat([tensor(2, 3), tensor(2, 3), tensor(2, 4)]),
        CoreError,
        "Input 2 to concat does not have matching shape.",
    ),
    # 6.5
    "split into unequal parts": (
        lambda: ops.split(tensor(2, 5), 2, axis=1),
        ValueError,
        "Split 2 does not equally divide tensor axis 1 of length 5.",
    ),
    "split into no parts": (lambda: ops.split(tensor(2), 0), ZeroDivisionError, "Cannot split"),
    "split along no axis": (lambda: ops.split(tensor(2), 2, axis=1), IndexError, "Cannot split axis 1"),
    "split into lengths that do not add up": (
        lambda: ops.split(tensor(5), [2, 2]),
        CoreError,
        "splits 4 invalid for dimension of size 5",
    ),
    "split into a negative length": (
        lambda: ops.split(tensor(5), [6, -1]),
        CoreError,
        "splits 5 invalid for dimension of size 5",
    ),
    "split into lengths along no axis": (lambda: ops.split(tensor(5), [5], axis=-2), CoreError, "Axis -2"),
    # 6.6
    "slice with lists of two lengths": (
        lambda: ops.slice(tensor(4, 4), [0, 1], [2]),
        ValueError,
        "All inputs must have same length. `stop` has length 1 != 2.",
    ),
    "slice with axes of another length": (
        lambda: ops.slice_(tensor(4, 4), 1, axis=[0, 1]),
        ValueError,
        "All inputs must have same length. `axis` has length 2 != 1.",
    ),
    "slice along no axis": (
        lambda: ops.slice(tensor(4), 0, 1, axis=1),
        CoreError,
        "Invalid input shape in BaseSliceOp::getSlices",
    ),
    "slice along more axes than there are": (
        lambda: ops.slice(tensor(4), [0, 0], [1, 1]),
        CoreError,
        "Invalid input shape in BaseSliceOp::getSlices",
    ),
    "slice of a scalar": (
        lambda: ops.slice_(tensor(), 0, 1),
        CoreError,
        "Invalid input shape in BaseSliceOp::getSlices",
    ),
    "slice along no axis from the end": (
        lambda: ops.slice(tensor(4), 0, 1, axis=-2),
        CoreError,
        "slice op input tensor",
    ),
    "slice along an axis twice": (
        lambda: ops.slice(tensor(4, 4), [0, 0], [1, 1], axis=[0, -2]),
        ValueError,
        "The axes [0, -2] of a slice contain duplicates",
    ),
    "slice with a stride": (
        lambda: ops.slice(tensor(4), step=2),
        ValueError,
        "The steps of a slice must be 1 or -1, not [2]",
    ),
    "slice with step 0": (lambda: ops.slice_(tensor(4), step=0), ValueError, "The steps of a slice must be 1 or -1"),
    # 6.7
    "subsample with more strides than axes": (
        lambda: ops.subsample(tensor(4), [1, 2]),
        ValueError,
        "The length of subsample `strides` must not be greater than the rank",
    ),
    "subsample of a scalar": (
        lambda: ops.subsample(tensor(), 1),
        ValueError,
        "The length of subsample `strides` must not be greater than the rank",
    ),
    "subsample with stride 0": (
        lambda: ops.subsample(tensor(4, 4), [2, 0]),
        CoreError,
        "Strides invalid. 0 stride at index 1",
    ),
    "subsample with a negative stride": (
        lambda: ops.subsample(tensor(4), -1),
        CoreError,
        "Strides invalid. Negative stride at index 0",
    ),
    # 8.1
    "init of an unknown type": (
        lambda: ops.init((2,), popxl.float32, init_type="one"),  # type: ignore[arg-type]
        ValueError,
        "Unknown init_type: one",
    ),
    "init of a negative length": (lambda: ops.init((-1,), popxl.float32), ValueError, "The shape (-1,) of `init`"),
    # 8.3: the reference leaves these to the device
    "dynamic_slice with too few indices": (
        lambda: ops.dynamic_slice(tensor(4, 4), integers(1), [0, 1], [2, 2], True),
        CoreError,
        "A dynamic slice needs one index and one size for each axis",
    ),
    "dynamic_slice with too few sizes": (
        lambda: ops.dynamic_slice(tensor(4, 4), integers(1, 1), [0, 1], [2], True),
        CoreError,
        "A dynamic slice needs one index and one size for each axis",
    ),
    "dynamic_slice along an axis twice": (
        lambda: ops.dynamic_slice(tensor(4, 4), integers(1, 1), [0, 0], [2, 2], True),
        CoreError,
        "A dynamic slice needs one index and one size for each axis",
    ),
    "dynamic_slice along no axis": (
        lambda: ops.dynamic_slice(tensor(4), integers(1), [1], [2], True),
        CoreError,
        "A dynamic slice of size 2 along axis 1 does not fit shape [4]",
    ),
    "dynamic_slice longer than the axis": (
        lambda: ops.dynamic_slice(tensor(4), integers(0), [0], [5], True),
        CoreError,
        "A dynamic slice of size 5 along axis 0 does not fit shape [4]",
    ),
    "dynamic_slice at a float": (
        lambda: ops.dynamic_slice(tensor(4), tensor(1), [0], [2], True),
        CoreError,
        "Unsupported dtype popxl.dtypes.float32 of `index`",
    ),
    "dynamic_update with another dtype": (
        lambda: ops.dynamic_update(tensor(4), integers(0), integers(1, 2), [0], [2], True),
        CoreError,
        "A dynamic update of float32 with int32 would need a cast",
    ),
    "dynamic_update_ with another dtype": (
        lambda: ops.dynamic_update_(tensor(4), integers(0), integers(1, 2), [0], [2], True),
        CoreError,
        "A dynamic update of float32 with int32 would need a cast",
    ),
    # 8.4
    "gather along no axis": (
        lambda: ops.gather(tensor(4), integers(0), axis=1),
        CoreError,
        "GatherOp::setup axis = 1 is outside the acceptable range",
    ),
    "gather along no axis from the end": (
        lambda: ops.gather(tensor(4), integers(0), axis=-2),
        CoreError,
        "GatherOp::setup axis = -2 is outside the acceptable range",
    ),
    "gather of a scalar": (
        lambda: ops.gather(tensor(), integers(0)),
        CoreError,
        "GatherOp::setup axis = 0 is outside the acceptable range",
    ),
    "gather at floats": (
        lambda: ops.gather(tensor(4), tensor(1)),
        CoreError,
        "Unsupported dtype popxl.dtypes.float32 of `indices`",
    ),
    "gather with a hint that is no number": (
        lambda: ops.gather(tensor(4), integers(0), 0, "0.5"),  # type: ignore[arg-type]
        TypeError,
        "available_memory_proportion is '0.5'",
    ),
    # ops-updates.md 1-2
    "accumulate_ of another shape": (
        lambda: ops.var_updates.accumulate_(tensor(4), tensor(1)),
        CoreError,
        "accumulate_ needs `t` and `X` of one shape, not [4] and [1]",
    ),
    "accumulate_ with a vector as factor": (
        lambda: ops.var_updates.accumulate_(tensor(4), tensor(4), tensor(1)),
        CoreError,
        "The factor of accumulate_ must be a scalar, not of shape [1]",
    ),
    "accumulate_ of integers": (
        lambda: ops.var_updates.accumulate_(integers(1), integers(1)),
        CoreError,
        "Unsupported dtype",
    ),
    "copy_var_update_ of another shape": (
        lambda: ops.var_updates.copy_var_update_(tensor(4), tensor(4, 1)),
        CoreError,
        "copy_var_update_ needs `t` and `X` of one shape",
    ),
    "copy_var_update_ of another dtype": (
        lambda: ops.var_updates.copy_var_update_(tensor(4), tensor(4, dtype=np.float16)),
        CoreError,
        "copy_var_update_ needs `t` and `X` of one dtype, not float32 and float16",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_call_is_refused_with_the_right_error_and_adds_no_op(name: str) -> None:
    call, error, start = CASES[name]
    with popxl.Ir().main_graph as graph:
        with pytest.raises(error) as caught:
            call()
        assert [op for op in graph.ops if op.type != "Init"] == []
    assert isinstance(caught.value, PopxlError)
    assert caught.value.fact.startswith(start)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda a: ops.reshape(a, (1,)), "t"),
        (lambda a: ops.reshape_(a, (1,)), "t"),
        (ops.flatten, "t"),
        (ops.flatten_, "t"),
        (ops.squeeze, "t"),
        (ops.transpose, "t"),
        (ops.transpose_, "t"),
        (ops.detach, "t"),
        (ops.detach_, "t"),
        (lambda a: ops.split(a, 1), "t"),
        (lambda a: ops.slice(a, 0), "t"),
        (lambda a: ops.slice_(a, 0), "t"),
        (lambda a: ops.subsample(a, 1), "t"),
        (lambda a: ops.concat([integers(0), a]), "ts_1"),
        (lambda a: ops.concat_([a]), "ts_0"),
        (lambda a: ops.gather(a, integers(0)), "t"),
        (lambda a: ops.gather(integers(0), a), "indices"),
        (lambda a: ops.dynamic_slice(a, integers(0), [0], [1], True), "t"),
        (lambda a: ops.dynamic_slice(integers(0), a, [0], [1], True), "index"),
        (lambda a: ops.dynamic_update(integers(0), integers(0), a, [0], [1], True), "t_update"),
        (lambda a: ops.dynamic_update_(integers(0), a, integers(0), [0], [1], True), "index"),
        (lambda a: ops.var_updates.accumulate_(a, tensor(1)), "t"),
        (lambda a: ops.var_updates.accumulate_(tensor(1), a), "X"),
        (lambda a: ops.var_updates.copy_var_update_(a, tensor(1)), "t"),
        (lambda a: ops.var_updates.copy_var_update_(tensor(1), a), "X"),
    ],
)
def test_an_argument_must_be_a_tensor_of_the_current_graph(call: Callable[[Any], object], argument: str) -> None:
    ir = popxl.Ir()
    with ir.main_graph, pytest.raises(TypeError, match=f"The input `{argument}` is not a Tensor"):
        call(np.zeros(1))
    other = ir.create_empty_graph()
    with other:
        foreign = popxl.constant(np.zeros(1, np.int32))
    with ir.main_graph, pytest.raises(ValueError, match=f"The input tensor `{argument}` is not in the current Graph"):
        call(foreign)


def test_an_op_outside_a_graph_is_refused() -> None:
    with pytest.raises(RuntimeError, match="Trying to access a graph, but no graph has been selected"):
        ops.init((2,), popxl.float32)


def test_an_update_of_another_shape_is_accepted_until_it_is_compiled() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        updated = ops.dynamic_update(tensor(4), integers(0), tensor(3), [0], [2], True)
        assert updated.shape == (4,)
        ops.host_store(popxl.d2h_stream((4,), popxl.float32), updated)
    message = r"The update of shape \[3\] does not fit the region of shape \[2\]"
    with pytest.raises(CoreError, match=message), popxl.Session(ir) as session:
        session.run()


def test_the_list_of_strides_stays_as_the_caller_made_it() -> None:
    strides = [2]
    with popxl.Ir().main_graph:
        ops.subsample(tensor(4, 4), strides)
    assert strides == [2]
