"""`Module`: a graph function with attributes (spec ``core.md`` §4)."""

from __future__ import annotations

from typing import Any

from popxl.errors import PopxlNotImplementedError


class Module:
    """Base of classes whose `build` makes a graph and keeps its inputs as attributes.

    Example:
        >>> import popxl
        >>> class Scale(popxl.Module):
        ...     def build(self, x):
        ...         self.w = popxl.graph_input((), popxl.float32, "w")
        ...         return x * self.w
        >>> ir, scale = popxl.Ir(), Scale()
        >>> g = ir.create_graph(scale, popxl.TensorSpec((2,), popxl.float32))
        >>> g.name, scale.w.name
        ('Scale_subgraph(0)', 'w')
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return ``self.build(*args, **kwargs)``."""
        return self.build(*args, **kwargs)

    def build(self, *args: Any, **kwargs: Any) -> Any:
        """Make the graph; override this.

        Raises:
            PopxlNotImplementedError: (a `NotImplementedError`) unless overridden.
        """
        raise PopxlNotImplementedError(
            "Your popxl.Module must override `build` method.", hint=f"define `build` in {type(self).__name__}"
        )
