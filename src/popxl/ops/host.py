"""Transfers to and from the host's arrays, and printing (spec ``ops-nn.md`` §8, ``session.md`` §1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from popxl.context import get_current_graph
from popxl.errors import PopxlKeyError, PopxlValueError
from popxl.op import Effect, Gradient, Op, ShapeDtype
from popxl.ops._define import define
from popxl.ops._rules import same
from popxl.ops.init import init
from popxl.ops.utils import check_in_graph
from popxl.streams import DeviceToHostStream, HostToDeviceStream, Stream
from popxl.tensor import Tensor

FloatFormat = Literal["auto", "fixed", "scientific", "none"]


def host_load(h2d_stream: HostToDeviceStream, name: str | None = None) -> Tensor:
    """Take the next item of a host stream. Each execution takes one.

    Args:
        h2d_stream: The stream.
        name: Base of the names; the stream's name if not given.

    Returns:
        A tensor of the stream's shape and dtype.

    Raises:
        PopxlValueError: (a `ValueError`) if the stream is of another IR.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     ops.host_load(popxl.h2d_stream((2,), popxl.float32, "x"))
        Tensor[x_hostload popxl.dtypes.float32 (2,)]
    """
    _check_stream(h2d_stream)
    base = name or h2d_stream.tensor.name
    local = init(h2d_stream.shape, h2d_stream.dtype, f"{base}_init", "undef")
    spec = ShapeDtype(h2d_stream.shape, h2d_stream.dtype)
    return HOST_LOAD.emit({"t": local}, f"{base}_hostload", outputs=(spec,), stream=h2d_stream)[0]


HOST_LOAD = define("HostLoad", host_load, effect=Effect.HOST_LOAD, unread=(0,))


def host_store(d2h_stream: DeviceToHostStream, t: Tensor) -> None:
    """Append `t` to a host stream. Each execution appends one item.

    Args:
        d2h_stream: The stream.
        t: Tensor of the stream's shape and dtype.

    Raises:
        PopxlTypeError: (a `TypeError`) if `t` is no tensor.
        PopxlValueError: (a `ValueError`) if `t` is of another graph, the stream of another IR, or shape or
            dtype differ.
    """
    check_in_graph(get_current_graph(), t=t)
    _check_stream(d2h_stream)
    if d2h_stream.dtype != t.dtype:
        raise PopxlValueError(
            f"dtype of stream {d2h_stream.tensor_id} `{d2h_stream.dtype}` does not match the dtype of tensor "
            f"{t.id} `{t.dtype}`.",
            hint="cast the tensor with popxl.ops.cast",
        )
    if d2h_stream.shape != t.shape:
        raise PopxlValueError(
            f"shape of stream {d2h_stream.tensor_id} `{d2h_stream.shape}` does not match the shape of tensor "
            f"{t.id} `{t.shape}`.",
            hint="reshape the tensor, or make the stream with the tensor's shape",
        )
    HOST_STORE.emit({"t": t}, outputs=(), stream=d2h_stream)


HOST_STORE = define("HostStore", host_store, effect=Effect.HOST_STORE)


def _check_stream(stream: Stream) -> None:
    graph = get_current_graph()
    if stream.tensor.ir != graph.ir:
        raise PopxlValueError(
            f"Stream {stream.tensor_id} belongs to {stream.tensor.ir!r}, not to the current {graph.ir!r}.",
            hint="create the stream inside `with ir.main_graph:` of this Ir",
        )


def print_tensor(
    t: Tensor,
    title: str | None = None,
    print_self: bool = True,
    print_gradient: bool = False,
    summarise_threshold: int = 1000,
    edge_items: int = 3,
    max_line_width: int = 75,
    digits: int = 8,
    float_format: FloatFormat = "auto",
    separator: str = " ",
    open_bracket: str = "[",
    close_bracket: str = "]",
) -> Tensor:
    """Print `t` to stderr each time it is executed.

    Args:
        t: The tensor.
        title: Text in front; ``print_<tensor name>`` if not given.
        print_self: Whether to print the value.
        print_gradient: Whether to print the gradient in the gradient graph, with the title ``<title>_gradient``.
        summarise_threshold: Number of elements above which only the edges are printed; 0 for never.
        edge_items: Number of elements printed at each end of a summarised axis.
        max_line_width: Characters of a line; 0 for no wrapping.
        digits: Digits of a number; 0 for as many as it takes.
        float_format: How floats are printed.
        separator: One character between elements.
        open_bracket: One character.
        close_bracket: One character.

    Returns:
        A copy of `t`.

    Raises:
        PopxlValueError: (a `ValueError`) if one of the three characters is not one character.
        PopxlKeyError: (a `KeyError`) for an unknown float format.
    """
    check_in_graph(get_current_graph(), t=t)
    characters = {"separator": separator, "open_bracket": open_bracket, "close_bracket": close_bracket}
    for name, character in characters.items():
        if len(character) != 1:
            raise PopxlValueError(f"Parameter {name} must be 1 character exactly. It is {character!r}.")
    if float_format not in ("auto", "fixed", "scientific", "none"):
        raise PopxlKeyError(
            f"Unknown float_format {float_format!r}.", hint='use "auto", "fixed", "scientific" or "none"'
        )
    return PRINT.emit(
        {"t": t},
        "print_out",
        title=title or f"print_{t.name}",
        print_self=print_self,
        print_gradient=print_gradient,
        summarise_threshold=summarise_threshold,
        edge_items=edge_items,
        max_line_width=max_line_width,
        digits=digits,
        float_format=float_format,
        separator=separator,
        open_bracket=open_bracket,
        close_bracket=close_bracket,
    )[0]


def _print_gradient(op: Op, grads: Mapping[int, Tensor], _wrt: tuple[int, ...]) -> tuple[Tensor, ...]:
    if not op.attributes["print_gradient"]:
        return (grads[0],)
    how: dict[str, Any] = {**op.attributes, "title": f"{op.attributes['title']}_gradient", "print_self": True}
    return PRINT.emit({"t": grads[0]}, "print_out", **how)


PRINT = define("PrintTensor", print_tensor, rule=same, effect=Effect.PRINT, gradient=Gradient(emit=_print_gradient))
