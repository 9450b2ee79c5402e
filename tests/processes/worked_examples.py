"""Each process of a job runs the examples that one process runs in ``tests/replicas``, with its part of the replicas.

The examples are those test functions themselves. What they call is replaced: a program of R replicas is one of the
job, what they give to all replicas is cut to those of this process, and what these give is put together again.

Arguments: a directory, the same for all processes.
"""

from __future__ import annotations

import inspect
import itertools
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

import popxl
from popxl.job import LOCAL_REPLICAS, Job

TESTS = Path(__file__).parents[1]
ONE_PROCESS_IR = popxl.Ir

# Of each test: where rows lie, and over how many devices of each process its replicas are divided.
EVERYWHERE = (("ram", 1), ("ram", 2), ("file", 1), ("file", 2))
SOME = (("file", 1), ("ram", 2))

REMOTE = {
    "test_2_two_replicas_without_a_grouping": EVERYWHERE,
    "test_3_a_value_for_each_of_two_replicas": SOME,
    "test_4_shards_by_hand": EVERYWHERE,
    "test_5_automatic_shards": SOME,
    "test_6_padding": SOME,
    "test_7_two_sharded_variables_in_one_buffer": SOME,
    "test_8_sharded_over_some_replicas": SOME,
    "test_9_store_load_and_load_in_place": SOME,
    "test_10_the_value_of_every_replica": EVERYWHERE,
    "test_shards_of_groups_of_one_are_whole_values": SOME,
    "test_rows_without_a_variable_start_as_zeros_and_last_over_runs": SOME,
}
RESIDENT = {
    "test_a_replicated_variable": SOME,
    "test_members_of_a_group_diverge_and_the_host_reads_the_first_or_all": SOME,
    "test_groups_without_a_constant_stride": SOME,
    "test_what_is_equal_everywhere_is_stored_for_every_replica": SOME,
}
COLLECTIVES = (
    "test_all_reduce",
    "test_gather",
    "test_gather_along_axis_1",
    "test_reduce_scatter",
    "test_slice",
    "test_slices_of_a_variable_differ",
    "test_a_sum_of_equal_values_counts_each_replica",
    "test_a_variable_may_be_overwritten_by_a_sum_over_all",
    "test_a_collective_in_a_called_graph",
    "test_a_collective_in_a_loop",
    "test_gradient_of_all_reduce",
    "test_gradient_of_gather_is_not_added_up",
    "test_gradient_of_slice_is_gathered",
)


