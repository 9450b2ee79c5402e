"""How much memory a session's transfers and unfinished computations may take, from the user's budgets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from popxl.errors import OutOfMemoryError
from popxl.runtime.streaming.tier import BufferSpec
from popxl.units import format_bytes

_SMALLEST_POOL_BYTES = 64 << 20
_TIMES = 4


@dataclass(frozen=True, slots=True)
class MemoryLimits:
    """Limits in bytes.

    Attributes:
        pool_bytes: Blocks that rows are read into, besides those that the program holds.
        cache_bytes: Rows that are kept although the program is done with them.
        write_bytes: Values that wait to be written.
        slack_bytes: What computations under way may take beyond the plan's peak; None for no limit.
        copy_bytes: What the tier copies rows to which it cannot store from where they lie.
        lent_bytes: Rows that the program has, kept ones included; None for no limit.
    """

    pool_bytes: int
    cache_bytes: int
    write_bytes: int
    slack_bytes: int | None
    copy_bytes: int = 0
    lent_bytes: int | None = None

    @classmethod
    def choose(
        cls,
        buffers: Iterable[BufferSpec],
        peak_bytes: int,
        device_bytes: int | None,
        host_bytes: int | None,
        *,
        has_stores: bool = True,
        copy_bytes: int = 0,
        fixed_bytes: int = 0,
    ) -> MemoryLimits:
        """Divide what there is.

        Args:
            buffers: The program's remote buffers.
            peak_bytes: Device memory of the plan at its peak.
            device_bytes: The user's limit for the device, at least the peak; None for none.
            host_bytes: The user's limit for host memory of Streaming Memory; None for none.
            has_stores: Whether a run stores anything; between runs nothing else needs the device's memory.
            copy_bytes: What the tier may take for copies of rows that are stored.
            fixed_bytes: Device memory of what lies there all the time.

        Raises:
            OutOfMemoryError: No row fits.
        """
        rows = [spec.padded_bytes for spec in buffers]
        largest = max(rows, default=0)
        if host_bytes is not None and host_bytes < largest:
            raise OutOfMemoryError(
                f"Streaming Memory may take {format_bytes(host_bytes)} of host memory, and the largest row of a remote "
                f"buffer has {format_bytes(largest)}.",
                hint=f"allow at least {format_bytes(2 * largest)}: one row is read while another is used",
            )
        # A few times what a layer loads, which is a row of each buffer unless there are very many buffers.
        usual = max(_SMALLEST_POOL_BYTES, _TIMES * largest, min(_TIMES * sum(rows), 3 * peak_bytes))
        slack = max(peak_bytes // 2, _SMALLEST_POOL_BYTES) if device_bytes is None else device_bytes - peak_bytes
        # Values that wait to be written are memory of the device which the plan has let go of.
        write_bytes = usual if device_bytes is None else min(usual, slack // 2)
        slack_bytes = slack if device_bytes is None or not has_stores else slack - write_bytes
        copy_bytes = copy_bytes if has_stores else 0
        rows_bytes = None if device_bytes is None else device_bytes - fixed_bytes
        if host_bytes is None:
            return cls(usual, 0, write_bytes, slack_bytes, copy_bytes, rows_bytes)
        # The tier's copies come out of the user's budget, unless that is too small for rows on their way besides.
        room = max(host_bytes - copy_bytes, min(host_bytes, _TIMES * largest))
        pool_bytes = min(usual, room)
        cache_bytes = room - pool_bytes
        lent_bytes = None if rows_bytes is None else rows_bytes + cache_bytes
        return cls(pool_bytes, cache_bytes, write_bytes, slack_bytes, copy_bytes, lent_bytes)
