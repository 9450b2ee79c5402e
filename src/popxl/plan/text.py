"""A text form of plans: ``print(session.plan)``."""

from __future__ import annotations

from popxl.op import Op
from popxl.plan.steps import (
    Branch,
    Call,
    Check,
    Compute,
    Evaluate,
    Free,
    GraphPlan,
    HostLoad,
    HostStore,
    Loop,
    Print,
    RemoteLoad,
    RemoteStore,
    Step,
    called_plans,
)


def plan_text(plan: GraphPlan) -> str:
    """Return the steps of a plan, and of the plans it calls, one line each; ``%n`` is slot n."""
    lines: list[str] = []
    seen: set[int] = set()
    stack = [plan]
    while stack:
        current = stack.pop()
        if id(current) in seen:
            continue
        seen.add(id(current))
        lines.append(f"plan {current.name or 'main'}({_slots(current.inputs)}) -> ({_slots(current.outputs)}) {{")
        lines += [f"  {_step_text(step)}" for step in current.steps]
        lines.append("}")
        stack += [body for step in reversed(current.steps) for body in reversed(called_plans(step))]
    return "\n".join(lines)


def _slots(slots: tuple[int, ...]) -> str:
    return ", ".join(f"%{s}" if s >= 0 else "_" for s in slots)


def _step_text(step: Step) -> str:
    match step:
        case Compute():
            ops = ", ".join(item.type if isinstance(item, Op) else "Assign" for item in step.segment.items) or "read"
            donated = "".join(f" overwrites %{step.inputs[i]}" for i in step.segment.donated)
            return f"{_slots(step.outputs)} = compute({_slots(step.inputs)}) [{ops}]{donated}"
        case Evaluate():
            return f"%{step.output} = on host {step.op.type}({_slots(step.inputs)})"
        case HostLoad():
            return f"%{step.output} = host load {step.op.attributes['stream'].tensor_id}"
        case HostStore():
            return f"host store {step.op.attributes['stream'].tensor_id}, %{step.input}"
        case Print():
            return f"%{step.output} = print %{step.input}"
        case Check():
            return f"check %{step.input}"
        case RemoteLoad():
            return f"%{step.output} = load buffer {step.buffer_id}[%{step.offset}]{_waits(step.waits)}"
        case RemoteStore():
            return f"store buffer {step.buffer_id}[%{step.offset}], %{step.input}{_waits(step.waits)}"
        case Call():
            return _call_text("call", step)
        case Loop():
            return _call_text(f"repeat {step.count} x", step.call)
        case Branch():
            then_text, else_text = _call_text("call", step.then_call), _call_text("call", step.else_call)
            return f"if %{step.condition}{_waits(step.waits)}: {then_text}; else: {else_text}"
        case Free():
            return f"free {_slots(step.slots)}"


def _call_text(verb: str, call: Call) -> str:
    back = "".join(f", %{slot} <- input {position}" for position, slot in call.written_back)
    return f"{_slots(call.outputs)} = {verb} {call.body.name}({_slots(call.inputs)}){back}"


def _waits(waits: bool) -> str:
    return " (waits for the device)" if waits else ""
