"""Formats a value for `popxl.ops.print_tensor` (spec ``ops-nn.md`` §8.3; the exact layout is free)."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from popxl.op import Op

_LONGEST = sys.maxsize


def print_value(op: Op, value: np.ndarray[Any, Any]) -> None:
    """Print the value of a print op to stderr, with the op's title in front."""
    sys.stderr.write(f"{op.attributes['title']}\n{format_value(op, value)}\n")
    sys.stderr.flush()


def format_value(op: Op, value: np.ndarray[Any, Any]) -> str:
    """Return the text of a value, formatted as the attributes of a print op say."""
    a = op.attributes
    float_format = a["float_format"] if a["digits"] else "none"
    digits = a["digits"] or 8
    formatter: Any = None
    if value.dtype.kind == "f" and float_format != "none":
        styles = {"auto": "g", "fixed": "f", "scientific": "e"}
        style = styles[float_format]
        formatter = {"float_kind": f"{{:.{digits}{style}}}".format}
    text = np.array2string(
        value,
        max_line_width=a["max_line_width"] or _LONGEST,
        threshold=a["summarise_threshold"] or _LONGEST,
        edgeitems=a["edge_items"],
        separator=a["separator"],
        formatter=formatter,
    )
    return text.replace("[", "\0").replace("]", a["close_bracket"]).replace("\0", a["open_bracket"])
