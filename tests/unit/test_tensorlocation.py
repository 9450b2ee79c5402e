"""Where tensors live: tensors-dtypes.md sections 5.1 and 7."""

from __future__ import annotations

import pytest

from popxl.tensorlocation import (
    ExecutionContext,
    LocationInfo,
    ReplicatedTensorSharding,
    TensorLocation,
    TensorStorage,
    TileSet,
)


@pytest.mark.parametrize(
    ("enum", "values"), [(TensorStorage, ["OnChip", "OffChip"]), (ReplicatedTensorSharding, ["On", "Off"])]
)
def test_location_enums_have_their_names_as_values(enum, values):
    assert [(member.name, member.value) for member in enum] == [(value, value) for value in values]


@pytest.mark.parametrize(
    ("enum", "names"),
    [
        (TileSet, "Compute IO Undefined N"),
        (
            ExecutionContext,
            """
            Normal AccumulateOuterFragment WeightsFromHostFragment WeightsToHostFragment OptimizerFromHostFragment
            Subgraph
            """,
        ),
    ],
)
def test_enum_members_are_distinct(enum, names):
    assert [member.name for member in enum] == names.split()


def test_location_defaults_to_on_chip_and_unsharded():
    location = TensorLocation()
    assert location.storage is TensorStorage.OnChip
    assert location.replicated_tensor_sharding is ReplicatedTensorSharding.Off


def test_location_keeps_what_it_is_given():
    location = TensorLocation(TensorStorage.OffChip, ReplicatedTensorSharding.On)
    assert location.storage is TensorStorage.OffChip
    assert location.replicated_tensor_sharding is ReplicatedTensorSharding.On


@pytest.mark.parametrize("attribute", ["storage", "replicated_tensor_sharding"])
def test_location_is_read_only(attribute):
    with pytest.raises(AttributeError):
        setattr(TensorLocation(), attribute, None)


def test_location_repr_is_one_line():
    assert repr(TensorLocation()) == (
        "TensorLocation(storage=TensorStorage.OnChip, replicated_tensor_sharding=ReplicatedTensorSharding.Off)"
    )


def test_info_of_an_on_device_tensor_has_both_flags_off():
    info = LocationInfo()
    assert (info.isRemote(), info.isSharded(), info.getRemoteBufferInfo()) == (False, False, (-1, -1))


def test_info_keeps_what_it_is_given():
    info = LocationInfo(remote=True, sharded=True, buffer=(2, 5))
    assert (info.isRemote(), info.isSharded(), info.getRemoteBufferInfo()) == (True, True, (2, 5))


def test_info_takes_another_buffer_and_keeps_its_flags():
    info = LocationInfo(sharded=True)
    info.setRemoteBufferInfo(7, 1)
    assert repr(info) == "LocationInfo(remote=False, sharded=True, buffer=(7, 1))"
