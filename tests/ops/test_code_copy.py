"""`remote_code_load` stays in the graph, and does nothing (spec ops-nn.md §7.1)."""

from __future__ import annotations

import popxl
from popxl import ops
from popxl.tensor import Tensor


def test_it_is_an_op_without_tensors() -> None:
    ir = popxl.Ir()
    with ir.main_graph as graph:
        layer = ir.create_empty_graph("layer")
        ops.remote_code_load(layer, "executable")
    assert [op.type for op in graph.ops] == ["RemoteCodeLoad"]
    assert graph.tensors == ()
    assert graph.ops[0].called_graphs == ()


def test_the_text_of_a_program_names_the_graph() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        layer = ir.create_empty_graph("layer")
        ops.remote_code_load(layer, "executable")
    assert f"RemoteCodeLoad() {{graph='{layer.name}', destination=executable}}" in str(ir)


def run(*, loads: bool) -> list[float]:
    ir = popxl.Ir()
    with ir.main_graph as main:
        x = popxl.variable([1.0, 2.0])
        double = ir.create_graph(lambda t: t + t, x)

        def body(t: Tensor) -> Tensor:
            if loads:
                ops.remote_code_load(double, "executable")
                ops.remote_code_load(main, "executable")
            (y,) = ops.call(double, t)
            return y

        if loads:
            ops.remote_code_load(double, "executable")
        layer = ir.create_graph(body, x)
        (y,) = ops.repeat(layer, 3, x)
        (y,) = ops.call(layer, y)
        stream = popxl.d2h_stream(y.shape, y.dtype)
        ops.host_store(stream, y)
        if loads:
            ops.remote_code_load(layer, "executable")
    with popxl.Session(ir) as session:
        return session.run()[stream].tolist()


def test_a_program_computes_the_same_with_it_as_without() -> None:
    assert run(loads=True) == run(loads=False) == [16.0, 32.0]
