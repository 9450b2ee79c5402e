"""A compiled program: what a session runs, and an estimate looks at."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from popxl.errors import CoreError
from popxl.ir import Ir
from popxl.plan import GraphPlan, plan_program
from popxl.plan.memory import Figures, check_fits, figures, possible_changes
from popxl.plan.steps import Segment
from popxl.plan.validate import check_inplacing, check_program
from popxl.runtime.compiler import Executable, compile_plan
from popxl.runtime.device_weights import remote_buffers
from popxl.runtime.memory_limits import MemoryLimits
from popxl.runtime.placement import Placement
from popxl.runtime.streaming import StreamingMemory
from popxl.runtime.streaming.tier import Tier


@dataclass(frozen=True, slots=True)
class Compiled:
    """A compiled program, and what it may use.

    Attributes:
        ir: The program.
        plan: Its plan.
        executables: The executable of each segment, by its key.
        placement: The devices.
        limits: How much memory it may take.
        tier: Where its rows lie.
        figures: What it needs.
    """

    ir: Ir
    plan: GraphPlan
    executables: Mapping[Hashable, Executable]
    placement: Placement
    limits: MemoryLimits
    tier: Tier
    figures: Figures


def compile_program(
    ir: Ir, placement: Placement, memory: StreamingMemory, device_bytes: int | None, *, check_ambiguity: bool = False
) -> Compiled:
    """Check a program, let nobody change it any more, plan it, compile it, and see whether it fits.

    Args:
        ir: The program.
        placement: The devices.
        memory: Where its rows lie.
        device_bytes: The user's limit for the device; None for none.
        check_ambiguity: Whether to refuse in-place ops that nothing orders.

    Raises:
        CoreError: (a `RuntimeError`) for a program without ops, or an ambiguous one if asked to check.
        PopxlError: for what else cannot run; see `popxl.plan.validate.check_program`.
        OutOfMemoryError: (a `MemoryError`) if it needs more than `device_bytes`, or its largest row more than the host
            memory of `memory`.
    """
    if not ir.main_graph.ops:
        raise CoreError(f"{ir!r} has no graphs with ops to run.", hint="add ops inside `with ir.main_graph:`")
    check_program(ir)
    if check_ambiguity:
        check_inplacing(ir)
    ir.seal()
    ir.dot_final()
    plan = plan_program(ir, placement.device_count, has_stages=placement.has_stages)
    executables = compile_plan(plan, placement, ir.cache_directory)

    def temporary_bytes(segment: Segment) -> int:
        return executables[segment.key].temporary_bytes

    needed = figures(plan, ir, temporary_bytes)
    check_fits(needed.device, device_bytes, possible_changes(plan, ir, temporary_bytes))
    limits = MemoryLimits.choose(
        remote_buffers(ir, plan.replicas),
        needed.device.peak_bytes,
        device_bytes,
        memory.host_bytes,
        has_stores=needed.store_bytes > 0,
        copy_bytes=memory.tier.copy_bytes,
        fixed_bytes=needed.device.fixed_bytes,
    )
    return Compiled(ir, plan, executables, placement, limits, memory.tier, needed)
