"""`Ir.create_graph`, `graph_input` and `graph_output` (spec core.md §8)."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import popxl
from popxl import ops

SPEC = popxl.TensorSpec((2,), popxl.float32)


def names(graph: popxl.Graph) -> list[str]:
    return [t.name for t in graph.inputs]


# The callable


class CallableObject:
    def __call__(self) -> None: ...


@pytest.mark.parametrize("fn", [functools.partial(lambda: None), CallableObject(), 3, None, "text"])
def test_only_functions_methods_and_modules_make_graphs(ir: popxl.Ir, fn: Any) -> None:
    with pytest.raises(TypeError, match="Cannot create a graph from"):
        ir.create_graph(fn)


def test_bound_method_makes_a_graph(ir: popxl.Ir) -> None:
    class Layer:
        def build(self, x: popxl.Tensor) -> popxl.Tensor:
            return x

    assert names(ir.create_graph(Layer().build, SPEC)) == ["x"]


def test_parent_graph_context_is_not_required(ir: popxl.Ir) -> None:
    assert ir.create_graph(lambda x: x + 1.0, SPEC).outputs[0].shape == (2,)


def test_function_runs_once_inside_the_new_graph(ir: popxl.Ir) -> None:
    current: list[popxl.Graph] = []
    graph = ir.create_graph(lambda: current.append(popxl.gcg()))
    assert current == [graph]


# Binding


@pytest.mark.parametrize(("args", "kwargs"), [((), {}), ((1, 2), {}), ((1,), {"y": 2}), ((1,), {"x": 2})])
def test_arguments_that_do_not_fit_raise_and_make_no_graph(ir: popxl.Ir, args: Any, kwargs: Any) -> None:
    def f(x: int) -> None: ...

    with pytest.raises(ValueError, match=r"^The arguments, `args` and `kwargs`, do not match the signature"):
        ir.create_graph(f, *args, **kwargs)
    assert ir.graphs == (ir.main_graph,)


def test_worked_signature(ir: popxl.Ir, main: popxl.Graph) -> None:
    received: dict[str, Any] = {}

    def f(
        a: popxl.Tensor,
        b: list[popxl.Tensor],
        _: bool,
        *args: popxl.TensorByRef,
        e: popxl.Tensor,
        f: int = 0,
        **kwargs: popxl.Tensor,
    ) -> None:
        received.update(a=a, b=b, _=_, args=args, e=e, f=f, kwargs=kwargs)

    x = [popxl.variable(np.zeros(i, np.float32), name=f"x{i}") for i in range(8)]
    graph = ir.create_graph(f, x[0], [x[1], x[2]], True, x[3], x[4], e=x[5], x=x[6], z=x[7])
    assert names(graph) == ["a", "b_0", "b_1", "args_0", "args_1", "e", "x", "z"]
    assert [t.shape for t in graph.inputs] == [(i,) for i in range(8)]
    assert {t.name for t in graph.by_ref_inputs} == {"args_0", "args_1"}
    a, b0, b1, args0, args1, e, kx, kz = graph.inputs
    assert received == {
        "a": a, "b": [b0, b1], "_": True, "args": (args0, args1), "e": e, "f": 0, "kwargs": {"x": kx, "z": kz},
    }  # fmt: skip


# Arguments


def test_input_has_shape_dtype_and_meta_shape_of_the_argument(ir: popxl.Ir) -> None:
    spec = popxl.TensorSpec((3,), popxl.float16, (5,))
    (t,) = ir.create_graph(lambda x: x, spec).inputs
    assert t.spec == spec


def test_tensor_of_another_ir_serves_as_an_argument(ir: popxl.Ir) -> None:
    with popxl.Ir().main_graph:
        foreign = popxl.variable(np.zeros((2, 3), np.int32))
    (t,) = ir.create_graph(lambda x: x, foreign).inputs
    assert (t.shape, t.dtype) == ((2, 3), popxl.int32)


@pytest.mark.parametrize("sequence", [[SPEC, SPEC], (SPEC, SPEC)])
def test_sequence_of_tensors_arrives_as_a_list_of_inputs(ir: popxl.Ir, sequence: Any) -> None:
    received: list[Any] = []
    graph = ir.create_graph(lambda x: received.append(x), sequence)
    assert names(graph) == ["x_0", "x_1"]
    assert received == [list(graph.inputs)]
    assert type(received[0]) is list


def test_kwargs_keep_the_order_of_the_call(ir: popxl.Ir) -> None:
    received: dict[str, Any] = {}

    def f(**tensors: popxl.Tensor) -> None:
        received.update(tensors)

    assert names(ir.create_graph(f, b=SPEC, a=SPEC)) == ["b", "a"]
    assert list(received) == ["b", "a"]


@pytest.mark.parametrize(
    "value", [1, "text", None, [], (), [1, 2], (1, "a"), [[SPEC]], {"k": SPEC}, {"k": 1}, 2.5, np.zeros(2)]
)
def test_anything_else_is_passed_through_untouched(ir: popxl.Ir, value: Any) -> None:
    received: list[Any] = []
    graph = ir.create_graph(lambda x: received.append(x), value)
    assert graph.inputs == ()
    assert received[0] is value


def test_tensors_in_a_dict_stay_tensors_of_the_parent(ir: popxl.Ir, main: popxl.Graph) -> None:
    x = popxl.variable(1.0)
    with pytest.raises(ValueError, match="is not in the current Graph"):
        ir.create_graph(lambda d: d["x"] + 1.0, {"x": x})


def test_keyword_values_without_tensors_are_passed_through(ir: popxl.Ir) -> None:
    received: list[Any] = []
    ir.create_graph(lambda *args, **kwargs: received.extend([args, kwargs]), 1, 2, a=3)
    assert received == [(1, 2), {"a": 3}]


MIXTURE = "argument can't contain a mixture of Tensors and other types"


@pytest.mark.parametrize("value", [[SPEC, 1], [1, SPEC], (SPEC, [SPEC])])
def test_mixed_sequence_raises(ir: popxl.Ir, value: Any) -> None:
    with pytest.raises(TypeError, match=f"`x` {MIXTURE}"):
        ir.create_graph(lambda x: None, value)


def test_mixed_variable_arguments_raise(ir: popxl.Ir) -> None:
    with pytest.raises(TypeError, match=f"`args` {MIXTURE}"):
        ir.create_graph(lambda *args: None, SPEC, 1)
    with pytest.raises(TypeError, match=f"`kwargs` {MIXTURE}"):
        ir.create_graph(lambda **kwargs: None, a=SPEC, b=1)


def test_default_values_that_are_specs_become_inputs(ir: popxl.Ir) -> None:
    def f(x: popxl.Tensor, y: Any = SPEC, z: int = 3) -> None: ...

    assert names(ir.create_graph(f, SPEC)) == ["x", "y"]


def test_extra_inputs_come_after_the_parameters_in_call_order(ir: popxl.Ir) -> None:
    def f(x: popxl.Tensor) -> None:
        popxl.graph_input((), popxl.float32, "b")
        popxl.graph_input((), popxl.float32, "a")

    assert names(ir.create_graph(f, SPEC)) == ["x", "b", "a"]


def test_order_of_inputs_is_the_order_at_call_sites(ir: popxl.Ir, main: popxl.Graph, evaluate: Any) -> None:
    def f(x: popxl.Tensor, *, y: popxl.Tensor) -> popxl.Tensor:
        return x - y + popxl.graph_input((), popxl.float32)

    graph = ir.create_graph(f, y=popxl.TensorSpec((), popxl.float32), x=popxl.TensorSpec((), popxl.float32))
    (result,) = ops.call(graph, popxl.variable(10.0), popxl.variable(3.0), popxl.variable(100.0))
    assert evaluate(result) == [107.0]


# Outputs


def test_no_output(ir: popxl.Ir) -> None:
    assert ir.create_graph(lambda x: None, SPEC).outputs == ()


def generate(x: popxl.Tensor) -> Iterator[popxl.Tensor]:
    yield x
    yield x + 1.0


@pytest.mark.parametrize(
    "fn",
    [
        lambda x: (x, x + 1.0),
        lambda x: [x, x + 1.0],
        lambda x: {"a": x, "b": x + 1.0}.values(),
        generate,
    ],
    ids=["tuple", "list", "values of a dict", "generator"],
)
def test_iterables_of_tensors_are_outputs_in_order(ir: popxl.Ir, fn: Any) -> None:
    graph = ir.create_graph(fn, SPEC)
    assert graph.outputs[0] is graph.inputs[0]
    assert [t.name for t in graph.outputs] == ["x", "add_out"]


@pytest.mark.parametrize("result", [1, "text", [1], True])
def test_other_outputs_raise(ir: popxl.Ir, result: Any) -> None:
    with pytest.raises(ValueError, match=r"^Output of subgraph must be None, a Tensor or an iterable of Tensors\."):
        ir.create_graph(lambda: result)


def test_output_that_mixes_tensors_and_others_raises(ir: popxl.Ir) -> None:
    with pytest.raises(ValueError, match="Output of subgraph must be"):
        ir.create_graph(lambda x: (x, 1), SPEC)


def test_output_of_another_graph_raises(ir: popxl.Ir, main: popxl.Graph) -> None:
    x = popxl.variable(1.0)
    with pytest.raises(ValueError, match="The input tensor `t` is not in the current Graph"):
        ir.create_graph(lambda: x)


def test_marked_outputs_precede_returned_ones_and_may_repeat(ir: popxl.Ir) -> None:
    def f(x: popxl.Tensor) -> tuple[popxl.Tensor, popxl.Tensor]:
        y = x + 1.0
        popxl.graph_output(y)
        return x, y

    assert [t.name for t in ir.create_graph(f, SPEC).outputs] == ["add_out", "x", "add_out"]


# After an exception in the body


def test_exception_in_the_body_propagates_and_leaves_no_trace_in_the_program(
    ir: popxl.Ir, main: popxl.Graph, evaluate: Any
) -> None:
    def broken() -> None:
        ops.init((), popxl.float32)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        ir.create_graph(broken)
    assert popxl.gcg() is main
    assert evaluate(popxl.constant(1.0) + 1.0) == [2.0]


# graph_input and graph_output


def test_graph_input_defaults(ir: popxl.Ir) -> None:
    graph = ir.create_empty_graph()
    with graph:
        t = popxl.graph_input([2, 3], popxl.float16)
    assert (t.shape, t.dtype, t.name, t.meta_shape) == ((2, 3), popxl.float16, "t", ())
    assert graph.by_ref_inputs == frozenset()


def test_graph_input_takes_a_spec(ir: popxl.Ir) -> None:
    spec = popxl.TensorSpec((2,), popxl.float32, (4,))
    with ir.create_empty_graph():
        assert popxl.graph_input(**spec, name="w").spec == spec


def test_graph_may_get_inputs_and_outputs_after_create_graph(ir: popxl.Ir) -> None:
    graph = ir.create_graph(lambda x: x, SPEC)
    with graph:
        popxl.graph_output(popxl.graph_input((), popxl.float32, "late"))
    assert names(graph) == ["x", "late"]
    assert [t.name for t in graph.outputs] == ["x", "late"]


def test_graph_output_of_another_graph_raises(ir: popxl.Ir, main: popxl.Graph) -> None:
    x = popxl.variable(1.0)
    with ir.create_empty_graph(), pytest.raises(ValueError, match="The input tensor `t` is not in the current Graph"):
        popxl.graph_output(x)


def test_graph_output_of_no_tensor_raises(main: popxl.Graph) -> None:
    with pytest.raises(TypeError, match="The input `t` is not a Tensor"):
        popxl.graph_output(1.0)  # type: ignore[arg-type]


@pytest.mark.parametrize("function", [lambda: popxl.graph_input((), popxl.float32), lambda: popxl.graph_output(None)])
def test_graph_input_and_output_need_a_graph(function: Any) -> None:
    with pytest.raises(RuntimeError, match="no graph has been selected"):
        function()
