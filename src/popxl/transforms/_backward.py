"""Building one gradient graph: a walk over the forward graph's ops, last to first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from popxl.context import no_name_scopes
from popxl.creation import constant
from popxl.graph import Graph
from popxl.graph_function import graph_input, graph_output
from popxl.op import Control, Op, ShapeDtype
from popxl.ops._define import FLOATS, add_output, clone
from popxl.ops._gradient import add_gradient_op
from popxl.ops.addition import add_up
from popxl.tensor import Constant, Tensor
from popxl.transforms._paths import Infos, check_repeatable, depending_on, inputs_with_gradient
from popxl.transforms.grad_info import ExpectedConnection, ExpectedConnectionType, GradGraphInfo

Grads = Mapping[int, Tensor]
Rule = Callable[["Backward", Op, Grads, "Sequence[int]"], "Sequence[Tensor]"]


class Backward:
    """A gradient graph being built. Each required tensor must lead to a provided one.

    Args:
        forward: The graph to differentiate.
        provided: Its tensors whose gradients will be given.
        called: The gradient graphs of the graphs that it calls.
        rules: How ops that call graphs are differentiated.
    """

    def __init__(
        self,
        forward: Graph,
        provided: Sequence[Tensor],
        called: Infos,
        rules: Mapping[Control, Rule],
    ) -> None:
        self.forward = forward
        self.provided = provided
        self.called = called
        self.rules = rules
        self.graph = forward.ir.create_derived_graph(f"{forward.id}_bwd")
        #: Where outputs cannot be added to the forward graph, its intermediate values are computed again.
        self.recomputes = any(site.definition.control is not Control.CALL for site in forward.call_sites)
        self._grads: dict[Tensor, list[Tensor]] = {}
        self._totals: dict[Tensor, Tensor] = {}
        self._values: dict[Tensor, Tensor] = {}
        self._forward_inputs: dict[Tensor, Tensor] = {}

    def build(self, required: Sequence[Tensor]) -> GradGraphInfo:
        """Build the graph of the gradients of `required`."""
        with no_name_scopes(), self.graph:
            for t in self.provided:
                g = graph_input(t.shape, t.dtype, f"Gradient___{t.name}")
                if t.dtype in FLOATS:
                    self._grads.setdefault(t, []).append(g)
            self._walk(depending_on(self.forward, required, self.called))
            for t in required:
                graph_output(self.total(t))
        stashed = sorted(self._forward_inputs, key=lambda t: t.id)
        self.graph.reorder_inputs(
            [*self.graph.inputs[: len(self.provided)], *(self._forward_inputs[t] for t in stashed)]
        )
        known = {*self.forward.inputs, *self.forward.outputs}
        for t in stashed:
            if t not in known:
                _append_output(self.forward, t)
        grad, value = ExpectedConnectionType.FwdGrad, ExpectedConnectionType.Fwd
        inputs = [(t, grad) for t in self.provided] + [(t, value) for t in stashed]
        return GradGraphInfo._create(  # pyright: ignore[reportPrivateUsage]
            self.graph,
            self.forward,
            [ExpectedConnection._create(t, kind) for t, kind in inputs],  # pyright: ignore[reportPrivateUsage]
            [ExpectedConnection._create(t, grad) for t in required],  # pyright: ignore[reportPrivateUsage]
        )

    def _walk(self, active: set[Tensor]) -> None:
        for op in reversed(self.forward.ops):
            given = [k for k, t in enumerate(op.outputs) if t in self._grads]
            wrt = [i for i in inputs_with_gradient(op, self.called) if op.inputs[i] in active]
            if not given or not wrt:
                continue
            grads = {k: self.total(op.outputs[k]) for k in given}
            control = op.definition.control
            if control is None:
                names = [f"Partial___{op.inputs[i].name}" for i in wrt]
                found = add_gradient_op(op, grads, wrt, self.value, names)
            else:
                found = self.rules[control](self, op, grads, wrt)
            for i, g in zip(wrt, found, strict=True):
                self._grads.setdefault(op.inputs[i], []).append(g)

    def total(self, t: Tensor) -> Tensor:
        """The gradient of a forward tensor, once all its consumers were visited."""
        if t not in self._totals:
            self._totals[t] = add_up(self._grads[t], f"Gradient___{t.name}")
        return self._totals[t]

    # Forward values

    def value(self, t: Tensor) -> Tensor:
        """The tensor of the gradient graph that holds the value of a forward tensor."""
        if t not in self._values:
            if isinstance(t, Constant):
                self._values[t] = constant(t.host_value, t.dtype, t.name)
            elif self.recomputes and t.producer is not None:
                self._recompute(t)
            else:
                self._forward_inputs[t] = graph_input(t.shape, t.dtype, t.name, meta_shape=t.meta_shape)
                self._values[t] = self._forward_inputs[t]
        return self._values[t]

    def _recompute(self, wanted: Tensor) -> None:
        needed: set[Op] = set()
        stack = [wanted]
        while stack:
            t = stack.pop()
            if t.producer is not None and t not in self._values and t.producer not in needed:
                check_repeatable(t.producer)
                needed.add(t.producer)
                stack += t.producer.inputs
        for op in self.forward.ops:
            if op in needed:
                copies = clone(op, [self.value(t) for t in op.inputs])
                self._values |= dict(zip(op.outputs, copies, strict=True))


def _append_output(graph: Graph, t: Tensor) -> None:
    """Make `t` one more output of `graph`, and of every call of it."""
    graph.add_output(t)
    for site in graph.call_sites:
        name = f"autodiff_output__t{graph.ir.next_tensor_suffix()}"
        add_output(site, ShapeDtype(t.shape, t.dtype), name, t.meta_shape)
