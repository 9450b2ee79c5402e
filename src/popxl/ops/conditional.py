"""`conditional`: run one of two graphs (spec ``ops-control.md`` §5)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NoReturn

from popxl import dtypes
from popxl.context import get_current_graph
from popxl.errors import PopxlIndexError, PopxlNotImplementedError, PopxlTypeError, PopxlValueError
from popxl.graph import Graph
from popxl.op import Control
from popxl.ops._define import define
from popxl.ops.call import CallSiteInfo, emit_call_site, match_inputs
from popxl.ops.utils import check_in_graph
from popxl.tensor import Tensor, TensorLike

Inputs = Iterable[TensorLike | Iterable[TensorLike]]


def conditional(
    cond: Tensor,
    then_branch: Graph,
    else_branch: Graph,
    then_inputs: Inputs | None = None,
    else_inputs: Inputs | None = None,
    then_inputs_dict: Mapping[Tensor, TensorLike] | None = None,
    else_inputs_dict: Mapping[Tensor, TensorLike] | None = None,
) -> tuple[Tensor, ...]:
    """Run `then_branch` if `cond` is true, else `else_branch`; the other one does not run at all.

    Args:
        cond: Bool tensor with one element.
        then_branch: A graph.
        else_branch: A graph with as many outputs, of the same shapes and dtypes.
        then_inputs: Values for the inputs of `then_branch`, as for `popxl.ops.call`.
        else_inputs: Values for the inputs of `else_branch`.
        then_inputs_dict: Values for the other inputs of `then_branch`.
        else_inputs_dict: Values for the other inputs of `else_branch`.

    Returns:
        The outputs of the branch that runs.

    Raises:
        PopxlTypeError: (a `TypeError`) if `cond` is no bool tensor.
        PopxlValueError: (a `ValueError`) if `cond` has not one element, the branches' outputs differ, and
            as `popxl.ops.call`.
        PopxlNotImplementedError: (a `NotImplementedError`) for branches with inputs by reference.
    """
    return conditional_with_info(
        cond, then_branch, else_branch, then_inputs, else_inputs, then_inputs_dict, else_inputs_dict
    ).outputs


def conditional_with_info(
    cond: Tensor,
    then_branch: Graph,
    else_branch: Graph,
    then_inputs: Inputs | None = None,
    else_inputs: Inputs | None = None,
    then_inputs_dict: Mapping[Tensor, TensorLike] | None = None,
    else_inputs_dict: Mapping[Tensor, TensorLike] | None = None,
    check_inputs: bool = True,
) -> ConditionalSiteInfo:
    """Run one of two graphs as `conditional` does, and return information on the call site."""
    _check_condition(cond)
    _check_branches(then_branch, else_branch)
    then_parents = match_inputs(
        then_branch, then_inputs or (), then_inputs_dict, "then_branch", check_inputs=check_inputs
    )
    else_parents = match_inputs(
        else_branch, else_inputs or (), else_inputs_dict, "else_branch", check_inputs=check_inputs
    )
    inputs = {
        "cond": cond,
        **{f"then input {i}": t for i, t in enumerate(then_parents)},
        **{f"else input {i}": t for i, t in enumerate(else_parents)},
    }
    branch_outputs = zip(then_branch.outputs, else_branch.outputs, strict=True)
    names = [f"{t.name}_or_{e.name}" for t, e in branch_outputs]
    emit_call_site(IF, inputs, (then_branch, else_branch), then_branch.outputs, names)
    return ConditionalSiteInfo(get_current_graph().ops[-1])


IF = define("If", conditional, control=Control.BRANCH)


def _check_condition(cond: Tensor) -> None:
    check_in_graph(get_current_graph(), cond=cond)
    if cond.dtype != dtypes.bool:
        raise PopxlTypeError(f"The condition `cond` must be a bool tensor, not {cond!r}.", hint="use popxl.ops.equal")
    if cond.nelms != 1:
        raise PopxlValueError(f"The condition `cond` must have one element: {cond!r} has {cond.nelms}.")


def _check_branches(then_branch: Graph, else_branch: Graph) -> None:
    for graph in (then_branch, else_branch):
        if graph.by_ref_inputs:
            raise PopxlNotImplementedError(
                "TensorByRef is not implemented for the conditional op. "
                f"Graph {graph.name} takes {sorted(t.name for t in graph.by_ref_inputs)} by reference.",
                hint="return the new value from both branches and write it with popxl.ops.var_updates.copy_var_update_",
            )
    if len(then_branch.outputs) != len(else_branch.outputs):
        raise PopxlValueError(
            "`then_branch` graph and `else_branch` graph must have the same number of outputs: "
            f"{then_branch.name} has {len(then_branch.outputs)}, {else_branch.name} has {len(else_branch.outputs)}."
        )
    for i, (t, e) in enumerate(zip(then_branch.outputs, else_branch.outputs, strict=True)):
        if (t.shape, t.dtype) != (e.shape, e.dtype):
            raise PopxlValueError(f"Output {i} of the branches differs: {t!r} and {e!r}.", hint="reshape or cast one")


class ConditionalSiteInfo(CallSiteInfo):
    """What a conditional connects. The op's inputs are the condition, then the inputs of both branches."""

    @property
    def called_graph(self) -> tuple[Graph, Graph]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The graphs ``(then, else)``."""
        then_branch, else_branch = self._op.called_graphs
        return then_branch, else_branch

    def graph_to_parent_input_index(self, idx: int, then_branch: bool = True) -> int:
        """Return the op's input that feeds input `idx` of a branch. Raises an `IndexError` if there is none."""
        then_graph, else_graph = self.called_graph
        self._check_index(idx, len((then_graph if then_branch else else_graph).inputs))
        return 1 + idx if then_branch else 1 + len(then_graph.inputs) + idx

    def parent_to_graph_input_index(self, idx: int) -> int:
        """Return the branch's input that input `idx` of the op feeds. Raises an `IndexError` if there is none."""
        if self.is_parent_index_in_then_branch(idx):
            return idx - 1
        return idx - 1 - len(self.called_graph[0].inputs)

    def is_parent_index_in_then_branch(self, idx: int) -> bool:
        """Return whether input `idx` of the op feeds the then branch. Raises an `IndexError` if it feeds none."""
        self._check_index(idx - 1, sum(len(g.inputs) for g in self.called_graph))
        return idx - 1 < len(self.called_graph[0].inputs)

    def graph_to_parent_output_index(self, idx: int, then_branch: bool = True) -> int:
        """Return the op's output that output `idx` of a branch feeds. Raises an `IndexError` if there is none."""
        self._check_index(idx, len(self.called_graph[0 if then_branch else 1].outputs))
        return idx

    def parent_to_graph_output_index(self, idx: int, then_branch: bool = True) -> int:
        """Return the branch's output that feeds output `idx` of the op. Raises an `IndexError` if there is none."""
        return self.graph_to_parent_output_index(idx, then_branch)

    def _check_index(self, idx: int, count: int) -> None:
        if not 0 <= idx < count:
            raise PopxlIndexError(f"Index {idx} is out of range, there are {count}.", where=self._op.where)

    def graph_to_parent(self, graph_tensor: Tensor) -> Tensor:
        """Return the caller's tensor for a tensor of the then branch, else of the else branch."""
        for graph, then_branch in zip(self.called_graph, (True, False), strict=True):
            for i, t in enumerate(graph.inputs):
                if t == graph_tensor:
                    return self.parent_input(self.graph_to_parent_input_index(i, then_branch))
            for i, t in enumerate(graph.outputs):
                if t == graph_tensor:
                    return self.parent_output(i)
        raise PopxlValueError(
            f"Tensor {graph_tensor.name} is not an input or output of the called graph(s).", where=self._op.where
        )

    def parent_to_graph(self, parent_tensor: Tensor) -> Tensor:
        """Return the input of the then branch, else of the else branch, that a tensor of the caller feeds."""
        then_graph, else_graph = self.called_graph
        for t, graph_input in zip(self._op.inputs[1:], (*then_graph.inputs, *else_graph.inputs), strict=False):
            if t == parent_tensor:
                return graph_input
        raise PopxlValueError(
            f"Tensor {parent_tensor.name} is not a parent graph input of the call site.", where=self._op.where
        )

    def set_parent_input_modified(self, parent_tensor: Tensor, infer_modified_regions: bool = True) -> NoReturn:
        """Not available: branches take their inputs by value."""
        raise PopxlNotImplementedError("A conditional cannot modify its inputs.", where=self._op.where)
