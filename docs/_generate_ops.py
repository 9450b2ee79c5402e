"""Writes ``reference/supported-ops.md`` from the ops' own declarations; run by ``conf.py``."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from popxl import dtypes as all_dtypes
from popxl import ops
from popxl.ops._define import FLOATS, INTS, NUMBERS, SIGNED_INTS, Declaration, registry, variants

DECLARATIONS = (*registry.values(), *variants)
PAGE = Path(__file__).parent / "reference" / "supported-ops.md"

DTYPE_SETS = {
    "numbers": NUMBERS,
    "numbers and `bool`": (*NUMBERS, all_dtypes.bool),
    "floats": FLOATS,
    "integers": INTS,
    "signed numbers": (*SIGNED_INTS, *FLOATS),
    "signed integers": SIGNED_INTS,
}

HEAD = """\
# Supported ops

<!-- Written by docs/_generate_ops.py from the ops' declarations. -->

Every function of `popxl.ops` and of the packages in it. What a function takes, returns and raises stands in its
docstring: `help(popxl.ops.reshape)`.

- *dtypes*: what its tensors may have, where they differ by argument. *integers* are signed and unsigned, with 8 to 64
  bits; *floats* are `float16`, `float32` and `float64`; *numbers* are both.
- *gradients for*: the arguments with a gradient, as far as they are floats. *none* lets other paths count; *refused*
  means that asking for a gradient is an error. Functions that overwrite an argument have none.
- *result*: a copy has memory of its own. A view shares the memory of what it is a view of: a write to either changes
  both. *Overwrites* means that the argument has the result afterwards, too.
- *in place*: the function that does the same without a copy.
- *type*: the name of the op in a graph.

Below each table stands what differs from the reference; what differs for all ops is on the page
[differences](differences.md). The page [ops](../explanation/ops.md) tells how values and gradients are computed.
"""

COLUMNS = ("function", "meaning", "dtypes", "gradients for", "result", "in place", "type")


def packages() -> Iterator[tuple[str, ModuleType]]:
    """The public packages of ops, each with the prefix of its functions' names."""
    yield "", ops
    for name in sorted(ops.__all__):
        value = getattr(ops, name)
        if inspect.ismodule(value) and hasattr(value, "__path__"):
            yield f"{name}.", value


def families() -> dict[ModuleType, list[str]]:
    """The public functions, by the module that defines them."""
    found: dict[ModuleType, list[str]] = {}
    for prefix, package in packages():
        for name in package.__all__:
            value = getattr(package, name)
            if inspect.isfunction(value):
                found.setdefault(importlib.import_module(value.__module__), []).append(prefix + name)
    return dict(sorted(found.items(), key=lambda item: item[0].__name__))


def function(name: str) -> Callable[..., Any]:
    """The function `name` of `popxl.ops`."""
    value: Any = ops
    for part in name.split("."):
        value = getattr(value, part)
    return value


def sentence(text: str | None) -> str:
    """The first sentence or line of a docstring, for one cell of a table."""
    first = (text or "").strip().split("\n\n")[0].replace("\n", " ")
    return re.sub(r"``(.+?)``", r"`\1`", re.sub(r"\s+", " ", first)).replace("|", r"\|")


def signature(name: str) -> str:
    """The call, with the defaults of the arguments."""
    parameters = inspect.signature(function(name)).parameters.values()
    return f"{name}({', '.join(str(p.replace(annotation=p.empty)) for p in parameters)})".replace("|", r"\|")


def dtype_set(members: tuple[Any, ...] | None) -> str:
    """A set of dtypes, by its name if it has one."""
    if members is None:
        return "all"
    for name, known in DTYPE_SETS.items():
        if set(members) == set(known):
            return name
    return ", ".join(f"`{d.name}`" for d in members)


def dtypes(declaration: Declaration) -> str:
    """The dtypes that the tensors of an op may have."""
    if isinstance(declaration.dtypes, Mapping):
        return "; ".join(f"`{name}`: {dtype_set(members)}" for name, members in declaration.dtypes.items())
    return dtype_set(declaration.dtypes)


def tensor_arguments(declaration: Declaration) -> list[str]:
    """The arguments that are tensors, in order: as far as they are connected, the op's inputs."""
    parameters = inspect.signature(declaration.function).parameters.values()
    return [p.name for p in parameters if "Tensor" in str(p.annotation)]


def gradients(declaration: Declaration) -> str:
    """The arguments with a gradient."""
    gradient = declaration.definition.gradient
    if declaration.definition.control is not None:
        return "those of the graph"
    if gradient is None:
        return "none"
    if gradient.refusal:
        return "refused"
    names = tensor_arguments(declaration)
    chosen = names if gradient.wrt is None else [names[i] for i in gradient.wrt]
    floats = [n for n in chosen if set(declaration.dtypes_of(n) or FLOATS) & set(FLOATS)]
    return ", ".join(f"`{n}`" for n in floats) or "none"


def result(declaration: Declaration) -> str:
    """Whose memory the result of an op is in, or what else the op does."""
    definition = declaration.definition
    if definition.control is not None:
        return f"runs a graph {definition.control.value}"
    parameters = inspect.signature(declaration.function).parameters.values()
    # An in-place op overwrites, and a view shows, the first argument that must be a tensor or tensors.
    target = next((p.name for p in parameters if p.annotation in ("Tensor", "Iterable[Tensor]")), "")
    if definition.mutates:
        effect = f" ({definition.effect.value})" if definition.effect else ""
        return f"overwrites `{target}`{effect}"
    if definition.effect is not None:
        return definition.effect.value
    return f"view of `{target}`" if definition.is_view else "copy"


def row(name: str) -> tuple[str, ...]:
    """The cells of a function's row."""
    own = [d for d in DECLARATIONS if d.function is function(name)]
    twins = [d for d in DECLARATIONS if d.twin_of in own]
    cells = (
        ", ".join(dict.fromkeys(map(dtypes, own))),
        ", ".join(dict.fromkeys(map(gradients, own))) or "those of its parts",
        ", ".join(dict.fromkeys(map(result, own))),
        ", ".join(dict.fromkeys(f"`{d.function.__name__}`" for d in twins)),
        ", ".join(f"`{d.definition.type}`" for d in own) or "made of other ops",
    )
    return (f"`{signature(name)}`", sentence(function(name).__doc__), *cells)


def differences(name: str) -> list[str]:
    """What differs from the reference in a function, an item each."""
    texts = [d.differences for d in DECLARATIONS if d.function is function(name) and d.differences]
    return [f"- `{name}`: {text}" for text in texts]


def page() -> str:
    """The text of the page."""
    lines = [HEAD]
    for module, names in families().items():
        lines += [f"## {sentence(module.__doc__).split(' (spec ')[0].rstrip('.')}", ""]
        lines += [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
        lines += [f"| {' | '.join(row(name))} |" for name in sorted(names)]
        lines += ["", *(line for name in sorted(names) for line in differences(name)), ""]
    return "\n".join(lines)


def write() -> None:
    """Write the page, unless it is up to date: Sphinx reads a page again whenever it is written."""
    text = page()
    if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text:
        PAGE.write_text(text, encoding="utf-8")