def ir_of_job(replication: int = 1) -> popxl.Ir:
    """A program of so many replicas, in equal parts of all processes."""
    os.environ[LOCAL_REPLICAS] = str(replication // Job.from_environment().process_count)
    return ONE_PROCESS_IR("popdist")


# Between what all replicas have and what those of this process have


def own_part(ir: popxl.Ir, array: Any) -> np.ndarray:
    """Of what all replicas of a program are given, what those of this process are."""
    local = ir.instance_replication_factor
    axis = 1 if ir.num_host_transfers > 1 else 0
    first = ir.job.process_id * local
    part = np.asarray(array).take(range(first, first + local), axis)
    return part if local > 1 else part.squeeze(axis)


def of_all(ir: popxl.Ir, part: Any) -> np.ndarray:
    """What all replicas have, from what those of each process have. All processes call it."""
    import jax
    from jax.experimental.multihost_utils import process_allgather

    axis = 1 if ir.num_host_transfers > 1 else 0
    array = np.asarray(part)
    with jax.enable_x64(True):
        parts = np.asarray(process_allgather(array))
    if ir.instance_replication_factor == 1:
        return np.moveaxis(parts, 0, axis)
    return np.concatenate(list(parts), axis)


def run_in_job(session: popxl.Session, inputs: Mapping[Any, Any]) -> dict[Any, np.ndarray]:
    """One run; inputs and outputs are those of all replicas."""
    ir = session.ir
    found = session.run({stream: own_part(ir, array) for stream, array in inputs.items()})
    # The order of the streams is not the same in all processes.
    return {stream: of_all(ir, found[stream]) for stream in sorted(found, key=lambda stream: stream.tensor_id)}


def run_replicas(build: Callable[..., Any], *arrays: Any, runs: int = 1) -> list[np.ndarray]:
    """See ``replica_runs.run_replicas``."""
    from popxl import ops

    loaded = [np.asarray(a) for a in arrays]
    ir = popxl.Ir(replication=len(loaded[0]))
    with ir.main_graph, popxl.in_sequence():
        given = [popxl.h2d_stream(a.shape[1:], popxl.dtypes.dtype.as_dtype(a.dtype)) for a in loaded]
        found = build(*(ops.host_load(stream) for stream in given))
        results = list(found) if isinstance(found, (list, tuple)) else [found]
        stored = [popxl.d2h_stream(t.shape, t.dtype) for t in results]
        for stream, t in zip(stored, results, strict=True):
            ops.host_store(stream, t)
    with popxl.Session(ir, "cpu", devices=min(2, ir.instance_replication_factor)) as session:
        outputs = [run_in_job(session, dict(zip(given, loaded, strict=True))) for _ in range(runs)][-1]
    return [outputs[stream] for stream in stored]


def check(make: Callable[[], Any], tier: str, devices: int, directory: Path) -> None:
    """See ``replica_examples.check``; each process looks at what all have."""
    from replica_examples import assert_equal, check_variables

    def session_of(ir: popxl.Ir, *, reopen: bool) -> popxl.Session:
        memory = "ram" if tier == "ram" else popxl.StreamingMemory(f"file:{directory}", reopen=reopen)
        return popxl.Session(ir, "cpu", devices=min(devices, ir.instance_replication_factor), streaming_memory=memory)

    example = make()
    with session_of(example.ir, reopen=False) as session:
        outputs: dict[Any, Any] = {}
        for _ in range(example.runs):
            outputs = run_in_job(session, example.inputs)
        for stream, expected in example.outputs.items():
            assert_equal(outputs[stream], expected, stream)
        check_variables(session, example.variables)
    check_variables(session, example.variables)
    if tier == "file":
        again = make()
        with session_of(again.ir, reopen=True) as session:
            check_variables(session, again.variables)


# The examples


def parameters(function: Any) -> Iterator[dict[str, Any]]:
    """Each set of values that a test is parametrized with, but for where it runs."""
    choices: list[list[dict[str, Any]]] = []
    for mark in getattr(function, "pytestmark", []):
        if mark.name != "parametrize":
            continue
        names = mark.args[0] if isinstance(mark.args[0], (list, tuple)) else [mark.args[0]]
        if "tier" in names:
            continue
        rows = [value if len(names) > 1 else (value,) for value in mark.args[1]]
        choices.append([dict(zip(names, row, strict=True)) for row in rows])
    for chosen in itertools.product(*choices):
        yield {name: value for each in chosen for name, value in each.items()}


def examples(directory: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """What to run, each with a name; equal in all processes."""
    import test_collectives
    import test_remote_examples
    import test_resident_examples

    test_collectives.run_replicas = run_replicas  # type: ignore[assignment]
    numbers = itertools.count()
    for module, chosen in ((test_remote_examples, REMOTE), (test_resident_examples, RESIDENT)):
        module.check = check
        for name, places in chosen.items():
            function = getattr(module, name)
            for values, (tier, devices) in itertools.product(parameters(function), places):
                given = {**values, "tier": tier, "devices": devices, "tmp_path": directory / str(next(numbers))}
                yield f"{name} {values} {tier} {devices}", lambda f=function, given=given: f(**given)
    for name, row in test_remote_examples.TABLES.items():
        for tier, devices in SOME:
            place = directory / str(next(numbers))
            yield (
                f"who reads what, {name} {tier} {devices}",
                lambda row=row, t=tier, d=devices, p=place: check(test_remote_examples.table(*row), t, d, p),
            )
    for name in COLLECTIVES:
        function = getattr(test_collectives, name)
        assert set(inspect.signature(function).parameters) <= {n for p in parameters(function) for n in p}, name
        for values in parameters(function):
            yield f"{name} {values}", lambda f=function, values=values: f(**values)
    yield "rows at offsets of their own", offsets_of_their_own
    yield "items of several transfers", several_transfers


def offsets_of_their_own() -> None:
    """Replica r reads and writes row (3 r + 1) mod 4, in a sum with r."""
    from popxl import ops

    ir = popxl.Ir(replication=4)
    with ir.main_graph, popxl.in_sequence():
        buffer = popxl.remote_buffer((2,), popxl.int32, 4)
        rows = [popxl.remote_variable(np.full(2, 10 * (k + 1), np.int32), buffer, k, name=f"row{k}") for k in range(4)]
        offsets, numbers = popxl.h2d_stream((), popxl.uint32), popxl.h2d_stream((), popxl.int32)
        out = popxl.d2h_stream((2,), popxl.int32)
        offset = ops.host_load(offsets)
        row = ops.remote_load(buffer, offset)
        ops.host_store(out, row)
        ops.remote_store(buffer, offset, row + ops.host_load(numbers))
    given = {offsets: np.array([1, 0, 3, 2], np.uint32), numbers: np.arange(4, dtype=np.int32)}
    with popxl.Session(ir, "cpu", devices=2) as session:
        first, second = (run_in_job(session, given)[out] for _ in range(2))
        # The host reads the rows of replica 0, which writes zeros more to row 1.
        assert [session.get_tensor_data(v).tolist() for v in rows] == [[10, 10], [20, 20], [30, 30], [40, 40]]
    assert first.tolist() == [[20, 20], [10, 10], [40, 40], [30, 30]]
    assert second.tolist() == [[20, 20], [11, 11], [42, 42], [33, 33]]


def several_transfers() -> None:
    """Item (i, r) is the i-th of replica r, of which each process gives those of its own."""
    from popxl import ops

    for replicas in (2, 4):
        ir = popxl.Ir(replication=replicas)
        ir.num_host_transfers = 3
        with ir.main_graph:
            x, y = popxl.h2d_stream((2,), popxl.float32), popxl.d2h_stream((2,), popxl.float32)
            ops.repeat(ir.create_graph(lambda x=x, y=y: ops.host_store(y, ops.host_load(x) * 2)), 3)
        items = np.arange(6 * replicas, dtype=np.float32).reshape(3, replicas, 2)
        with popxl.Session(ir, "cpu") as session:
            np.testing.assert_array_equal(run_in_job(session, {x: items})[y], items * 2, strict=True)


def main(directory: Path) -> int:
    """Run all; the status is 1 if any process found a difference."""
    warnings.simplefilter("error")
    sys.path[:0] = [str(TESTS / "support"), str(TESTS / "replicas")]
    popxl.Ir = ir_of_job  # type: ignore[assignment,misc]
    count = 0
    for name, run in examples(directory):
        try:
            run()
        except Exception:  # noqa: BLE001 - whatever it is, the test shows it
            print(f"process {os.environ['POPXL_PROCESS_ID']}: {name}\n{traceback.format_exc()}", flush=True)
            return 1  # the others may wait for what this one will not do
        count += 1
    from random_collectives import results

    found = results(run_replicas)
    if Job.from_environment().process_id == 0:
        np.savez(directory / "results.npz", **found)
    # In one write: the processes share a log, and `print` writes the end of the line by itself.
    sys.stdout.write(f"{count} examples\n")
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
