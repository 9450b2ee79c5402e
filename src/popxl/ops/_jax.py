"""`jax`, `jnp` and `lax` for lowerings, imported when first used: `import popxl` stays quick and starts nothing."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jax
    import jax.numpy as jnp
    from jax import lax
else:

    class _LazyModule:
        def __init__(self, name: str) -> None:
            self._name = name

        def __getattr__(self, attribute: str) -> Any:
            return getattr(importlib.import_module(self._name), attribute)

    jax = _LazyModule("jax")
    jnp = _LazyModule("jax.numpy")
    lax = _LazyModule("jax.lax")


def late(find: Callable[[], Callable[..., Any]]) -> Callable[..., Any]:
    """Return a function that calls what `find` returns, which is looked up at the first call and not before."""

    def lower(*args: Any, **attributes: Any) -> Any:
        return find()(*args, **attributes)

    return lower


def at_least_float32(t: Any) -> Any:
    """Return float16 as float32: sums and products of float16 are accumulated in float32 and rounded once."""
    return t.astype(jnp.float32) if t.dtype == jnp.float16 else t


__all__ = ["at_least_float32", "jax", "jnp", "late", "lax"]
