"""What connects a gradient graph to its forward graph (spec ``transforms.md`` §2-§3)."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, NoReturn, cast

from popxl.errors import PopxlTypeError
from popxl.graph import Graph
from popxl.ops.call import CallSiteInfo

if TYPE_CHECKING:
    from popxl.tensor import Tensor


class ExpectedConnectionType(Enum):
    """What an input or output of a gradient graph holds."""

    Fwd = "Fwd"
    """The value of a forward tensor."""
    FwdGrad = "FwdGrad"
    """The gradient of a forward tensor."""


class ExpectedConnection:
    """One input or output of a gradient graph. Compared by identity."""

    _fwd_tensor: Tensor
    _connection_type: ExpectedConnectionType

    def __init__(self) -> None:
        _refuse(type(self).__name__)

    @classmethod
    def _create(cls, fwd_tensor: Tensor, connection_type: ExpectedConnectionType) -> ExpectedConnection:
        self = object.__new__(cls)
        self._fwd_tensor = fwd_tensor
        self._connection_type = connection_type
        return self

    @property
    def fwd_tensor(self) -> Tensor:
        """The tensor of the forward graph."""
        return self._fwd_tensor

    @property
    def connection_type(self) -> ExpectedConnectionType:
        """Whether it is the tensor itself or its gradient."""
        return self._connection_type

    def __repr__(self) -> str:
        return f"({self.connection_type}, {self.fwd_tensor})"


class GradGraphInfo:
    """A gradient graph, and what its inputs and outputs are. Made by `popxl.transforms.autodiff`.

    Example:
        >>> import popxl
        >>> from popxl import ops, transforms
        >>> ir = popxl.Ir()
        >>> with ir.main_graph:
        ...     x, w = popxl.variable([1.0, 2.0], name="x"), popxl.variable([3.0, 4.0], name="w")
        ...     forward = ir.create_graph(lambda x, w: x * w, x, w)
        ...     info = transforms.autodiff(forward, grads_required=[forward.inputs[1]])
        ...     call = ops.call_with_info(forward, x, w)
        ...     (dw,) = ops.call(info.graph, popxl.constant([1.0, 1.0]), inputs_dict=info.inputs_dict(call))
        >>> [connection.fwd_tensor.name for connection in info.expected_inputs]
        ['mul_out', 'x']
    """

    _graph: Graph
    _forward_graph: Graph
    _expected_inputs: tuple[ExpectedConnection, ...]
    _expected_outputs: tuple[ExpectedConnection, ...]
    #: The outputs of `graph` as it was made.
    _gradients: tuple[Tensor, ...]

    def __init__(self) -> None:
        _refuse(type(self).__name__)

    @classmethod
    def _create(
        cls,
        graph: Graph,
        forward_graph: Graph,
        expected_inputs: Sequence[ExpectedConnection],
        expected_outputs: Sequence[ExpectedConnection],
    ) -> GradGraphInfo:
        self = object.__new__(cls)
        self._graph = graph
        self._forward_graph = forward_graph
        self._expected_inputs = tuple(expected_inputs)
        self._expected_outputs = tuple(expected_outputs)
        self._gradients = graph.outputs[: len(self._expected_outputs)]
        return self

    @property
    def graph(self) -> Graph:
        """The gradient graph."""
        return self._graph

    @property
    def forward_graph(self) -> Graph:
        """The graph that was differentiated."""
        return self._forward_graph

    @property
    def expected_inputs(self) -> tuple[ExpectedConnection, ...]:
        """What the inputs of the gradient graph are, as it was made: first gradients, then forward tensors."""
        return self._expected_inputs

    @property
    def expected_outputs(self) -> tuple[ExpectedConnection, ...]:
        """What the outputs of the gradient graph are, as it was made: the required gradients."""
        return self._expected_outputs

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """The forward tensors of `expected_inputs`."""
        return tuple(c.fwd_tensor for c in self._expected_inputs)

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """The forward tensors of `expected_outputs`."""
        return tuple(c.fwd_tensor for c in self._expected_outputs)

    def inputs_dict(self, fwd_call_info: CallSiteInfo) -> dict[Tensor, Tensor]:
        """Return the forward values that the gradient graph takes, for ``ops.call(..., inputs_dict=...)``.

        Args:
            fwd_call_info: A call site of the forward graph, made before or after `autodiff`.

        Returns:
            The caller's tensor, by input of the gradient graph. Gradients are not among them: pass them yourself.

        Raises:
            PopxlTypeError: (a `TypeError`) if another graph is called there.
        """
        called = cast("object", fwd_call_info.called_graph)  # a pair of graphs for a conditional
        if not isinstance(called, Graph) or called != self._forward_graph:
            raise PopxlTypeError(
                "The called graph does not match the graph that was differentiated. "
                f"Called: {called!r}; differentiated: {self._forward_graph!r}.",
                hint="pass the information that popxl.ops.call_with_info returned for the differentiated graph",
            )
        return {
            self._graph.inputs[i]: fwd_call_info.graph_to_parent(connection.fwd_tensor)
            for i, connection in enumerate(self._expected_inputs)
            if connection.connection_type is ExpectedConnectionType.Fwd
        }

    def fwd_graph_ins_to_grad_parent_outs(self, grad_call_info: CallSiteInfo) -> dict[Tensor, Tensor]:
        """Return the gradients at a call site of the gradient graph, by tensor of the forward graph.

        Gradients that were removed from the outputs of the gradient graph are left out.
        """
        places = {gradient: i for i, gradient in enumerate(self._graph.outputs)}
        required = zip(self.outputs, self._gradients, strict=True)
        return {t: grad_call_info.parent_output(places[gradient]) for t, gradient in required if gradient in places}

    def fwd_parent_ins_to_grad_parent_outs(
        self, fwd_call_info: CallSiteInfo, grad_call_info: CallSiteInfo
    ) -> dict[Tensor, Tensor]:
        """Return the gradients at a call site, by the tensor that was passed to the forward graph.

        A tensor that was passed to several inputs has the gradient of the last of them only: to add them up, use
        `fwd_graph_ins_to_grad_parent_outs`.
        """
        gradients = self.fwd_graph_ins_to_grad_parent_outs(grad_call_info)
        return {fwd_call_info.graph_to_parent(t): gradient for t, gradient in gradients.items()}

    def __repr__(self) -> str:
        def block(name: str, connections: tuple[ExpectedConnection, ...]) -> list[str]:
            return [f"  {name}=[", *(f"    {c!r}," for c in connections), "  ]"]

        lines = ["GradGraphInfo[", f"  graph={self._graph.id}", *block("expected_inputs", self._expected_inputs)]
        return "\n".join([*lines, *block("expected_outputs", self._expected_outputs), "]"])


def _refuse(name: str) -> NoReturn:
    raise PopxlTypeError(
        f"{name} should not be constructed directly.", hint="popxl.transforms.autodiff(graph) makes them"
    )
