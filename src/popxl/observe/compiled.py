"""A compiled program, as an estimate looks at it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass

from popxl.ir import Ir
from popxl.plan.memory import Figures
from popxl.plan.steps import GraphPlan
from popxl.runtime.compiler import Executable
from popxl.runtime.memory_limits import MemoryLimits
from popxl.runtime.placement import Placement
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
