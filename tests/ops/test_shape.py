"""Shape ops that share another op's declaration, names of results, and the NumPy forms that the planner uses."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import popxl
from popxl import ops
from popxl.op import Op
from popxl.ops._define import Declaration, Sample, registry
from popxl.tensor import Tensor

HOSTED = [
    registry[name]
    for name in ("Reshape", "Transpose", "Concat", "Slice", "Subsample", "Detach", "Init", "Gather", "DynamicSlice")
]


def made_by(call: Callable[[Tensor], Tensor], array: np.ndarray) -> Op:
    """The only op that `call` adds."""
    with popxl.Ir().main_graph as graph:
        call(popxl.variable(array, name="x"))
    (op,) = graph.ops
    return op


def reshaped(call: Callable[[Tensor], Tensor], array: np.ndarray) -> tuple[int, ...]:
    """The shape that the Reshape of `call` gives; its value has tests with its declaration."""
    op = made_by(call, array)
    assert op.type == "Reshape"
    return op.outputs[0].shape


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 0), (1, 1)], ids=str)
def test_flatten_gives_a_vector(shape: tuple[int, ...]) -> None:
    array = np.zeros(shape, np.float32)
    assert reshaped(ops.flatten, array) == array.flatten().shape


def test_flatten_is_a_view_of_the_right_type() -> None:
    op = made_by(ops.flatten_, np.zeros((2, 3)))
    assert op.type == "ReshapeInplace"
    assert op.outputs[0].shape == (6,)


@pytest.mark.parametrize("shape", [(), (1,), (1, 3, 1), (2, 3), (0, 1)], ids=str)
def test_squeeze_drops_all_axes_of_length_1(shape: tuple[int, ...]) -> None:
    array = np.zeros(shape, np.float32)
    assert reshaped(ops.squeeze, array) == array.squeeze().shape


@pytest.mark.parametrize("axes", [[0], [-1], [0, -1], [3, 0], []], ids=str)
def test_squeeze_drops_the_given_axes_only(axes: list[int]) -> None:
    array = np.zeros((1, 2, 1, 1), np.float32)
    expected = array.squeeze(tuple(axes)) if axes else array
    assert reshaped(lambda t: ops.squeeze(t, axes), array) == expected.shape


def test_reshape_fills_in_the_unknown_length_of_an_empty_tensor() -> None:
    assert reshaped(lambda t: ops.reshape(t, (-1, 2)), np.zeros((0, 4), np.float32)) == (0, 2)


@pytest.mark.parametrize(
    ("call", "names"),
    [
        (lambda t: [ops.reshape(t, (4,)), ops.reshape_(t, (4,))], ["x_reshaped", "x_reshaped__t0"]),
        (lambda t: [ops.flatten(t)], ["x_reshaped"]),
        (lambda t: [ops.squeeze(t)], ["x_reshaped"]),
        (lambda t: [ops.transpose(t)], ["x_T"]),
        (lambda t: [t.T_], ["x_T"]),
        (lambda t: [ops.concat([t, t])], ["concat_out"]),
        (lambda t: ops.split(t, 2), ["x_split_0", "x_split_1"]),
        (lambda t: [ops.slice_(t, 1)], ["slice_out"]),
        (lambda t: [ops.subsample(t, 2)], ["subsample_out"]),
        (lambda t: [ops.detach_(t)], ["detach_out"]),
        (lambda t: [ops.gather(t, popxl.constant([0]))], ["gather_out"]),
        (lambda t: [ops.var_updates.accumulate_(t, t)], ["accumulate__x"]),
        (lambda t: [ops.var_updates.copy_var_update_(t, t)], ["updated__x"]),
        (lambda _: [ops.init((2,), popxl.float32)], ["t"]),
    ],
)
def test_results_have_the_names_of_the_reference(call: Callable[[Tensor], list[Tensor]], names: list[str]) -> None:
    with popxl.Ir().main_graph:
        made = call(popxl.variable(np.zeros((2, 2)), name="x"))
    assert [t.name for t in made] == names


def test_init_keeps_the_meta_shape() -> None:
    with popxl.Ir().main_graph:
        assert ops.init((2,), popxl.float32, meta_shape=[4]).meta_shape == (4,)


def test_init_makes_zeros_of_every_dtype_in_any_graph() -> None:
    ir = popxl.Ir()

    def zeros() -> tuple[Tensor, ...]:
        return tuple(ops.init((2,), d) for d in (popxl.float8_152, popxl.bool, popxl.int64, popxl.float16))

    with ir.main_graph:
        made = ops.call(ir.create_graph(zeros))
        streams = [popxl.d2h_stream(t.shape, t.dtype) for t in made]
        for stream, t in zip(streams, made, strict=True):
            ops.host_store(stream, t)
    with popxl.Session(ir) as session:
        outputs = session.run()
    for stream, t in zip(streams, made, strict=True):
        assert outputs[stream].tobytes() == bytes(t.dtype.nbytes * 2)


# What the plan computes on the host must be what the device would compute


@pytest.mark.parametrize(
    ("declaration", "i"),
    [pytest.param(d, i, id=f"{d.definition.type}-{i}") for d in HOSTED for i in range(len(d.samples()))],
)
def test_the_host_form_agrees_with_the_oracle(declaration: Declaration, i: int) -> None:
    one: Sample = declaration.samples()[i]

    def variable(argument: object) -> object:
        if isinstance(argument, list) and all(isinstance(a, np.ndarray) for a in argument):
            return [popxl.variable(a, downcast=False) for a in argument]
        is_array = isinstance(argument, np.ndarray | np.generic)
        return popxl.variable(argument, downcast=False) if is_array else argument

    with popxl.Ir().main_graph as graph:
        declaration.function(*map(variable, one.args), **one.kwargs)
    op = graph.ops[-1]
    assert declaration.definition.host is not None
    assert declaration.oracle is not None
    got = declaration.definition.host(*(t.host_value for t in op.inputs), **op.attributes)  # type: ignore[attr-defined]
    np.testing.assert_array_equal(got, declaration.oracle(*one.args, **one.kwargs))
    assert np.shape(got) == op.outputs[0].shape
