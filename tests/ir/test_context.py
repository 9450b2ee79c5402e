"""The building context and its context managers (spec core.md §5)."""

from __future__ import annotations

import inspect
from contextlib import AbstractContextManager

import pytest

import popxl
from popxl import ops
from popxl.context import (
    _execution_context,
    debug_context_frame_offset,
    get_current_context,
    get_source_location,
    op_debug_context,
)
from popxl.op import Op

NO_GRAPH = r"^Trying to access a graph, but no graph has been selected\."


def last_op() -> Op:
    return popxl.gcg().ops[-1]


# The current graph


@pytest.mark.parametrize("function", [popxl.gcg, popxl.gmg, popxl.gir])
def test_without_a_graph_there_is_nothing_current(function) -> None:
    with pytest.raises(RuntimeError, match=NO_GRAPH):
        function()


def test_current_graph_is_the_top_and_main_graph_and_ir_are_those_of_the_bottom(ir: popxl.Ir) -> None:
    graph = ir.create_empty_graph()
    with graph:
        assert popxl.gcg() is graph
        assert popxl.gmg() is ir.main_graph
        assert popxl.gir() is ir


def test_graphs_of_two_irs_do_not_nest(ir: popxl.Ir) -> None:
    other = popxl.Ir()
    with ir.main_graph:
        with pytest.raises(RuntimeError, match="Cannot enter graph"), other.main_graph:
            pass
        assert popxl.gcg() is ir.main_graph


def test_create_graph_of_another_ir_does_not_nest(main: popxl.Graph) -> None:
    with pytest.raises(RuntimeError, match="Cannot enter graph"):
        popxl.Ir().create_graph(lambda: None)


# Placement


def test_ops_are_on_ipu_0_and_compute_tiles_by_default(main: popxl.Graph) -> None:
    ops.init((), popxl.float32)
    assert (last_op().ipu, last_op().tile_set) == (0, "compute")


def test_ipu_places_ops_and_yields_the_number(main: popxl.Graph) -> None:
    with popxl.ipu(3) as number:
        x = ops.init((), popxl.float32)
    assert number == 3
    assert x.ipu == 3


def test_innermost_ipu_counts(main: popxl.Graph) -> None:
    with popxl.ipu(1), popxl.ipu(2):
        x = ops.init((), popxl.float32)
    assert x.ipu == 2


def test_io_tiles_places_ops_and_yields_nothing(main: popxl.Graph) -> None:
    with popxl.io_tiles() as value:
        x = ops.init((), popxl.float32)
    assert value is None
    assert x.tile_set == "io"


def test_name_scope_yields_all_active_scopes() -> None:
    with popxl.name_scope("a") as outer, popxl.name_scope("b") as inner:
        assert (outer, inner) == (["a"], ["a", "b"])


@pytest.mark.parametrize(("mode", "value"), [(True, True), (False, False), ("pass", None)])
def test_in_sequence_yields_its_mode(mode, value) -> None:
    with popxl.in_sequence(mode) as yielded:
        assert yielded is value


def test_in_sequence_refuses_none() -> None:
    with pytest.raises(TypeError, match=r"^`None` cannot be passed to `in_sequence`"), popxl.in_sequence(None):
        pass


MANAGERS = [
    pytest.param(lambda: popxl.ipu(1), id="ipu"),
    pytest.param(popxl.io_tiles, id="io_tiles"),
    pytest.param(lambda: popxl.name_scope("a"), id="name_scope"),
    pytest.param(popxl.in_sequence, id="in_sequence"),
    pytest.param(lambda: debug_context_frame_offset(1), id="debug_context_frame_offset"),
    pytest.param(lambda: _execution_context(popxl.ExecutionContext.WeightsFromHostFragment), id="_execution_context"),
]


@pytest.mark.parametrize("manager", MANAGERS)
def test_manager_changes_the_state_inside_only(manager) -> None:
    before = repr(get_current_context())
    with manager():
        assert repr(get_current_context()) != before
    assert repr(get_current_context()) == before


@pytest.mark.parametrize("manager", MANAGERS)
def test_manager_restores_the_state_after_an_exception(manager) -> None:
    before = repr(get_current_context())
    with pytest.raises(KeyError), manager():
        raise KeyError
    assert repr(get_current_context()) == before


