"""How an op is declared, in one place, and the registry of all declarations.

A family file holds, for each op: the public function, then ``NAME = define("Type", function, ...)`` with its
effects, its shape rule, its lowering to JAX, and samples with a NumPy oracle. Everything else (shape inference,
checks, the shared tests, the page of supported ops, the planner) follows from the declaration.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from popxl import dtypes
from popxl.aliasing import is_writable
from popxl.context import get_current_graph
from popxl.errors import CoreError
from popxl.op import Across, Control, Effect, Gradient, Op, OpDefinition, ShapeDtype, as_results
from popxl.ops._jax import jax, jnp
from popxl.ops.utils import check_in_graph, check_tensor_ipu_and_tile_set
from popxl.tensor import Tensor

if TYPE_CHECKING:
    from popxl.graph import Graph

Oracle = Callable[..., Any]
Rule = Callable[..., "ShapeDtype | tuple[ShapeDtype, ...]"]
Dtypes = tuple[dtypes.dtype, ...] | Mapping[str, tuple[dtypes.dtype, ...]] | None

FLOATS = (dtypes.float16, dtypes.float32, dtypes.float64)
SIGNED_INTS = (dtypes.int8, dtypes.int16, dtypes.int32, dtypes.int64)
INTS = (*SIGNED_INTS, dtypes.uint8, dtypes.uint16, dtypes.uint32, dtypes.uint64)
NUMBERS = (*INTS, *FLOATS)
FLOAT8 = (dtypes.float8_143, dtypes.float8_152)


def _zeros(_grads: Sequence[Any], inputs: Sequence[Any], _outputs: Sequence[Any], **_attributes: Any) -> Sequence[Any]:
    return [jnp.zeros_like(t) for t in inputs]


NATURAL = Gradient()
ZERO = Gradient(_zeros)
"""For ops that are constant almost everywhere: there is a gradient, and it is zero."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One call of a public function, for the shared tests.

    Attributes:
        args: Positional arguments; arrays (also in lists) become tensors, everything else is passed as it is.
        kwargs: Keyword arguments, passed as they are.
        tolerance: Relative and absolute tolerance against the oracle, which computes in float64. 0 is exact.
        smooth: Whether the op can be differentiated at these values, so that its gradient is that of the oracle.
            Gradients at kinks and ties need tests of their own.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    tolerance: float
    smooth: bool


def sample(*args: Any, tolerance: float = 1e-6, smooth: bool = True, **kwargs: Any) -> Sample:
    """Return a `Sample`."""
    return Sample(args, kwargs, tolerance, smooth)


class Samples(Protocol):
    """Makes the samples of an op; called by tests only."""

    def __call__(self) -> Sequence[Sample]: ...


@dataclass(frozen=True, slots=True, eq=False)
class Declaration:
    """One op as users and tests see it.

    Attributes:
        definition: What the IR, the planner and the lowering use.
        function: The public function.
        dtypes: Dtypes that the tensor inputs may have, for all or by argument; None, or no such argument, for all.
        oracle: The same op in NumPy, over float64 arrays, sharing no code with the lowering.
        samples: Calls for the shared tests; empty for ops with tests of their own.
        twin_of: The declaration of the op that this one does in place.
        elementwise: Whether equally sharded operands give an equally sharded result.
        differences: Where it differs from the reference, for the page of supported ops.
    """

    definition: OpDefinition
    function: Callable[..., Any]
    dtypes: Dtypes
    oracle: Oracle | None
    samples: Samples
    twin_of: Declaration | None = None
    elementwise: bool = False
    differences: str = ""

    def dtypes_of(self, argument: str) -> tuple[dtypes.dtype, ...] | None:
        """The dtypes that the tensor `argument` may have; None for all."""
        return self.dtypes.get(argument) if isinstance(self.dtypes, Mapping) else self.dtypes

    def emit(
        self,
        tensors: Mapping[str, Tensor],
        name: str | Sequence[str] = (),
        *,
        graphs: tuple[Graph, ...] = (),
        outputs: tuple[ShapeDtype, ...] | None = None,
        mutates: tuple[int, ...] | None = None,
        same_place: bool = True,
        **attributes: Any,
    ) -> tuple[Tensor, ...]:
        """Add an op of this type to the current graph.

        Args:
            tensors: The inputs, by the name of the argument they come from.
            name: Base name of each output.
            graphs: Graphs it calls.
            outputs: Shape and dtype of each output, where the inputs do not tell.
            mutates: Inputs that it overwrites, if other than the definition says.
            same_place: Whether the inputs must agree on IPU and tile set.
            attributes: Values fixed now; hashable.

        Returns:
            The outputs.
        """
        graph = get_current_graph()
        check_in_graph(graph, **tensors)
        if same_place and len(tensors) > 1:
            check_tensor_ipu_and_tile_set(**tensors)
        inputs = tuple(tensors.values())
        self.check_dtypes(tensors)
        if outputs is None:
            specs = tuple(ShapeDtype(t.shape, t.dtype) for t in inputs)
            outputs = infer(self.definition, specs, tuple(attributes.items()))
        return self._append(
            graph, inputs, outputs, (name,) if isinstance(name, str) else name, graphs, mutates, attributes
        )

    def check_dtypes(self, tensors: Mapping[str, Tensor]) -> None:
        """Check the dtypes of the inputs, by the name of the argument that they come from.

        Raises:
            CoreError: (a `RuntimeError`) naming the argument that has another dtype.
        """
        for argument, t in tensors.items():
            allowed = self.dtypes_of(argument)
            if allowed is not None and t.dtype not in allowed:
                raise CoreError(
                    f"Unsupported dtype {t.dtype} of `{argument}` ({t.id}) for {self.definition.type}.",
                    hint=f"cast it first; supported: {', '.join(d.name for d in allowed)}",
                )

    def _append(
        self,
        graph: Graph,
        inputs: tuple[Tensor, ...],
        specs: tuple[ShapeDtype, ...],
        names: Sequence[str],
        graphs: tuple[Graph, ...],
        mutates: tuple[int, ...] | None,
        attributes: Mapping[str, Any],
    ) -> tuple[Tensor, ...]:
        definition = self.definition
        graph.ir.check_open()
        # Before the op exists: an op that failed must not stay in the order of `in_sequence`.
        meta_shape = _meta_shape(inputs) if self.elementwise else ()
        op = Op(definition, graph, inputs, attributes, graphs, api=self.function.__name__)
        op.mutates = definition.mutates if mutates is None else mutates
        in_place = definition.mutates and all(is_writable(inputs[i]) for i in op.mutates)
        if definition.mutates and not in_place:
            op.mutates = ()
        make_outputs(op, specs, names, meta_shape)
        if definition.is_view:
            op.aliases = tuple(range(len(inputs)))
        elif in_place and op.outputs:
            op.aliases = definition.mutates[:1]
            op.outputs[0].storage = inputs[definition.mutates[0]].storage
        graph.append(op)
        return op.outputs


