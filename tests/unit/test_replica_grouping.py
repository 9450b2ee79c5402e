"""Replica groupings: tensors-dtypes.md section 8."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from popxl.errors import PopxlError
from popxl.replica_grouping import ReplicaGrouping

IR = "ir"


def grouping(num_replicas: int, stride: int = 1, group_size: int | None = None) -> ReplicaGrouping:
    return ReplicaGrouping._from_stride(IR, num_replicas, stride, group_size)


def assigned(text: str) -> ReplicaGrouping:
    """The grouping with the assignment written in `text`."""
    assignment = [int(group) for group in text.split()]
    return ReplicaGrouping._from_assignment(IR, assignment, len(assignment))


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split()]


@st.composite
def strided(draw) -> ReplicaGrouping:
    stride, group_size, blocks = draw(st.integers(1, 6)), draw(st.integers(1, 6)), draw(st.integers(1, 4))
    return grouping(stride * group_size * blocks, stride, group_size)


@st.composite
def assignments(draw) -> list[int]:
    """An equal partition, numbered by first appearance."""
    num_groups, group_size = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    shuffled = draw(st.permutations([group for group in range(num_groups) for _ in range(group_size)]))
    order = list(dict.fromkeys(shuffled))
    return [order.index(group) for group in shuffled]


@st.composite
def run_assignments(draw) -> list[int]:
    """As `assignments`, built of runs with one stride, so that finer constant-stride groupings exist."""
    stride, run, columns, runs = (draw(st.integers(1, 4)) for _ in range(4))
    pieces = draw(st.permutations([group for group in range(columns * stride) for _ in range(runs)]))
    out: list[int] = []
    for block in range(columns * runs):
        out += pieces[block * stride : (block + 1) * stride] * run
    order = list(dict.fromkeys(out))
    return [order.index(group) for group in out]


groupings = st.one_of(
    strided(),
    st.one_of(assignments(), run_assignments()).map(lambda a: ReplicaGrouping._from_assignment(IR, a, len(a))),
)


def all_partitions(num_replicas: int, group_size: int):
    """Every equal partition, numbered by first appearance."""

    def extend(prefix: list[int]):
        if len(prefix) == num_replicas:
            yield prefix
            return
        for group in range(max(prefix, default=-1) + 2):
            if prefix.count(group) < group_size and group < num_replicas // group_size:
                yield from extend([*prefix, group])

    return extend([])


# ---------------------------------------------------------------- construction


@pytest.mark.parametrize("arguments", [(), (8, 1)])
def test_direct_construction_raises(arguments):
    with pytest.raises(RuntimeError, match=r"Cannot create a popxl\.ReplicaGrouping"):
        ReplicaGrouping(*arguments)


@pytest.mark.parametrize(
    ("num_replicas", "stride", "group_size", "assignment", "num_groups"),
    [
        (8, 1, None, "0 0 0 0 0 0 0 0", 1),
        (8, 1, 1, "0 1 2 3 4 5 6 7", 8),
        (8, 1, 2, "0 0 1 1 2 2 3 3", 4),
        (8, 1, 4, "0 0 0 0 1 1 1 1", 2),
        (8, 2, None, "0 1 0 1 0 1 0 1", 2),
        (8, 2, 2, "0 1 0 1 2 3 2 3", 4),
        (8, 4, None, "0 1 2 3 0 1 2 3", 4),
        (8, 8, None, "0 1 2 3 4 5 6 7", 8),
        (12, 2, 3, "0 1 0 1 0 1 2 3 2 3 2 3", 4),
        (16, 4, 4, "0 1 2 3 " * 4, 4),
        (1, 1, None, "0", 1),
    ],
)
def test_stride_gives_the_assignment_of_the_table(num_replicas, stride, group_size, assignment, num_groups):
    rg = grouping(num_replicas, stride, group_size)
    assert rg.assignment == numbers(assignment)
    assert rg.num_groups == num_groups
    assert rg.group_size == num_replicas // num_groups
    assert rg.is_const


@pytest.mark.parametrize(("stride", "group_size"), [(8, None), (4, 1)])
def test_groups_of_one_have_stride_one(stride, group_size):
    assert grouping(8, stride, group_size).stride == 1


@pytest.mark.parametrize(
    ("stride", "group_size"),
    [(0, None), (-1, None), (9, None), (3, None), (1, 0), (1, -2), (1, 9), (1, 3), (2, 3), (4, 4), (3, 1)],
)
def test_stride_that_does_not_fit_raises_value_error_with_a_hint(stride, group_size):
    with pytest.raises(ValueError, match=r"(?s)replica_grouping\(stride=.*Hint: "):
        grouping(8, stride, group_size)


@given(strided())
def test_closed_forms_describe_the_groups(rg):
    stride, size = rg.stride, rg.group_size
    for group, members in enumerate(rg.members):
        first = (group // stride) * stride * size + group % stride
        assert members == [first + i * stride for i in range(size)]
        assert [(r // stride) % size for r in members] == list(range(size))


# ---------------------------------------------------------------- from assignments


@pytest.mark.parametrize(
    ("text", "stride", "group_size"),
    [
        ("0 0 0 0", 1, 4),
        ("0 1 0 1 2 3 2 3", 2, 2),
        ("0 1 2 3 0 1 2 3", 4, 2),
        ("0 1 2 3", 1, 1),
        ("0", 1, 1),
    ],
)
def test_assignment_with_equal_gaps_is_the_equivalent_stride(text, stride, group_size):
    assert assigned(text) == grouping(len(text.split()), stride, group_size)
    assert assigned(text).stride == stride


def test_assignment_with_different_gaps_has_no_stride():
    rg = assigned("0 0 1 1 0 0 1 1")
    assert not rg.is_const
    assert (rg.num_groups, rg.group_size) == (2, 4)
    with pytest.raises(NotImplementedError, match="has no stride"):
        _ = rg.stride


@pytest.mark.parametrize(
    ("assignment", "num_replicas", "message"),
    [
        ([0, 0, 0, 1], 4, r"The groups have \[3, 1\] members"),
        ([0, 0, 2, 2], 4, r"numbered \[0, 2\]"),
        ([1, 1, 2, 2], 4, r"numbered \[1, 2\]"),
        ([-1, -1, 0, 0], 4, r"numbered \[-1, 0\]"),
        ([1, 1, 0, 0], 4, r"(?s)order \[1, 0\].*Hint: number them in that order: \[0, 0, 1, 1\]"),
        ([0, 1, 0, 1], 8, "4 entries for 8 replicas"),
        ([], 2, "0 entries for 2 replicas"),
    ],
)
def test_assignment_that_is_no_numbered_equal_partition_raises_value_error(assignment, num_replicas, message):
    with pytest.raises(ValueError, match=message):
        ReplicaGrouping._from_assignment(IR, assignment, num_replicas)


def test_sizes_are_python_ints_for_a_numpy_assignment():
    rg = ReplicaGrouping._from_assignment(IR, np.array([0, 1, 0, 1]), 4)
    assert {type(n) for n in (rg.stride, rg.group_size, rg.num_groups, *rg.assignment)} == {int}


@given(assignments())
def test_assignment_is_kept(assignment):
    assert ReplicaGrouping._from_assignment(IR, assignment, len(assignment)).assignment == assignment


@given(strided())
def test_assignment_of_a_strided_grouping_gives_it_back(rg):
    again = ReplicaGrouping._from_assignment(IR, rg.assignment, len(rg.assignment))
    assert again.is_const
    assert repr(again) == repr(rg)


@given(groupings)
def test_groups_partition_the_replicas_equally(rg):
    assert sorted(itertools.chain(*rg.members)) == list(range(len(rg.assignment)))
    assert {len(group) for group in rg.members} == {rg.group_size}
    assert len(rg.members) == rg.num_groups


# ---------------------------------------------------------------- transpose


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ((8, 1, 1), (8, 1, 8)),
        ((8, 1, 8), (8, 1, 1)),
        ((8, 1, 2), (8, 2, 4)),
        ((8, 1, 4), (8, 4, 2)),
        ((16, 1, 4), (16, 4, 4)),
        ((16, 2, 8), (16, 1, 2)),
        ((16, 8, 2), (16, 1, 8)),
    ],
)
def test_transpose_of_a_strided_grouping_is_that_of_the_table(before, after):
    assert grouping(*before).transpose() == grouping(*after)


@pytest.mark.parametrize(
    ("before", "after", "is_const"),
    [
        ("0 1 0 1 2 3 2 3", "0 0 1 1 0 0 1 1", False),
        ("0 0 1 1 0 0 1 1", "0 1 0 1 2 3 2 3", True),
        ("0 1 0 1 0 1 2 3 2 3 2 3", "0 0 1 1 2 2 0 0 1 1 2 2", False),
    ],
)
def test_transpose_by_assignment_is_that_of_the_table(before, after, is_const):
    transposed = assigned(before).transpose()
    assert transposed.assignment == numbers(after)
    assert transposed.is_const is is_const


@given(groupings)
def test_transpose_gathers_the_ith_members(rg):
    assert rg.transpose().members == [sorted(column) for column in zip(*rg.members, strict=True)]


@given(groupings)
def test_group_and_transposed_group_meet_in_one_replica(rg):
    pairs = zip(rg.assignment, rg.transpose().assignment, strict=True)
    assert len(set(pairs)) == len(rg.assignment)


# ---------------------------------------------------------------- const_rg and the maps


@pytest.mark.parametrize(
    ("text", "const", "to_device", "to_host"),
    [
        ("0 0 1 1 0 0 1 1", "0 0 1 1 2 2 3 3", "0 1 0 1", "0 1"),
        ("0 1 1 0 0 1 1 0", "0 1 2 3 4 5 6 7", "0 1 1 0 0 1 1 0", "0 1"),
        ("0 1 2 3 1 2 3 0", "0 1 2 3 4 5 6 7", "0 1 2 3 1 2 3 0", "0 1 2 3"),
        (
            "0 0 1 1 0 0 0 1 1 1 0 0 0 1 1 1",
            "0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15",
            "0 0 1 1 0 0 0 1 1 1 0 0 0 1 1 1",
            "0 2",
        ),
    ],
)
def test_const_rg_and_maps_are_those_of_the_table(text, const, to_device, to_host):
    rg = assigned(text)
    assert rg.const_rg.assignment == numbers(const)
    assert rg.to_device_map == numbers(to_device)
    assert rg.to_host_map == numbers(to_host)


def test_strided_grouping_is_its_own_const_rg_and_has_no_maps():
    rg = grouping(8, 2)
    assert rg.const_rg is rg
    assert rg.to_device_map is None
    assert rg.to_host_map is None


def assert_refines(rg: ReplicaGrouping) -> None:
    const = rg.const_rg
    assert const.is_const
    owners = rg.assignment
    assert all(len({owners[replica] for replica in group}) == 1 for group in const.members)
    if not rg.is_const:
        assert rg.to_device_map == [owners[group[0]] for group in const.members]
        assert rg.to_host_map == [rg.to_device_map.index(group) for group in range(rg.num_groups)]


@given(groupings)
def test_const_rg_refines_the_grouping(rg):
    assert_refines(rg)


@pytest.mark.parametrize(
    ("num_replicas", "group_size"), [(r, g) for r in range(1, 10) for g in range(1, r + 1) if r % g == 0]
)
def test_const_rg_refines_every_grouping_of_few_replicas(num_replicas, group_size):
    for assignment in all_partitions(num_replicas, group_size):
        assert_refines(ReplicaGrouping._from_assignment(IR, assignment, num_replicas))


@given(groupings)
def test_upload_by_the_map_gives_each_replica_its_group_and_reading_undoes_it(rg):
    host = np.arange(rg.num_groups)
    stored = host if rg.to_device_map is None else host[rg.to_device_map]
    assert stored[rg.const_rg.assignment].tolist() == rg.assignment
    assert (stored if rg.to_host_map is None else stored[rg.to_host_map]).tolist() == host.tolist()


# ---------------------------------------------------------------- comparison and text


def test_groupings_are_equal_with_the_same_ir_and_assignment():
    assert grouping(8, 8) == grouping(8, 1, 1)
    assert grouping(8, 2) != grouping(8, 4)
    assert grouping(8, 2) != ReplicaGrouping._from_stride("other ir", 8, 2)


@pytest.mark.parametrize("other", [None, [0, 0], "rg"])
def test_comparison_with_another_type_raises_type_error(other):
    with pytest.raises(TypeError, match="Cannot compare a ReplicaGrouping"):
        _ = grouping(2) == other


def test_grouping_is_unhashable():
    with pytest.raises(TypeError, match="unhashable"):
        hash(grouping(2))


def test_returned_lists_are_copies():
    rg = grouping(4, 2)
    rg.assignment.clear()
    rg.members[0].clear()
    assert rg.assignment == [0, 1, 0, 1]
    assert rg.members == [[0, 2], [1, 3]]


def test_repr_of_a_strided_grouping_has_its_numbers():
    assert repr(grouping(8, 2)) == "ReplicaGrouping(num_replicas=8, stride=2, group_size=4, num_groups=2)"


def test_repr_without_a_stride_has_the_assignment():
    assert repr(assigned("0 0 1 1 0 0 1 1")) == "ReplicaGrouping(assignment=[0, 0, 1, 1, 0, 0, 1, 1])"


def test_errors_are_popxl_errors_too():
    with pytest.raises(PopxlError):
        grouping(8, 3)