@pytest.mark.parametrize("manager", MANAGERS)
def test_manager_decorates_functions_that_may_run_often(manager) -> None:
    before = repr(get_current_context())

    @manager()
    def state() -> str:
        return repr(get_current_context())

    assert state() == state() != before
    assert repr(get_current_context()) == before


def test_decorator_is_generator_style_context_manager() -> None:
    assert isinstance(popxl.ipu(0), AbstractContextManager)


def test_state_reaches_ops_made_while_create_graph_runs_a_function(ir: popxl.Ir) -> None:
    with popxl.ipu(2), popxl.io_tiles(), popxl.name_scope("s"):
        graph = ir.create_graph(lambda x: ops.relu(x), popxl.TensorSpec((), popxl.float32))
    (op,) = graph.ops
    assert (op.ipu, op.tile_set, graph.inputs[0].name, graph.outputs[0].name) == (2, "io", "s/x", "s/relu_out")


def test_execution_context_is_recorded_on_ops(main: popxl.Graph) -> None:
    with _execution_context(popxl.ExecutionContext.WeightsToHostFragment):
        ops.init((), popxl.float32)
    assert last_op().execution_context is popxl.ExecutionContext.WeightsToHostFragment
    ops.init((), popxl.float32)
    assert last_op().execution_context is popxl.ExecutionContext.Normal


# Where an op was made


def previous_line() -> int:
    """Number of the line above the call."""
    return inspect.stack()[1].lineno - 1


def test_op_records_the_line_of_the_users_call(main: popxl.Graph) -> None:
    ops.init((), popxl.float32)
    line = previous_line()
    location = last_op().location
    assert (location.file_name, location.line) == (__file__, line)
    assert location.function == "test_op_records_the_line_of_the_users_call"


def test_operator_records_the_users_line(main: popxl.Graph) -> None:
    x = popxl.variable(1.0)
    x + 1.0
    line = previous_line()
    assert last_op().location.line == line


def test_op_in_a_graph_function_records_the_line_of_that_function(ir: popxl.Ir) -> None:
    def body() -> None:
        ops.init((), popxl.float32)

    graph = ir.create_graph(body)
    assert graph.ops[0].location.function == "body"


def test_frame_offset_moves_the_recorded_line_outwards(main: popxl.Graph) -> None:
    def layer() -> popxl.Tensor:
        with debug_context_frame_offset(1):
            return ops.init((), popxl.float32)

    layer()
    assert last_op().location.function == "test_frame_offset_moves_the_recorded_line_outwards"


def test_source_location_counts_frames_outwards() -> None:
    def inner() -> str:
        return get_source_location(1).function

    assert inner() == "test_source_location_counts_frames_outwards"


def test_error_at_session_construction_names_the_users_line(ir: popxl.Ir) -> None:
    with ir.main_graph:
        buffer = popxl.remote_buffer((1,), popxl.float32, entries=1)
        ops.remote_load(buffer, 1)
        line = previous_line()
    with pytest.raises(popxl.errors.RemoteOffsetError, match=f"{__file__}:{line} in test_error_at"):
        popxl.Session(ir)


def test_op_records_the_function_that_made_it(main: popxl.Graph) -> None:
    ops.init((), popxl.float32)
    assert last_op().api == "init"


def test_op_debug_context_records_the_name_of_the_decorated_function(main: popxl.Graph) -> None:
    @op_debug_context
    def my_op() -> popxl.Tensor:
        return ops.init((), popxl.float32)

    @op_debug_context("other")
    def renamed() -> popxl.Tensor:
        return my_op()

    my_op()
    assert last_op().api == "my_op"
    renamed()
    assert last_op().api == "my_op"
    op_debug_context("other")(lambda: ops.init((), popxl.float32))()
    assert last_op().api == "other"


def test_op_debug_context_is_left_after_an_exception(main: popxl.Graph) -> None:
    @op_debug_context
    def failing() -> None:
        raise KeyError

    with pytest.raises(KeyError):
        failing()
    ops.init((), popxl.float32)
    assert last_op().api == "init"
