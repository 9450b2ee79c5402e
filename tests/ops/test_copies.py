"""Where copies say that they and what they copy are (spec ops-nn.md §7.2, tensors-dtypes.md §5.1-§5.2)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

import popxl
from popxl import ops
from popxl.errors import PopxlValueError


@pytest.fixture(autouse=True)
def main() -> Iterator[popxl.Graph]:
    with popxl.Ir().main_graph as graph:
        yield graph


def made(name: str = "x", ipu: int = 0) -> popxl.Tensor:
    """A tensor that an op on `ipu` makes."""
    with popxl.ipu(ipu):
        return ops.identity(popxl.variable(1.0), name)


# To another IPU


def test_a_copy_is_on_its_destination() -> None:
    x = made(ipu=2)
    assert (ops.ipu_copy(x, 5).ipu, x.ipu) == (5, 2)


def test_the_method_is_the_op() -> None:
    copy = made(ipu=2).copy_to_ipu(5)
    assert (copy.producer.type, copy.ipu) == ("IpuCopy", 5)


def test_a_copy_is_named_after_its_destination() -> None:
    assert ops.ipu_copy(made(), 3).name == "x_c3"


@pytest.mark.parametrize(("source", "expected"), [(None, 2), (4, 4)])
def test_a_copy_keeps_its_source(source: int | None, expected: int) -> None:
    op = ops.ipu_copy(made(ipu=2), 5, source).producer
    assert op is not None
    assert dict(op.attributes) == {"destination": 5, "source": expected}


def test_a_copy_does_not_follow_the_context() -> None:
    x = made(ipu=2)
    with popxl.ipu(7):
        assert ops.ipu_copy(x, 5).ipu == 5


def test_a_copy_goes_with_tensors_of_its_destination_only() -> None:
    x, there = made(), made(ipu=1)
    with popxl.ipu(1):
        ops.add(ops.ipu_copy(x, 1), there)
    with pytest.raises(PopxlValueError, match="are located on different IPUs: 1 != 0"):
        ops.add(ops.ipu_copy(x, 1), x)


@pytest.mark.parametrize("make", [popxl.variable, popxl.constant])
def test_what_no_op_makes_needs_a_source(make: Any) -> None:
    with pytest.raises(PopxlValueError, match=r"^Could not infer the ipu for Tensor to be copied.*specify `source`"):
        ops.ipu_copy(make(1.0), 1)


def test_an_input_of_a_graph_needs_a_source(main: popxl.Graph) -> None:
    with pytest.raises(PopxlValueError, match=r"^Could not infer the ipu"):
        main.ir.create_graph(lambda x: ops.ipu_copy(x, 1), popxl.TensorSpec((), popxl.float32))


@pytest.mark.parametrize("make", [popxl.variable, popxl.constant])
def test_the_method_of_a_leaf_has_no_default_source(make: Any) -> None:
    t = make(1.0)
    with pytest.raises(TypeError, match="source"):
        t.copy_to_ipu(1)
    assert t.copy_to_ipu(1, 0).ipu == 1


def test_a_variable_is_on_the_source_of_its_copy() -> None:
    x = popxl.variable(1.0)
    ops.ipu_copy(x, 1, source=3)
    assert x.ipu == 3


# To the other tile set


def test_a_copy_is_on_the_other_tile_set_of_the_same_ipu() -> None:
    x = made(ipu=2)
    there = ops.io_tile_copy(x)
    back = ops.io_tile_copy(there)
    assert [(t.ipu, t.tile_set) for t in (x, there, back)] == [(2, "compute"), (2, "io"), (2, "compute")]


def test_a_copy_between_tile_sets_has_its_own_name() -> None:
    assert ops.io_tile_copy(made()).name == "x_iotilecopy"


def test_the_context_places_the_copy_of_what_is_nowhere_yet() -> None:
    x = popxl.variable(1.0)
    with popxl.ipu(2), popxl.io_tiles():
        there = ops.io_tile_copy(x)
    assert [(t.ipu, t.tile_set) for t in (x, there)] == [(2, "compute"), (2, "io")]


# Both


@pytest.mark.parametrize("copy", [ops.io_tile_copy, lambda t: ops.ipu_copy(t, 1)])
def test_a_copy_does_not_share_storage(main: popxl.Graph, copy: Any) -> None:
    x = made()
    there = copy(x)
    ops.add_(x, popxl.constant(1.0))
    streams = [popxl.d2h_stream((), popxl.float32) for _ in range(2)]
    for stream, t in zip(streams, (x, there), strict=True):
        with popxl.ipu(t.ipu):
            ops.host_store(stream, t)
    with popxl.Session(main.ir) as session:
        outputs = session.run()
    assert [float(outputs[s]) for s in streams] == [2.0, 1.0]
