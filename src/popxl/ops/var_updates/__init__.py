"""Updates of variables in place (spec ``ops-updates.md``)."""

from popxl.ops.var_updates import utils
from popxl.ops.var_updates.accumulate import (
    accumulate_,
    accumulate_mean_,
    accumulate_moving_average_,
    accumulate_moving_average_square_,
    accumulate_square_,
)
from popxl.ops.var_updates.copying import copy_var_update_
from popxl.ops.var_updates.scale import accumulator_scale_, accumulator_zero_
from popxl.ops.var_updates.sparse import sparse_accumulate_
from popxl.ops.var_updates.trust_ratio import adam_var_update
from popxl.ops.var_updates.updaters import adam_updater, adamax_updater, lamb_updater

__all__ = [
    "accumulate_",
    "accumulate_mean_",
    "accumulate_moving_average_",
    "accumulate_moving_average_square_",
    "accumulate_square_",
    "accumulator_scale_",
    "accumulator_zero_",
    "adam_updater",
    "adam_var_update",
    "adamax_updater",
    "copy_var_update_",
    "lamb_updater",
    "sparse_accumulate_",
    "utils",
]
