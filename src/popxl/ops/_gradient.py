"""The op that computes an op's gradients, and which forward tensors it needs.

A gradient op takes the gradients of some outputs of its forward op, then the forward tensors that it needs, and
gives the gradients of some inputs. What it needs is found by tracing it: no table is written by hand, and nothing
is asked for that is not used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, cast

from popxl.context import get_current_graph
from popxl.errors import CoreError
from popxl.op import Gradient, Op, OpDefinition, ShapeDtype, as_results
from popxl.ops._define import FLOATS, make_outputs
from popxl.ops._jax import jax, jnp
from popxl.ops.utils import check_in_graph
from popxl.tensor import Tensor

Attributes = tuple[tuple[str, Any], ...]


def differentiable_inputs(op: Op) -> tuple[int, ...]:
    """The inputs of an op that have a gradient."""
    gradient = op.definition.gradient
    if gradient is None or gradient.refusal or not any(t.dtype in FLOATS for t in op.outputs):
        return ()
    candidates = range(len(op.inputs)) if gradient.wrt is None else gradient.wrt
    return tuple(i for i in candidates if i < len(op.inputs) and op.inputs[i].dtype in FLOATS)


def needed_tensors(op: Op, given: Iterable[int], wrt: Iterable[int]) -> tuple[Tensor, ...]:
    """The forward tensors, inputs or outputs of `op`, that its gradient op needs.

    Args:
        op: The forward op.
        given: The outputs whose gradient is given.
        wrt: The inputs whose gradient is wanted.

    Raises:
        CoreError: (a `RuntimeError`) if asking for a gradient of `op` is an error.
    """
    if _checked(op).emit:
        return ()
    saved = _saved(op.definition, _attributes(op), *_specs(op), tuple(given), tuple(wrt))
    return tuple((*op.inputs, *op.outputs)[i] for i in saved)


def add_gradient_op(
    op: Op,
    grads: Mapping[int, Tensor],
    wrt: Sequence[int],
    forward: Callable[[Tensor], Tensor] = lambda t: t,
    names: Sequence[str] | None = None,
) -> tuple[Tensor, ...]:
    """Add the op that computes gradients of `op` to the current graph.

    Args:
        op: The forward op, of this or another graph.
        grads: The gradients of its outputs, by their number. Those of other outputs are zero.
        wrt: The inputs whose gradients are wanted; each must have one.
        forward: Gives the tensor of the current graph that holds the value of a forward tensor.
        names: Names of the gradients.

    Returns:
        The gradients, with the shape and dtype of the inputs.

    Raises:
        CoreError: (a `RuntimeError`) if asking for a gradient of `op` is an error.
    """
    emit = _checked(op).emit
    given, wanted = tuple(grads), tuple(wrt)
    if emit:
        return emit(op, grads, wanted)
    inputs, outputs = _specs(op)
    saved = _saved(op.definition, _attributes(op), inputs, outputs, given, wanted)
    forward_tensors = (*op.inputs, *op.outputs)
    tensors = (*grads.values(), *(forward(forward_tensors[i]) for i in saved))
    graph = get_current_graph()
    check_in_graph(graph, **{f"tensor_{i}": t for i, t in enumerate(tensors)})
    graph.ir.check_open()
    attributes = {
        "of": _attributes(op),
        "inputs": inputs,
        "outputs": outputs,
        "given": given,
        "saved": saved,
        "wrt": wanted,
    }
    made = Op(gradient_definition(op.definition), graph, tensors, attributes, api=op.api)
    names = names or [f"Gradient___{op.inputs[i].name}" for i in wanted]
    make_outputs(made, [inputs[i] for i in wanted], names)
    graph.append(made)
    return made.outputs


def check_not_refused(op: Op) -> None:
    """Check that asking for a gradient of `op` is no error.

    Raises:
        CoreError: (a `RuntimeError`) if it is.
    """
    gradient = op.definition.gradient
    if gradient is not None and gradient.refusal:
        raise CoreError(gradient.refusal, where=op.where, hint="detach its result with popxl.ops.detach")


def _checked(op: Op) -> Gradient:
    gradient = op.definition.gradient
    if gradient is None:
        raise CoreError(f"{op.type} has no gradient.", where=op.where)
    check_not_refused(op)
    return gradient


def _attributes(op: Op) -> Attributes:
    return tuple(op.attributes.items())


def _specs(op: Op) -> tuple[tuple[ShapeDtype, ...], tuple[ShapeDtype, ...]]:
    inputs, outputs = (tuple(ShapeDtype(t.shape, t.dtype) for t in ts) for ts in (op.inputs, op.outputs))
    return inputs, outputs


@lru_cache(maxsize=4096)
def gradient_definition(definition: OpDefinition) -> OpDefinition:
    """The type of the gradient ops of ops of one type. It has a gradient itself, the mathematical one."""

    def infer(*_specs: ShapeDtype, inputs: tuple[ShapeDtype, ...], wrt: tuple[int, ...], **_attributes: Any) -> Any:
        return tuple(inputs[i] for i in wrt)

    return OpDefinition(f"{definition.type}Grad", infer, partial(_lower, definition), gradient=Gradient())


def _lower(
    definition: OpDefinition,
    *arrays: Any,
    of: Attributes,
    inputs: tuple[ShapeDtype, ...],
    outputs: tuple[ShapeDtype, ...],
    given: tuple[int, ...],
    saved: tuple[int, ...],
    wrt: tuple[int, ...],
) -> tuple[Any, ...]:
    # What is not needed, and not given, is zeros: XLA sees that nobody reads them.
    values = [jnp.zeros(s.shape, s.dtype.storage) for s in (*inputs, *outputs)]
    for i, array in zip(saved, arrays[len(given) :], strict=True):
        values[i] = array
    grads = [jnp.zeros(s.shape, s.dtype.storage) if s.dtype in FLOATS else None for s in outputs]
    for i, array in zip(given, arrays, strict=False):
        grads[i] = array
    ins, outs = values[: len(inputs)], values[len(inputs) :]
    gradient = definition.gradient
    assert gradient is not None
    if gradient.rule is None:
        found = _transposed(definition, grads, ins, wrt, dict(of))
    else:
        results = gradient.rule(grads, ins, outs, **dict(of))
        found = [results[i] for i in wrt]
    return tuple(g.astype(inputs[i].dtype.storage) for i, g in zip(wrt, found, strict=True))


def _transposed(
    definition: OpDefinition, grads: Sequence[Any], inputs: Sequence[Any], wrt: Sequence[int], attributes: Any
) -> Sequence[Any]:
    """The gradients by transposing the lowering's derivative."""
    lower = definition.lower
    assert lower is not None

    def of_wanted(*wanted: Any) -> tuple[Any, ...]:
        arguments = list(inputs)
        for i, array in zip(wrt, wanted, strict=True):
            arguments[i] = array
        results = as_results(lower(*arguments, **attributes))
        return tuple(r for r, g in zip(results, grads, strict=False) if g is not None)

    _, pull = cast("tuple[Any, Any]", jax.vjp(of_wanted, *(inputs[i] for i in wrt)))
    return pull(tuple(g for g in grads if g is not None))


