"""`constant` and `variable` (spec tensors-dtypes.md §6)."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import popxl
from popxl import ops
from popxl.dtypes import np_dtype_float8_143

# Data, the dtype argument, downcast, and what comes out.
DTYPES = [
    (1, None, True, popxl.int32),
    (1.0, None, True, popxl.float32),
    (True, None, True, popxl.bool),
    ([1, 2], None, True, popxl.int32),
    (np.zeros(2), None, True, popxl.float32),
    (np.zeros(2), None, False, popxl.float64),
    (np.zeros(2, np.uint64), None, True, popxl.uint32),
    (np.zeros(2, np.int8), None, True, popxl.int8),
    (1.7, popxl.int32, True, popxl.int32),
    (1, popxl.float16, True, popxl.float16),
    (0.75, popxl.float8_143, True, popxl.float8_143),
]


@pytest.mark.parametrize("create", [popxl.constant, popxl.variable])
@pytest.mark.parametrize(("data", "dtype", "downcast", "expected"), DTYPES)
def test_dtype_follows_the_rules_of_host_data(
    main: popxl.Graph, create: Any, data: Any, dtype: Any, downcast: bool, expected: popxl.dtype
) -> None:
    t = create(data, dtype, downcast=downcast)
    assert (t.dtype, t.shape) == (expected, np.shape(data))


@pytest.mark.parametrize("create", [popxl.constant, popxl.variable])
def test_data_are_copied(ir: popxl.Ir, create: Any) -> None:
    data = np.ones(2, np.float32)
    with ir.main_graph:
        t = create(data)
        ops.relu(t)
    data[...] = 7.0
    np.testing.assert_array_equal(popxl.Session(ir).get_tensor_data(t), [1.0, 1.0])


@pytest.mark.parametrize("create", [popxl.constant, popxl.variable])
def test_float8_scale_and_overflow(ir: popxl.Ir, create: Any) -> None:
    with ir.main_graph:
        scaled = create(np.float32([0.75]), popxl.float8_143, log2_scale=-2)
        saturated = create(np.float32([250.0]), popxl.float8_143, nan_on_overflow=False)
        ops.init((), popxl.float32)
    session = popxl.Session(ir)
    codes = [int(session.get_tensor_data(t).view(np.uint8)[0]) for t in (scaled, saturated)]
    assert codes == [0b00101100, 0b01111111]


@pytest.mark.parametrize("create", [popxl.constant, popxl.variable])
def test_scale_without_float8_raises(main: popxl.Graph, create: Any) -> None:
    with pytest.raises(RuntimeError, match="log2_scale=1"):
        create(1.0, log2_scale=1)


@pytest.mark.parametrize("create", [popxl.constant, popxl.variable])
def test_creation_needs_a_graph(create: Any) -> None:
    with pytest.raises(RuntimeError, match="no graph has been selected"):
        create(1.0)


def test_constant_may_be_in_any_graph(ir: popxl.Ir) -> None:
    with ir.create_empty_graph() as graph:
        c = popxl.constant(1.0)
    assert c in graph


def test_constant_of_float8_codes_needs_a_dtype(main: popxl.Graph) -> None:
    codes = np.zeros(2, np_dtype_float8_143)
    with pytest.raises(TypeError, match="need a dtype"):
        popxl.constant(codes)
    assert popxl.constant(codes, popxl.float8_143).dtype == popxl.float8_143


def test_variable_of_float8_codes_needs_no_dtype(main: popxl.Graph) -> None:
    assert popxl.variable(np.zeros(2, np_dtype_float8_143)).dtype == popxl.float8_143


# Variables


def test_variable_outside_the_main_graph_raises(ir: popxl.Ir) -> None:
    with (
        ir.create_empty_graph(),
        pytest.raises(ValueError, match=r"^You cannot initialise a variable tensor within a graph\."),
    ):
        popxl.variable(1.0)


def test_defaults_of_a_variable(ir: popxl.Ir, main: popxl.Graph) -> None:
    v = popxl.variable([1.0, 2.0])
    assert v.replica_grouping == ir.replica_grouping()
    assert v.retrieval_mode == "one_per_group"
    assert (v.shape, v.shape_on_host, v.shape_on_replica) == ((2,), (2,), (2,))
    assert not v.location_info.isRemote()


@pytest.mark.parametrize(
    ("given", "mode"),
    [(None, "one_per_group"), ("one_per_group", "one_per_group"), ("all_replicas", "all_replicas")],
)
def test_retrieval_mode(main: popxl.Graph, given: Any, mode: str) -> None:
    assert popxl.variable(1.0, retrieval_mode=given).retrieval_mode == mode


@pytest.mark.parametrize("mode", ["all", "", "ONE_PER_GROUP"])
def test_unknown_retrieval_mode_raises(main: popxl.Graph, mode: Any) -> None:
    with pytest.raises(ValueError, match=r"^Invalid retrieval_mode"):
        popxl.variable(1.0, retrieval_mode=mode)


def test_group_axis_is_not_part_of_the_shape() -> None:
    ir = popxl.Ir(8)
    with ir.main_graph:
        v = popxl.variable(np.zeros((4, 3, 3), np.float32), replica_grouping=ir.replica_grouping(stride=4))
    assert (v.shape, v.shape_on_host, v.shape_on_replica) == ((3, 3), (4, 3, 3), (3, 3))


def test_one_group_has_no_group_axis() -> None:
    ir = popxl.Ir(8)
    with ir.main_graph:
        v = popxl.variable(np.zeros((4, 3), np.float32), replica_grouping=ir.replica_grouping())
    assert (v.shape, v.shape_on_host) == ((4, 3), (4, 3))


@pytest.mark.parametrize("shape", [(), (3,), (3, 4), (8, 4)])
def test_data_without_the_group_axis_raise(shape: tuple[int, ...]) -> None:
    ir = popxl.Ir(8)
    with ir.main_graph, pytest.raises(ValueError, match="with 4 replica groups must have shape"):
        popxl.variable(np.zeros(shape, np.float32), replica_grouping=ir.replica_grouping(stride=4))


def test_grouping_without_a_constant_stride_takes_one_value_per_group() -> None:
    ir = popxl.Ir(8)
    grouping = ir.replica_grouping_from_assignments([0, 0, 1, 1, 0, 0, 1, 1])
    with ir.main_graph:
        v = popxl.variable(np.zeros((2, 5), np.float32), replica_grouping=grouping)
    assert (v.shape, v.shape_on_host, v.shape_on_replica) == ((5,), (2, 5), (5,))


def test_grouping_of_another_ir_raises() -> None:
    grouping = popxl.Ir(2).replica_grouping()
    with popxl.Ir(2).main_graph, pytest.raises(ValueError, match="belongs to another Ir"):
        popxl.variable(1.0, replica_grouping=grouping)


def test_grouping_of_another_replication_factor_raises() -> None:
    ir = popxl.Ir(2)
    grouping = ir.replica_grouping()
    ir.replication_factor = 4
    with ir.main_graph, pytest.raises(ValueError, match="another replication factor"):
        popxl.variable(1.0, replica_grouping=grouping)


# Memory maps


@pytest.fixture
def memmap(tmp_path: Path) -> np.memmap[Any, Any]:
    array = np.memmap(tmp_path / "weights", np.float32, "w+", shape=(2, 3))
    array[...] = np.arange(6).reshape(2, 3)
    return array


def test_memmap_is_the_hosts_storage(ir: popxl.Ir, memmap: np.memmap[Any, Any]) -> None:
    with ir.main_graph:
        v = popxl.variable(memmap)
        v += 1.0
    with popxl.Session(ir) as session:
        session.run()
        assert session.get_tensor_data(v) is memmap
    expected = np.arange(6, dtype=np.float32).reshape(2, 3) + 1
    np.testing.assert_array_equal(memmap, expected)
    np.testing.assert_array_equal(np.fromfile(memmap.filename, np.float32), expected.reshape(-1))


def test_change_of_the_memmap_is_sent_by_the_next_upload(ir: popxl.Ir, memmap: np.memmap[Any, Any]) -> None:
    with ir.main_graph:
        v = popxl.variable(memmap)
        out = popxl.d2h_stream(v.shape, v.dtype)
        ops.host_store(out, v + 0.0)
    memmap[...] = 5.0
    with popxl.Session(ir) as session:
        np.testing.assert_array_equal(session.run()[out], np.full((2, 3), 5.0))


def test_read_only_memmap_switches_off_the_fetch_on_exit(ir: popxl.Ir, memmap: np.memmap[Any, Any]) -> None:
    with ir.main_graph:
        ops.relu(popxl.variable(np.memmap(memmap.filename, np.float32, "r", shape=(2, 3))))
    assert popxl.Session(ir).weights_to_host_on_exit is False


@pytest.mark.parametrize(
    ("mode", "build", "start"),
    [
        (np.float32, {"dtype": popxl.float16}, "When passing a memory-mapped NumPy array, the `dtype` parameter"),
        (np.float64, {}, "When passing a memory-mapped NumPy array, the dtype None is not supported"),
    ],
)
def test_memmap_is_never_converted(main: popxl.Graph, tmp_path: Path, mode: Any, build: Any, start: str) -> None:
    with pytest.raises(ValueError, match=f"^{start}"):
        popxl.variable(np.memmap(tmp_path / "x", mode, "w+", shape=(2,)), **build)


def test_memmap_must_be_contiguous(main: popxl.Graph, memmap: np.memmap[Any, Any]) -> None:
    with pytest.raises(ValueError, match="it must already be in C-ordered"):
        popxl.variable(memmap.T)


def test_memmap_with_a_constant_stride_is_kept(tmp_path: Path, memmap: np.memmap[Any, Any]) -> None:
    ir = popxl.Ir(4)
    with ir.main_graph:
        v = popxl.variable(memmap, replica_grouping=ir.replica_grouping(stride=2))
    assert v.host_value is memmap


def test_memmap_with_another_grouping_is_copied_and_said_so_once(
    memmap: np.memmap[Any, Any], caplog: pytest.LogCaptureFixture
) -> None:
    ir = popxl.Ir(8)
    grouping = ir.replica_grouping_from_assignments([0, 0, 1, 1, 0, 0, 1, 1])
    with ir.main_graph, caplog.at_level(logging.WARNING):
        v = popxl.variable(memmap, replica_grouping=grouping)
    assert caplog.text.count("you have passed np.memmap data and a non-const replica grouping") == 1
    memmap[...] = 9.0
    assert not isinstance(v.host_value, np.memmap)
    np.testing.assert_array_equal(v.host_value, np.arange(6).reshape(2, 3))


def test_warning_goes_to_stderr(tmp_path: Path) -> None:
    code = f"""
import numpy as np, popxl
ir = popxl.Ir(8)
with ir.main_graph:
    data = np.memmap({str(tmp_path / "x")!r}, np.float32, "w+", shape=(2, 3))
    popxl.variable(data, replica_grouping=ir.replica_grouping_from_assignments([0, 0, 1, 1, 0, 0, 1, 1]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    assert done.stdout == ""
    assert done.stderr.count("you have passed np.memmap data and a non-const replica grouping") == 1
