"""Views share storage: through a session, and each `put` against NumPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import hypothesis.strategies as st
import jax
import numpy as np
import pytest
from hypothesis import given, settings

import popxl
from popxl import ops
from popxl.aliasing import is_writable
from popxl.op import Op
from popxl.tensor import Tensor

X = np.arange(6, dtype=np.float32).reshape(2, 3)


def run(build: Callable[[], Mapping[str, Tensor]]) -> dict[str, np.ndarray]:
    """Run the program that `build` makes, and return the values of the tensors that it returns."""
    ir = popxl.Ir()
    with ir.main_graph, popxl.in_sequence():
        streams = {}
        for name, t in build().items():
            streams[name] = popxl.d2h_stream(t.shape, t.dtype)
            ops.host_store(streams[name], t)
    with popxl.Session(ir) as session:
        outputs = session.run()
    return {name: outputs[stream] for name, stream in streams.items()}


def add_to(t: Tensor, number: float) -> Tensor:
    return ops.add_(t, popxl.constant(number, t.dtype))


VIEWS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[np.ndarray], np.ndarray]]] = {
    "reshape_": (lambda t: ops.reshape_(t, (3, -1)), lambda a: a.reshape(3, 2)),
    "flatten_": (ops.flatten_, lambda a: a.reshape(-1)),
    "transpose_": (ops.transpose_, lambda a: a.T),
    "slice_": (lambda t: ops.slice_(t, [1, 0], [2, 2]), lambda a: a[1:2, 0:2]),
    "backward slice_": (lambda t: ops.slice_(t, step=-1, axis=1), lambda a: a[:, ::-1]),
    "detach_": (ops.detach_, lambda a: a[...]),
    "chain": (
        lambda t: ops.slice_(ops.reshape_(ops.slice_(ops.transpose_(t), 2, None, -1), (6,)), 1, 4),
        lambda a: a.T.copy()[2::-1].reshape(6)[1:4],
    ),
}


@pytest.mark.parametrize("name", VIEWS)
def test_a_view_shows_the_elements_of_its_base(name: str) -> None:
    view, oracle = VIEWS[name]
    got = run(lambda: {"view": view(popxl.variable(X))})
    np.testing.assert_array_equal(got["view"], oracle(X))


@pytest.mark.parametrize("name", VIEWS)
def test_a_write_to_the_base_is_seen_through_the_view(name: str) -> None:
    view, oracle = VIEWS[name]

    def build() -> dict[str, Tensor]:
        x = popxl.variable(X)
        v = view(x)
        add_to(x, 10)
        return {"view": v}

    np.testing.assert_array_equal(run(build)["view"], oracle(X + 10))


@pytest.mark.parametrize("name", [name for name in VIEWS if name != "chain"])
def test_a_write_through_the_view_changes_those_elements_of_the_base_only(name: str) -> None:
    view, oracle = VIEWS[name]

    def build() -> dict[str, Tensor]:
        x = popxl.variable(X)
        written = add_to(view(x), 10)
        return {"x": x, "written": written}

    expected = X.copy()
    part = oracle(expected)
    part += 10
    assert np.shares_memory(part, expected)
    got = run(build)
    np.testing.assert_array_equal(got["x"], expected)
    np.testing.assert_array_equal(got["written"], part)


def test_a_write_through_a_chain_of_views_reaches_the_base() -> None:
    def build() -> dict[str, Tensor]:
        x = popxl.variable(X)
        add_to(ops.slice_(ops.flatten_(ops.transpose_(x)), 1, 4), 10)
        return {"x": x}

    # x.T in row-major order is 0 3 1 4 2 5: the elements 3, 1 and 4 grow.
    np.testing.assert_array_equal(run(build)["x"], [[0, 11, 2], [13, 14, 5]])


def test_a_write_through_one_view_is_seen_by_another() -> None:
    def build() -> dict[str, Tensor]:
        x = popxl.variable(X)
        columns, row = ops.transpose_(x), ops.slice_(x, 1, 2)
        add_to(row, 10)
        return {"columns": columns, "row": row}

    got = run(build)
    np.testing.assert_array_equal(got["columns"], [[0, 13], [1, 14], [2, 15]])
    np.testing.assert_array_equal(got["row"], [[13, 14, 15]])


def test_a_copy_does_not_see_a_later_write() -> None:
    def build() -> dict[str, Tensor]:
        x = popxl.variable(X)
        copies = {
            "reshape": ops.reshape(x, (6,)),
            "transpose": ops.transpose(x),
            "slice": ops.slice(x, 0, 1),
            "item": x[0],
            "detach": ops.detach(x),
            "concat": ops.concat([x]),
            "split": ops.split(x, 2)[0],
            "squeeze": ops.squeeze(x),
        }
        add_to(x, 10)
        return copies

    got = run(build)
    assert max(float(copy.max()) for copy in got.values()) == 5


def test_a_write_to_a_concat_view_reaches_each_tensor_in_its_region() -> None:
    def build() -> dict[str, Tensor]:
        a, b = popxl.variable([1.0, 2.0]), popxl.variable([3.0, 4.0, 5.0])
        both = ops.concat_([a, b])
        ops.add_(both, popxl.constant([10.0, 20.0, 30.0, 40.0, 50.0]))
        return {"a": a, "b": b, "both": both}

    got = run(build)
    np.testing.assert_array_equal(got["a"], [11, 22])
    np.testing.assert_array_equal(got["b"], [33, 44, 55])
    np.testing.assert_array_equal(got["both"], [11, 22, 33, 44, 55])


def test_a_write_to_a_part_of_a_concat_view_reaches_both_tensors() -> None:
    def build() -> dict[str, Tensor]:
        a, b = popxl.variable([[1.0], [2.0]]), popxl.variable([[3.0, 4.0], [5.0, 6.0]])
        add_to(ops.slice_(ops.concat_([a, b], axis=-1), 0, 2, axis=1), 10)
        return {"a": a, "b": b}

    got = run(build)
    np.testing.assert_array_equal(got["a"], [[11], [12]])
    np.testing.assert_array_equal(got["b"], [[13, 4], [15, 6]])


def test_a_concat_view_sees_a_write_to_one_of_its_tensors() -> None:
    def build() -> dict[str, Tensor]:
        a, b = popxl.variable([1.0]), popxl.variable([2.0])
        both = ops.concat_([a, b])
        add_to(b, 10)
        return {"both": both}

    np.testing.assert_array_equal(run(build)["both"], [1, 12])


def test_a_write_to_one_of_two_regions_of_a_tensor_in_a_concat_view_reaches_it() -> None:
    def build() -> dict[str, Tensor]:
        a, b = popxl.variable([1.0, 2.0]), popxl.variable([3.0])
        around = ops.concat_([a, b, a])
        add_to(ops.slice_(around, 1, 3), 10)
        return {"a": a, "b": b, "around": around}

    got = run(build)
    np.testing.assert_array_equal(got["a"], [1, 12])
    np.testing.assert_array_equal(got["b"], [13])
    np.testing.assert_array_equal(got["around"], [1, 12, 13, 1, 12])


def test_a_tensor_twice_in_a_concat_view_is_not_overwritten_and_the_result_is_right() -> None:
    def build() -> dict[str, Tensor]:
        x = popxl.variable([1.0, 2.0])
        twice = ops.concat_([x, x])
        result = ops.add_(twice, popxl.constant([10.0, 20.0, 30.0, 40.0]))
        return {"x": x, "twice": twice, "result": result}

    got = run(build)
    np.testing.assert_array_equal(got["x"], [1, 2])
    np.testing.assert_array_equal(got["twice"], [1, 2, 1, 2])
    np.testing.assert_array_equal(got["result"], [11, 22, 31, 42])


def test_a_concat_view_of_distinct_parts_of_one_tensor_is_written_through() -> None:
    def build() -> dict[str, Tensor]:
        x = popxl.variable([1.0, 2.0, 3.0])
        swapped = ops.concat_([ops.slice_(x, 2, 3), ops.slice_(x, 0, 1)])
        ops.add_(swapped, popxl.constant([10.0, 20.0]))
        return {"x": x, "swapped": swapped}

    got = run(build)
    np.testing.assert_array_equal(got["x"], [21, 2, 13])
    np.testing.assert_array_equal(got["swapped"], [13, 21])


def test_a_concat_view_of_overlapping_parts_of_one_tensor_is_not_written_through() -> None:
    def build() -> dict[str, Tensor]:
        x = popxl.variable([1.0, 2.0, 3.0])
        result = add_to(ops.concat_([ops.slice_(x, 0, 2), ops.slice_(x, 1, 3)]), 10)
        return {"x": x, "result": result}

    got = run(build)
    np.testing.assert_array_equal(got["x"], [1, 2, 3])
    np.testing.assert_array_equal(got["result"], [11, 12, 12, 13])


def test_a_write_through_a_view_of_a_constant_leaves_the_constant() -> None:
    def build() -> dict[str, Tensor]:
        c = popxl.constant([1.0, 2.0])
        return {"result": add_to(ops.slice_(c, 0, 1), 10), "c": c}

    got = run(build)
    np.testing.assert_array_equal(got["result"], [11])
    np.testing.assert_array_equal(got["c"], [1, 2])


def test_a_write_through_a_view_of_a_variable_lasts_until_the_next_run() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        x = popxl.variable(X)
        add_to(ops.slice_(ops.transpose_(x), 0, 1), 1)
    with popxl.Session(ir) as session:
        session.run()
        session.run()
        np.testing.assert_array_equal(session.get_tensor_data(x), np.add(X, [[2, 0, 0], [2, 0, 0]]))


def test_a_write_through_a_view_of_a_graph_input_passed_by_reference_reaches_the_caller() -> None:
    def update(t: popxl.TensorByRef) -> None:
        add_to(ops.slice_(ops.flatten_(t), 2, 4), 10)

    def build() -> dict[str, Tensor]:
        x = popxl.variable(X)
        ops.call(popxl.gcg().ir.create_graph(update, x), x)
        return {"x": x}

    np.testing.assert_array_equal(run(build)["x"], [[0, 1, 12], [13, 4, 5]])


def test_a_write_through_a_view_of_a_graph_input_passed_by_value_stays_in_the_graph() -> None:
    def update(t: Tensor) -> Tensor:
        view = ops.transpose_(t)
        add_to(view, 10)
        return ops.identity(view)

    def build() -> dict[str, Tensor]:
        x = popxl.variable(X)
        (result,) = ops.call(popxl.gcg().ir.create_graph(update, x), x)
        return {"x": x, "result": result}

    got = run(build)
    np.testing.assert_array_equal(got["x"], X)
    np.testing.assert_array_equal(got["result"], X.T + 10)


def test_a_view_may_be_passed_by_reference() -> None:
    def update(t: popxl.TensorByRef) -> None:
        add_to(t, 10)

    def build() -> dict[str, Tensor]:
        x = popxl.variable(X)
        column = ops.slice_(x, 1, 2, axis=1)
        ops.call(popxl.gcg().ir.create_graph(update, column), column)
        return {"x": x}

    np.testing.assert_array_equal(run(build)["x"], [[0, 11, 2], [3, 14, 5]])


def test_a_slice_with_nothing_to_do_is_the_tensor_itself() -> None:
    with popxl.Ir().main_graph as graph:
        x = popxl.variable(X)
        assert ops.slice(x, axis=1) is x
        assert ops.slice_(x) is x
        assert graph.ops == ()


# Each put against NumPy, whose views are an independent account of the same thing


def evaluate(op: Op, *arrays: np.ndarray) -> np.ndarray:
    assert op.definition.lower is not None
    with jax.enable_x64(True):
        return np.asarray(op.definition.lower(*arrays, **op.attributes))


def put(op: Op, new: np.ndarray, *bases: np.ndarray) -> list[np.ndarray]:
    assert op.definition.put is not None
    with jax.enable_x64(True):
        return [np.asarray(base) for base in op.definition.put(new, *bases, **op.attributes)]


@st.composite
def views(draw: st.DrawFn) -> tuple[tuple[int, ...], Callable[[Tensor], Tensor], Callable[[np.ndarray], np.ndarray]]:
    """A shape, a view of it in PopXL, and the same view in NumPy, which is a NumPy view as well."""
    shape = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    kind = draw(st.sampled_from(["transpose", "reshape", "slice", "detach"]))
    if kind == "transpose":
        order = tuple(draw(st.permutations(range(len(shape)))))
        return shape, lambda t: ops.transpose_(t, order), lambda a: np.transpose(a, order)
    if kind == "reshape":
        new = draw(st.sampled_from([tuple(reversed(shape)), (-1,), (1, *shape), (shape[0], -1)]))
        return shape, lambda t: ops.reshape_(t, new), lambda a: np.reshape(a, new)
    if kind == "detach":
        return shape, ops.detach_, lambda a: a[...]
    bounds = st.none() | st.integers(-6, 6)
    axes = draw(st.permutations(range(len(shape))))[: draw(st.integers(1, len(shape)))]
    keys = {axis: (draw(bounds), draw(bounds), draw(st.sampled_from([1, -1]))) for axis in axes}
    start, stop, step = (list(column) for column in zip(*keys.values(), strict=True))
    index = tuple(slice(*keys[axis]) if axis in keys else slice(None) for axis in range(len(shape)))
    return shape, lambda t: ops.slice_(t, start, stop, step, list(axes)), lambda a: a[index]


@given(views(), st.sampled_from([np.float32, np.int8, np.bool_]))
def test_put_writes_the_elements_of_the_view_and_no_others(view: Any, dtype: Any) -> None:
    shape, popxl_view, numpy_view = view
    base = (np.arange(np.prod(shape)) % 2).astype(dtype).reshape(shape)
    with popxl.Ir().main_graph as graph:
        popxl_view(popxl.variable(base))
    (op,) = graph.ops
    expected = base.copy()
    window = numpy_view(expected)
    np.testing.assert_array_equal(evaluate(op, base), window)
    new = 1 - window if dtype is not np.bool_ else ~window
    window[...] = new
    (changed,) = put(op, new, base)
    np.testing.assert_array_equal(changed, expected)
    np.testing.assert_array_equal(evaluate(op, changed), new)


@settings(max_examples=20)
@given(st.lists(st.integers(0, 2), min_size=1, max_size=3), st.integers(0, 1))
def test_put_of_a_concat_gives_each_tensor_its_region(lengths: list[int], axis: int) -> None:
    shapes = [(n, 2) if axis == 0 else (2, n) for n in lengths]
    bases = [np.full(shape, i, np.float32) for i, shape in enumerate(shapes)]
    with popxl.Ir().main_graph as graph:
        ops.concat_([popxl.variable(b) for b in bases], axis)
    (op,) = graph.ops
    joined = np.concatenate(bases, axis)
    new = np.arange(joined.size, dtype=np.float32).reshape(joined.shape)
    changed = put(op, new, *bases)
    np.testing.assert_array_equal(evaluate(op, *changed), new)
    assert [c.shape for c in changed] == shapes


def test_float8_codes_pass_through_views_unchanged() -> None:
    codes = np.arange(256, dtype=np.uint8)
    with popxl.Ir().main_graph as graph:
        t = ops.init((256,), popxl.float8_143)
        view = ops.slice_(t, step=-1)
    assert view.dtype == popxl.float8_143
    np.testing.assert_array_equal(evaluate(graph.ops[-1], codes), codes[::-1])
    (changed,) = put(graph.ops[-1], codes, codes)
    np.testing.assert_array_equal(changed, codes[::-1])


def test_a_view_can_be_written_and_a_view_of_a_constant_cannot() -> None:
    with popxl.Ir().main_graph:
        x = popxl.variable(X)
        assert is_writable(ops.flatten_(ops.transpose_(x)))
        assert not is_writable(ops.flatten_(popxl.constant(X)))
        assert not is_writable(ops.concat_([x, x]))
