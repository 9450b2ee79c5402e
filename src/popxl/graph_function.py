"""Making a graph from a function: `Ir.create_graph`, `graph_input`, `graph_output` (spec ``core.md`` §8)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast, get_args, get_origin

from popxl import dtypes
from popxl.context import get_current_graph
from popxl.errors import PopxlTypeError, PopxlValueError
from popxl.graph import Graph, check_in_current_graph
from popxl.module import Module
from popxl.tensor import Tensor, TensorByRef, TensorSpec

if TYPE_CHECKING:
    from popxl.ir import Ir


def graph_input(
    shape: Iterable[int],
    dtype: dtypes.dtype,
    name: str | None = None,
    by_ref: bool = False,
    meta_shape: Iterable[int] | None = None,
) -> Tensor:
    """Add an input to the current graph.

    Args:
        shape: Shape of the input.
        dtype: Dtype of the input.
        name: Name, ``"t"`` if not given.
        by_ref: Whether changes made to it inside the graph reach the caller's tensor.
        meta_shape: The unsharded shape, if the input is a shard.

    Returns:
        The new input.
    """
    graph = get_current_graph()
    graph.ir.check_open()
    tensor = Tensor._create(graph, name or "t", tuple(shape), dtype, tuple(meta_shape or ()))  # pyright: ignore[reportPrivateUsage]
    graph.add_input(tensor, by_ref=by_ref)
    return tensor


def graph_output(t: Tensor) -> None:
    """Make `t` the next output of the current graph.

    Raises:
        PopxlTypeError: (a `TypeError`) if `t` is no tensor.
        PopxlValueError: (a `ValueError`) if `t` is not in the current graph.
    """
    graph = get_current_graph()
    graph.ir.check_open()
    check_in_current_graph(graph, t=t)
    graph.add_output(t)


def build_graph(ir: Ir, fn: Callable[..., Any] | Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Graph:
    """Build a graph by running `fn`; see `Ir.create_graph`."""
    function, qualified_name = _resolve(fn)
    bound = _bind(function, args, kwargs)
    graph = ir.create_empty_graph(qualified_name.replace(".<locals>", ""))
    with graph:
        for parameter in bound.signature.parameters.values():
            annotation = _annotation(function, parameter)
            bound.arguments[parameter.name] = _as_inputs(parameter, annotation, bound.arguments[parameter.name])
        for t in _check_outputs(function(*bound.args, **bound.kwargs)):
            graph_output(t)
    return graph


def _resolve(fn: Callable[..., Any] | Module) -> tuple[Callable[..., Any], str]:
    if isinstance(fn, Module):
        return fn.build, type(fn).__qualname__
    name = getattr(fn, "__qualname__", None)
    if not callable(fn) or name is None:
        raise PopxlTypeError(
            f"Cannot create a graph from {fn!r}: it must be a function, a method or a popxl.Module.",
            hint="wrap it in a def or a lambda",
        )
    return fn, name


def _bind(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> inspect.BoundArguments:
    signature = inspect.signature(function)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise PopxlValueError(
            f"The arguments, `args` and `kwargs`, do not match the signature of {function.__qualname__}: {error}.",
            hint=f"the signature is {function.__qualname__}{signature}",
        ) from error
    bound.apply_defaults()
    return bound


def _annotation(function: Callable[..., Any], parameter: inspect.Parameter) -> Any:
    """Return what a parameter is annotated with; its text if it means nothing at run time."""
    text = parameter.annotation
    if not isinstance(text, str):
        return text
    try:
        # Not inspect's eval_str: one annotation that only type checkers can resolve would hide all others.
        return eval(text, getattr(inspect.unwrap(function), "__globals__", {}))
    except Exception:  # noqa: BLE001 - the text may be anything
        return text


def _as_inputs(parameter: inspect.Parameter, annotation: Any, value: Any) -> Any:
    """Turn the tensors of one argument into graph inputs; pass anything else through."""
    name = parameter.name
    by_ref = _is_by_ref(annotation)
    if parameter.kind is inspect.Parameter.VAR_KEYWORD:
        if _all_tensors(name, tuple(value.values())):
            return {k: _input_like(v, k, by_ref=by_ref) for k, v in value.items()}
    elif parameter.kind is inspect.Parameter.VAR_POSITIONAL:
        if _all_tensors(name, cast("Sequence[Any]", value)):
            return tuple(_input_like(v, f"{name}_{i}", by_ref=by_ref) for i, v in enumerate(value))
    elif isinstance(value, Tensor | TensorSpec):
        return _input_like(value, name, by_ref=by_ref)
    elif isinstance(value, list | tuple) and _all_tensors(name, cast("Sequence[Any]", value)):
        elements = cast("Sequence[Tensor | TensorSpec]", value)
        by_ref = _is_by_ref_sequence(annotation)
        return [_input_like(v, f"{name}_{i}", by_ref=by_ref) for i, v in enumerate(elements)]
    return cast("Any", value)


def _is_by_ref(annotation: Any) -> bool:
    return annotation is TensorByRef or annotation == TensorByRef | None


def _is_by_ref_sequence(annotation: Any) -> bool:
    return get_origin(annotation) in (list, tuple) and set(get_args(annotation)) - {...} == {TensorByRef}


def _all_tensors(name: str, values: Sequence[Any]) -> bool:
    are_tensors = [isinstance(v, Tensor | TensorSpec) for v in values]
    if any(are_tensors) and not all(are_tensors):
        odd = values[are_tensors.index(False)]
        raise PopxlTypeError(
            f"The `{name}` argument can't contain a mixture of Tensors and other types, such as {odd!r}.",
            hint="pass the tensors and the other values as separate arguments",
        )
    return any(are_tensors)


def _input_like(value: Tensor | TensorSpec, name: str, *, by_ref: bool) -> Tensor:
    return graph_input(value.shape, value.dtype, name, by_ref, value.meta_shape)


def _check_outputs(result: Any) -> tuple[Tensor, ...]:
    if result is None:
        return ()
    if isinstance(result, Tensor):
        return (result,)
    # Materialised once: a generator gives its tensors only once.
    outputs = tuple(cast("Iterable[object]", result)) if isinstance(result, Iterable) else (cast(object, result),)
    tensors = tuple(t for t in outputs if isinstance(t, Tensor))
    if len(tensors) != len(outputs):
        raise PopxlValueError(
            f"Output of subgraph must be None, a Tensor or an iterable of Tensors. Output: {result!r}.",
            hint="return tensors made inside the function",
        )
    return tensors
