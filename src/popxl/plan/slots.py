"""What steps do with the slots of a frame: for those who walk a plan, with values, numbers or sizes in the slots."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from popxl.plan.steps import (
    Branch,
    Call,
    Check,
    Compute,
    HostLoad,
    HostStore,
    Loop,
    Print,
    RemoteLoad,
    RemoteStore,
    Step,
)


def pass_arguments(inner: list[Any], call: Call, values: Iterable[Any]) -> None:
    """Give the body of a call its arguments."""
    for slot, value in zip(call.body.inputs, values, strict=True):
        inner[slot] = value


def take_outputs(frame: list[Any], call: Call, values: Sequence[Any]) -> None:
    """Give the caller what a body has returned, as far as it wants it."""
    for slot, value in zip(call.outputs, values, strict=True):
        if slot >= 0:
            frame[slot] = value


def used_slots(step: Step) -> list[int]:
    """The slots that a step reads or writes."""
    match step:
        case Compute():
            return [*step.inputs, *step.outputs]
        case HostStore() | Check():
            return [step.input]
        case Print():
            return [step.input, step.output]
        case HostLoad():
            return [step.output]
        case RemoteLoad():
            return [step.offset, step.output]
        case RemoteStore():
            return [step.offset, step.input]
        case Call():
            return [*step.inputs, *step.outputs, *(slot for _, slot in step.written_back)]
        case Loop():
            return used_slots(step.call)
        case Branch():
            return [step.condition, *used_slots(step.then_call), *used_slots(step.else_call)]
        case _:
            return []


def written_slots(step: Step) -> set[int]:
    """The slots that get a new value."""
    match step:
        case Compute():
            return set(step.outputs)
        case Call():
            return {*step.outputs, *(slot for _, slot in step.written_back)}
        case Loop():
            return written_slots(step.call)
        case Branch():
            return written_slots(step.then_call) | written_slots(step.else_call)
        case _:
            return set()
