"""Graphs in, plan out. Pure data and pure functions: no arrays, no device, no JAX."""

from popxl.plan.planner import plan_program
from popxl.plan.steps import GraphPlan

__all__ = ["GraphPlan", "plan_program"]
