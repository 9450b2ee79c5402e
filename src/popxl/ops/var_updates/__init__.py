"""Updates of variables in place (spec ``ops-updates.md``)."""

from popxl.ops.var_updates.accumulate import accumulate_, copy_var_update_

__all__ = ["accumulate_", "copy_var_update_"]
