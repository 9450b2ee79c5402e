"""Every exception that OpenPopXL raises.

Each class also inherits the builtin that a PopXL program expects to catch. A message has three parts: the
fact with its values, where it happened, and a ``Hint:`` with what to write instead.
"""

from __future__ import annotations


class PopxlError(Exception):
    """Base of all OpenPopXL errors.

    Args:
        fact: What is wrong, with the values.
        where: The IR node and the user's line, if known.
        hint: What to write instead.

    Example:
        >>> print(PopxlError("entries is 0", where="model.py:3", hint="use entries=1"))
        entries is 0
          Where: model.py:3
          Hint: use entries=1
    """

    def __init__(self, fact: str, *, where: str | None = None, hint: str | None = None) -> None:
        self.fact = fact
        self.where = where
        self.hint = hint
        lines = [fact]
        if where:
            lines.append(f"  Where: {where}")
        if hint:
            lines.append(f"  Hint: {hint}")
        super().__init__("\n".join(lines))


class PopxlValueError(PopxlError, ValueError):
    """A value, shape or name that the call cannot accept."""


class PopxlTypeError(PopxlError, TypeError):
    """An argument of the wrong type or dtype."""


class PopxlIndexError(PopxlError, IndexError):
    """An index outside its range."""


class PopxlKeyError(PopxlError, KeyError):
    """A name that is not known."""

    # KeyError prints the repr of its argument; ours is a text for people.
    __str__ = Exception.__str__


class PopxlNotImplementedError(PopxlError, NotImplementedError):
    """Something that the model describes and this version does not run."""


class ContextError(PopxlError, RuntimeError):
    """A context is missing, or two contexts do not go together."""


class CoreError(PopxlError, RuntimeError):
    """What the reference reports from below its Python layer (its "popart error")."""


class DeviceError(PopxlError, RuntimeError):
    """A device that is not there."""


class OutOfMemoryError(PopxlError, MemoryError):
    """A program that needs more device memory than it may use."""


class RemoteOffsetError(PopxlValueError):
    """An offset outside ``0 <= offset < entries`` of a remote buffer."""


class StreamExhaustedError(CoreError):
    """More loads or stores on a host stream in one run than ``num_host_transfers``."""


class StreamingMemoryError(PopxlError, OSError):
    """A Streaming Memory tier cannot do what was asked; nothing else was touched."""


class UndefinedValue(PopxlError):
    """A property that is not known yet, such as the IPU of an unused variable."""