@lru_cache(maxsize=16384)
def _saved(
    definition: OpDefinition,
    attributes: Attributes,
    inputs: tuple[ShapeDtype, ...],
    outputs: tuple[ShapeDtype, ...],
    given: tuple[int, ...],
    wrt: tuple[int, ...],
) -> tuple[int, ...]:
    """The numbers of the forward tensors, inputs before outputs, that the gradients depend on."""
    specs = (*inputs, *outputs)
    everything = partial(
        _lower,
        definition,
        of=attributes,
        inputs=inputs,
        outputs=outputs,
        given=given,
        saved=tuple(range(len(specs))),
        wrt=wrt,
    )
    arrays = [jax.ShapeDtypeStruct(s.shape, s.dtype.storage) for s in (*(outputs[i] for i in given), *specs)]
    with jax.enable_x64(True):
        traced: Any = jax.make_jaxpr(everything)(*arrays)
    used = _used_inputs(traced.jaxpr, [True] * len(wrt))
    return tuple(i for i, is_used in enumerate(used[len(given) :]) if is_used)


def _used_inputs(jaxpr: Any, wanted: Sequence[bool]) -> list[bool]:
    """Which inputs of a traced function the wanted outputs depend on."""
    needed = {v for v, w in zip(jaxpr.outvars, wanted, strict=True) if w and _is_variable(v)}
    for equation in reversed(jaxpr.eqns):
        results = [v in needed for v in equation.outvars]
        if any(results):
            inner = _called(equation)
            used = _used_inputs(inner, results) if inner else [True] * len(equation.invars)
            needed |= {v for v, u in zip(equation.invars, used, strict=True) if u and _is_variable(v)}
    return [v in needed for v in jaxpr.invars]


def _is_variable(atom: Any) -> bool:
    return not hasattr(atom, "val")


def _called(equation: Any) -> Any:
    """The function that an equation calls once with its own inputs; None for loops, branches and primitives."""
    closed = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
    inner = getattr(closed, "jaxpr", closed)
    fits = inner is not None and len(inner.invars) == len(equation.invars) and equation.primitive.name != "scan"
    return inner if fits else None