def make_outputs(op: Op, specs: Sequence[ShapeDtype], names: Sequence[str], meta_shape: tuple[int, ...] = ()) -> None:
    """Give an op its outputs."""
    op.outputs = tuple(
        Tensor._create(op.graph, name, spec.shape, spec.dtype, meta_shape)  # pyright: ignore[reportPrivateUsage]
        for name, spec in zip(names, specs, strict=True)
    )
    for t in op.outputs:
        t.producer = op


def add_output(op: Op, spec: ShapeDtype, name: str, meta_shape: tuple[int, ...]) -> None:
    """Give a call one more output."""
    t = Tensor._create(op.graph, name, spec.shape, spec.dtype, meta_shape)  # pyright: ignore[reportPrivateUsage]
    t.producer = op
    op.outputs = (*op.outputs, t)


def clone(op: Op, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Add an op like `op`, which overwrites nothing, to the current graph, on other inputs."""
    graph = get_current_graph()
    graph.ir.check_open()
    made = Op(op.definition, graph, tuple(inputs), op.attributes, op.called_graphs, api=op.api)
    made.aliases = op.aliases
    make_outputs(made, [ShapeDtype(t.shape, t.dtype) for t in op.outputs], [t.name for t in op.outputs])
    for new, old in zip(made.outputs, op.outputs, strict=True):
        new.meta_shape = old.meta_shape
    graph.append(made)
    return made.outputs


registry: dict[str, Declaration] = {}
"""Every declared op, by type."""


def define(
    type: str,
    function: Callable[..., Any],
    *,
    lower: Callable[..., Any] | None = None,
    rule: Rule | None = None,
    dtypes: Dtypes = None,
    oracle: Oracle | None = None,
    samples: Samples = lambda: (),
    gradient: Gradient | None = NATURAL,
    put: Callable[..., tuple[Any, ...]] | None = None,
    mutates: tuple[int, ...] = (),
    unread: tuple[int, ...] = (),
    host: Callable[..., Any] | None = None,
    effect: Effect | None = None,
    control: Control | None = None,
    across: Across | None = None,
    optimizer: bool = False,
    first_input: int = 0,
    twin_of: Declaration | None = None,
    elementwise: bool = False,
    differences: str = "",
    reference_type: str = "",
) -> Declaration:
    """Declare an op; see `OpDefinition` and `Declaration` for the arguments.

    The shape rule defaults to tracing the lowering; an op across replicas needs one. A rule takes a `ShapeDtype` per
    input and the attributes as keywords. Ops that overwrite an input have no gradient, whatever `gradient` says; those
    without a lowering have no `NATURAL` one.
    """
    final_rule = rule or (_rule_by_tracing(lower) if lower else _no_rule)

    def infer_outputs(*specs: Any, **attributes: Any) -> tuple[ShapeDtype, ...]:
        result = final_rule(*specs, **attributes)
        return (result,) if isinstance(result, ShapeDtype) else result

    definition = OpDefinition(
        type,
        infer_outputs,
        lower,
        mutates,
        unread,
        put,
        host,
        effect,
        control,
        across,
        optimizer,
        first_input,
        None if mutates or (lower is None and gradient is NATURAL) else gradient,
        reference_type,
    )
    declaration = Declaration(definition, function, dtypes, oracle, samples, twin_of, elementwise, differences)
    registry[type] = declaration
    return declaration


variants: list[Declaration] = []
"""The public functions that make ops of a registered type besides its own, declared like it."""


def define_variant(
    of: Declaration,
    function: Callable[..., Any],
    *,
    oracle: Oracle,
    samples: Samples,
    dtypes: Dtypes = None,
    differences: str = "",
) -> Declaration:
    """Declare another public function that makes ops of the type of `of`; an attribute tells them apart.

    The dtypes are those of `of` unless given.
    """
    declaration = replace(
        of,
        function=function,
        dtypes=dtypes or of.dtypes,
        oracle=oracle,
        samples=samples,
        differences=differences,
    )
    variants.append(declaration)
    return declaration


def define_inplace(type: str, function: Callable[..., Any], of: Declaration, target: int = 0) -> Declaration:
    """Declare the op that does what `of` does, overwriting input `target`, whose shape and dtype must not change."""
    base = of.definition

    def rule(*specs: ShapeDtype, **attributes: Any) -> tuple[ShapeDtype, ...]:
        outputs = base.infer(*specs, **attributes)
        if outputs[0] != specs[target]:
            raise CoreError(
                f"{type} cannot change shape or dtype of what it overwrites: "
                f"{specs[target].dtype.name}{list(specs[target].shape)} would become "
                f"{outputs[0].dtype.name}{list(outputs[0].shape)}.",
                hint=f"use popxl.ops.{of.function.__name__}, which makes a new tensor",
            )
        return outputs

    return define(
        type,
        function,
        lower=base.lower,
        rule=rule,
        dtypes=of.dtypes,
        oracle=of.oracle,
        samples=of.samples,
        mutates=(target,),
        host=base.host,
        across=base.across,
        twin_of=of,
        elementwise=of.elementwise,
    )


def define_view(
    type: str, function: Callable[..., Any], of: Declaration, put: Callable[..., tuple[Any, ...]]
) -> Declaration:
    """Declare the op that gives what `of` gives, as a view. `put(new, *bases, **attributes)` gives the new bases."""
    base = of.definition
    return define(
        type,
        function,
        lower=base.lower,
        rule=base.infer,
        dtypes=of.dtypes,
        oracle=of.oracle,
        samples=of.samples,
        gradient=base.gradient,
        put=put,
        host=base.host,
        twin_of=of,
        elementwise=of.elementwise,
    )


def _no_rule(*_specs: ShapeDtype, **_attributes: Any) -> ShapeDtype:
    raise AssertionError("ops without a lowering say their outputs when they are emitted")


@lru_cache(maxsize=65536)
def infer(
    definition: OpDefinition, specs: tuple[ShapeDtype, ...], attributes: tuple[tuple[str, Any], ...]
) -> tuple[ShapeDtype, ...]:
    """Return the outputs' shapes and dtypes; cached, since programs repeat few shapes many times."""
    return definition.infer(*specs, **dict(attributes))


def _rule_by_tracing(lower: Callable[..., Any]) -> Rule:
    def rule(*specs: ShapeDtype, **attributes: Any) -> tuple[ShapeDtype, ...]:
        avals = [jax.ShapeDtypeStruct(s.shape, s.dtype.storage) for s in specs]
        try:
            with jax.enable_x64(True):
                result: Any = jax.eval_shape(partial(lower, **attributes), *avals)
        except (TypeError, ValueError) as error:
            shapes = ", ".join(f"{s.dtype.name}{list(s.shape)}" for s in specs)
            raise CoreError(f"The inputs ({shapes}) do not fit: {str(error).splitlines()[0]}") from error
        return tuple(ShapeDtype(r.shape, _popxl_dtype(r.dtype, specs)) for r in as_results(result))

    return rule


def _popxl_dtype(storage: np.dtype[Any], specs: tuple[ShapeDtype, ...]) -> dtypes.dtype:
    # Float8 values travel as uint8 codes, so the first input decides between the two.
    if specs and specs[0].dtype.storage == storage:
        return specs[0].dtype
    return dtypes.dtype.as_dtype(storage)


def _meta_shape(inputs: tuple[Tensor, ...]) -> tuple[int, ...]:
    """The one unsharded shape among elementwise operands of equal shape."""
    found = {t.meta_shape for t in inputs if t.meta_shape}
    if not found or len({t.shape for t in inputs if t.meta_shape}) > 1:
        return ()
    if len(found) > 1:
        raise CoreError(f"Incompatible meta shapes: {sorted(found)}.", hint="gather the shards first")
    return found.pop()
