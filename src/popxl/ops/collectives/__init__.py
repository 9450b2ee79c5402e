"""Ops that exchange values, across replicas or across the IPUs of one (spec ``collectives.md``)."""

from popxl.ops.collectives.across_ipus import (
    all_reduce,
    all_reduce_identical_grad_inputs,
    all_reduce_identical_inputs,
)
from popxl.ops.collectives.collectives import CommGroup, CommGroupType
from popxl.ops.collectives.gathering import replica_sharded_slice, replicated_all_gather, replicated_slice
from popxl.ops.collectives.reductions import (
    replicated_all_reduce,
    replicated_all_reduce_,
    replicated_reduce_scatter,
)

__all__ = [
    "CommGroup",
    "CommGroupType",
    "all_reduce",
    "all_reduce_identical_grad_inputs",
    "all_reduce_identical_inputs",
    "replica_sharded_slice",
    "replicated_all_gather",
    "replicated_all_reduce",
    "replicated_all_reduce_",
    "replicated_reduce_scatter",
    "replicated_slice",
]
