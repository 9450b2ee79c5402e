"""The loss of a classifier: minus the logarithm of the label's probability (spec ``ops-nn.md`` §4.2, §4.3)."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np

from popxl import dtypes
from popxl.context import get_current_graph
from popxl.creation import constant
from popxl.errors import CoreError, PopxlValueError
from popxl.op import Gradient, ShapeDtype
from popxl.ops._define import FLOATS, INTS, Sample, define, sample
from popxl.ops._jax import at_least_float32, jnp
from popxl.ops.utils import check_in_graph
from popxl.tensor import Tensor

REDUCTION_TYPE: TypeAlias = Literal["mean", "sum", "none"]
"""What becomes of the items' losses."""

# The loss


def nll_loss(
    probs: Tensor,
    labels: Tensor,
    ignore_index: int | None = None,
    reduction: REDUCTION_TYPE = "mean",
    log_prob: bool = False,
) -> Tensor:
    """Return minus the logarithm of the probability that `probs` gives to each label.

    The probability counts as at least 1e-7 (float16: 6.104e-5). Its gradient is ``-1 / probability``, with a
    probability of at least 1e-10 (float16: 6.104e-5); it goes to the label's probability only. Float16 is computed
    in float32.

    Args:
        probs: Probabilities, for instance from `softmax`; shape ``(*items, classes)``; a float dtype.
        labels: The right classes; shape ``(*items)``; an integer dtype. A label outside of
            ``0 <= label < classes`` has the probability 0, and no gradient.
        ignore_index: Items with this label have no loss and no gradient, and do not count for the mean.
        reduction: ``"mean"`` or ``"sum"`` of the items' losses, or ``"none"`` for each of them. The mean of ignored
            items only is 0.
        log_prob: Whether `probs` are logarithms of probabilities. Then there is no least probability, and the loss
            of a label outside of the classes is 0.

    Returns:
        The loss, a scalar or of the shape of `labels`, with the dtype of `probs`.

    Raises:
        PopxlValueError: (a `ValueError`) if `reduction` is another string.
        CoreError: (a `RuntimeError`) if shapes or dtypes do not fit.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     scores, labels = popxl.variable([[0.5, 2.0], [1.0, -1.0]]), popxl.variable([1, 0])
        ...     ops.nll_loss(ops.softmax(scores, -1), labels)
        Tensor[nll_loss_out popxl.dtypes.float32 ()]
    """
    _check_reduction(reduction)
    return NLL.emit(
        {"probs": probs, "labels": labels},
        "nll_loss_out",
        ignore_index=_index(ignore_index),
        reduction=reduction,
        log_prob=bool(log_prob),
    )[0]


def _check_reduction(reduction: str) -> None:
    if reduction not in ("mean", "sum", "none"):
        raise PopxlValueError(f"Not a valid reduction: {reduction!r}.", hint='use "mean", "sum" or "none"')


def _index(ignore_index: int | None) -> int | None:
    return None if ignore_index is None else operator.index(ignore_index)


def _rule(
    probs: ShapeDtype, labels: ShapeDtype, ignore_index: int | None, reduction: str, log_prob: bool = False
) -> ShapeDtype:
    if not probs.shape:
        raise CoreError("Invalid shape for prob tensor: `probs` is a scalar.", hint="its last axis counts the classes")
    if labels.shape != probs.shape[:-1]:
        raise CoreError(
            f"The label tensor (`labels`) has the shape {list(labels.shape)}, but `probs` has "
            f"{list(probs.shape)}: one label for each item would be {list(probs.shape[:-1])}.",
            hint="the last axis of `probs` counts the classes; flatten or reshape `labels` to the others",
        )
    if labels.dtype not in INTS:
        raise CoreError(
            f"Expected the label tensor NllOp to be an integer type: `labels` is {labels.dtype.name}.",
            hint="cast it first, for instance to int32",
        )
    return ShapeDtype(labels.shape if reduction == "none" else (), probs.dtype)


def _classes(labels: Any, count: int) -> Any:
    """The labels as int32, with -1 for all that are no class."""
    wide = labels.astype(jnp.int64)
    return jnp.where((wide >= 0) & (wide < count), wide, -1).astype(jnp.int32)


def _of_labels(probs: Any, labels: Any) -> Any:
    """What `probs` has at the labels; 0 for labels that are no class. At least float32."""
    if not probs.shape[-1]:
        return at_least_float32(jnp.zeros(labels.shape, probs.dtype))
    classes = _classes(labels, probs.shape[-1])
    found = jnp.take_along_axis(probs, jnp.maximum(classes, 0)[..., None], axis=-1, mode="clip")[..., 0]
    return at_least_float32(jnp.where(classes >= 0, found, 0))


def _at_labels(values: Any, labels: Any, count: int) -> Any:
    """A row of `count` for each item, with its value at its label and zeros elsewhere."""
    return jnp.where(_classes(labels, count)[..., None] == jnp.arange(count, dtype=jnp.int32), values[..., None], 0)


def _counted(labels: Any, ignore_index: int | None) -> Any:
    """Which items are not ignored."""
    return jnp.ones(labels.shape, bool) if ignore_index is None else labels.astype(jnp.int64) != ignore_index


def _divisor(labels: Any, ignore_index: int | None, reduction: str, dtype: Any) -> Any:
    """What the sum of all items' losses is divided by."""
    if reduction != "mean":
        return jnp.ones((), dtype)
    if ignore_index is None:
        return jnp.full((), labels.size, dtype)
    return jnp.maximum(jnp.sum(_counted(labels, ignore_index), dtype=jnp.int32), 1).astype(dtype)


def _reduced(losses: Any, labels: Any, ignore_index: int | None, reduction: str) -> Any:
    losses = jnp.where(_counted(labels, ignore_index), losses, 0)
    return losses if reduction == "none" else jnp.sum(losses) / _divisor(labels, ignore_index, reduction, losses.dtype)


def _nll(probs: Any, labels: Any, ignore_index: int | None, reduction: str, log_prob: bool) -> Any:
    found = _of_labels(probs, labels)
    least = 6.104e-5 if probs.dtype == jnp.float16 else 1e-7
    losses = -found if log_prob else -jnp.log(jnp.maximum(found, least))
    return _reduced(losses, labels, ignore_index, reduction).astype(probs.dtype)


def _nll_gradient(
    grads: Sequence[Any],
    inputs: Sequence[Any],
    _outputs: Sequence[Any],
    ignore_index: int | None,
    reduction: str,
    log_prob: bool,
) -> list[Any]:
    probs, labels = inputs
    g = at_least_float32(grads[0])
    g = -g / _divisor(labels, ignore_index, reduction, g.dtype)
    if not log_prob:
        least = 6.104e-5 if probs.dtype == jnp.float16 else 1e-10
        g = g / jnp.maximum(_of_labels(probs, labels), least)
    return [_at_labels(jnp.where(_counted(labels, ignore_index), g, 0), labels, probs.shape[-1]), None]


def _reduced_oracle(losses: Any, labels: Any, ignore_index: int | None, reduction: str) -> Any:
    kept = np.ones(labels.shape, bool) if ignore_index is None else labels != ignore_index
    losses = np.where(kept, losses, 0)
    if reduction == "none":
        return losses
    if reduction == "sum" or not losses.size:
        return losses.sum() if reduction == "sum" or ignore_index is not None else np.nan
    return losses.sum() / max(1, int(kept.sum()))


def _found_oracle(probs: Any, labels: Any) -> Any:
    found = np.zeros(labels.shape)
    for item, label in np.ndenumerate(labels):
        if 0 <= int(label) < probs.shape[-1]:
            found[item] = probs[(*item, int(label))]
    return found


def _nll_oracle(
    probs: Any, labels: Any, ignore_index: int | None = None, reduction: str = "mean", log_prob: bool = False
) -> Any:
    found = _found_oracle(probs, labels)
    losses = -found if log_prob else -np.log(np.maximum(found, 1e-7))
    return _reduced_oracle(losses, labels, ignore_index, reduction)


_THREE = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]], np.float32)
_LABELS = np.array([0, 2, 1], np.int32)


def _nll_samples() -> Sequence[Sample]:
    deep = np.resize(_THREE, (2, 2, 3)).astype(np.float32)
    deep_labels = np.array([[0, 1], [-1, 2]], np.int64)
    many = np.full((4096, 4), 0.25, np.float16)
    return (
        sample(_THREE, _LABELS),
        sample(_THREE, _LABELS, 2),
        sample(_THREE, _LABELS, reduction="sum"),
        sample(_THREE, _LABELS, 1, "none"),
        sample(np.log(_THREE), _LABELS, log_prob=True),
        sample(np.log(_THREE), _LABELS, 0, "sum", True),
        sample(deep, deep_labels, -1),
        # Labels that are no class: -1, 3 and 200.
        sample(deep, deep_labels, reduction="none"),
        sample(_THREE, np.array([3, 200, 1], np.uint8), reduction="none"),
        sample(np.log(_THREE), np.array([3, -7, 1], np.int16), reduction="none", log_prob=True),
        sample(_THREE, np.array([1, 1, 1], np.uint32), ignore_index=1),
        sample(_THREE[0], np.int32(1)),
        sample(_THREE.astype(np.float16), _LABELS, tolerance=1e-3),
        sample(_THREE.astype(np.float16), _LABELS, reduction="none", tolerance=1e-3),
        # A sum of 4096 losses that float16 would stop adding to.
        sample(many, np.zeros(4096, np.int32), reduction="sum", tolerance=1e-3),
        sample(_THREE.astype(np.float64), _LABELS, tolerance=1e-15),
        sample(np.array([[0.0, 1.0], [1e-8, 1.0]], np.float32), np.array([0, 0]), reduction="none", smooth=False),
        sample(np.array([[np.nan, 1.0], [np.nan, 0.5]], np.float32), np.array([0, 1]), reduction="none"),
        sample(np.zeros((0, 3), np.float32), np.zeros(0, np.int32), reduction="sum"),
        sample(np.zeros((0, 3), np.float32), np.zeros(0, np.int32)),
        sample(np.zeros((2, 0), np.float32), np.zeros(2, np.int32)),
    )


NLL = define(
    "Nll",
    nll_loss,
    lower=_nll,
    rule=_rule,
    dtypes={"probs": FLOATS},
    oracle=_nll_oracle,
    samples=_nll_samples,
    gradient=Gradient(_nll_gradient, wrt=(0,)),
    differences=(
        "its gradient is never fused with that of `softmax`, which would bypass the least probability; the gradient "
        "with `log_prob` does not need `probs`"
    ),
)

# The loss with the gradient of the scores


def nll_loss_with_softmax_grad(
    probs: Tensor,
    labels: Tensor,
    loss_grad: float | Tensor = 1,
    ignore_index: int | None = None,
    reduction: REDUCTION_TYPE = "mean",
) -> tuple[Tensor, Tensor]:
    """Return the loss of ``probs = softmax(x)`` and its gradient with respect to ``x``, to start a backward pass with.

    The loss of an item is ``-log(probability of its label + 1e-7)``. The gradient is
    ``(probs - one_hot(labels)) * loss_grad``, divided as the mean is. Float16 is computed in float32. The op has no
    gradient itself.

    Args:
        probs: As for `nll_loss`, like `labels`, `ignore_index` and `reduction`.
        labels: The right classes. One that is no class has the probability 0, and nothing is subtracted for it.
        loss_grad: Scales the gradient, not the loss: a number, which becomes a float32 constant, or a tensor of any
            float dtype; a scalar or, with ``reduction="none"``, of the shape of `labels`.
        ignore_index: Items with this label have no loss and no gradient, and do not count for the mean.
        reduction: ``"mean"`` or ``"sum"`` of the items' losses, or ``"none"`` for each of them.

    Returns:
        The loss, a scalar or of the shape of `labels`, and the gradient, of the shape of `probs`; both of the
        dtype of `probs`.

    Raises:
        PopxlValueError: (a `ValueError`) if `reduction` is another string.
        CoreError: (a `RuntimeError`) if shapes or dtypes do not fit.

    Example:
        >>> import popxl
        >>> from popxl import ops
        >>> with popxl.Ir().main_graph:
        ...     scores, labels = popxl.variable([[0.5, 2.0], [1.0, -1.0]]), popxl.variable([1, 0])
        ...     loss, dx = ops.nll_loss_with_softmax_grad(ops.softmax(scores, -1), labels)
        >>> loss.shape, dx.shape
        ((), (2, 2))
    """
    _check_reduction(reduction)
    check_in_graph(get_current_graph(), probs=probs, labels=labels)
    _rule(ShapeDtype(probs.shape, probs.dtype), ShapeDtype(labels.shape, labels.dtype), None, reduction)
    if not isinstance(loss_grad, Tensor):
        loss_grad = constant(loss_grad, dtypes.float32, name="loss_grad")
    loss, dx = NLL_WITH_SOFTMAX_GRAD.emit(
        {"probs": probs, "labels": labels, "loss_grad": loss_grad},
        ("loss", "dx"),
        ignore_index=_index(ignore_index),
        reduction=reduction,
    )
    return loss, dx


def _with_gradient_rule(
    probs: ShapeDtype, labels: ShapeDtype, loss_grad: ShapeDtype, ignore_index: int | None, reduction: str
) -> tuple[ShapeDtype, ...]:
    loss = _rule(probs, labels, ignore_index, reduction)
    if loss_grad.shape not in ((), loss.shape):
        raise CoreError(
            f"`loss_grad` has the shape {list(loss_grad.shape)}, but the loss has {list(loss.shape)}.",
            hint="pass a scalar, or with reduction='none' one number for each label",
        )
    return loss, probs


def _with_gradient(
    probs: Any, labels: Any, loss_grad: Any, ignore_index: int | None, reduction: str
) -> tuple[Any, ...]:
    wide = at_least_float32(probs)
    loss = _reduced(-jnp.log(_of_labels(probs, labels) + 1e-7), labels, ignore_index, reduction)
    scale = jnp.broadcast_to(loss_grad.astype(wide.dtype), labels.shape)
    scale = (scale / _divisor(labels, ignore_index, reduction, wide.dtype))[..., None]
    dx = (wide - _at_labels(jnp.ones(labels.shape, wide.dtype), labels, probs.shape[-1])) * scale
    dx = jnp.where(_counted(labels, ignore_index)[..., None], dx, 0)
    return loss.astype(probs.dtype), dx.astype(probs.dtype)


def _with_gradient_oracle(
    probs: Any, labels: Any, loss_grad: Any = 1, ignore_index: int | None = None, reduction: str = "mean"
) -> Any:
    loss = _reduced_oracle(-np.log(_found_oracle(probs, labels) + 1e-7), labels, ignore_index, reduction)
    dx = np.zeros(probs.shape)
    items = sum(ignore_index is None or int(label) != ignore_index for label in labels.ravel())
    for item, label in np.ndenumerate(labels):
        if ignore_index is None or int(label) != ignore_index:
            scale = np.broadcast_to(loss_grad, labels.shape)[item] / (items if reduction == "mean" else 1)
            for k in range(probs.shape[-1]):
                dx[(*item, k)] = (probs[(*item, k)] - (k == int(label))) * scale
    return loss, dx


def _with_gradient_samples() -> Sequence[Sample]:
    half = _THREE.astype(np.float16)
    each = np.array([1.0, -2.0, 0.5], np.float32)
    return (
        sample(_THREE, _LABELS),
        sample(_THREE, _LABELS, 2.5, reduction="sum"),
        sample(_THREE, _LABELS, ignore_index=2),
        sample(_THREE, _LABELS, np.float32(3.0), 1, "none"),
        sample(_THREE, _LABELS, each, reduction="none"),
        # A gradient that float16 could not hold before it is divided.
        sample(half, _LABELS, np.float32(1e5), tolerance=1e-3),
        sample(half, _LABELS, each, reduction="none", tolerance=1e-3),
        sample(_THREE.astype(np.float64), _LABELS, np.float64(0.1), tolerance=1e-15),
        sample(_THREE, np.array([-1, 3, 1], np.int64), -0.5, reduction="none"),
        sample(np.resize(_THREE, (2, 2, 3)), np.array([[7, 1], [7, 2]], np.uint8), 1, 7),
        sample(_THREE, np.array([1, 1, 1], np.int32), ignore_index=1),
        sample(_THREE[0], np.int32(1), loss_grad=4),
        sample(np.array([[0.0, 1.0], [np.nan, 1.0]], np.float32), np.array([0, 5]), 1, 5),
        sample(np.zeros((0, 3), np.float32), np.zeros(0, np.int32), reduction="sum"),
    )


NLL_WITH_SOFTMAX_GRAD = define(
    "NlllWithSoftmaxGradDirect",
    nll_loss_with_softmax_grad,
    lower=_with_gradient,
    rule=_with_gradient_rule,
    dtypes={"probs": FLOATS, "loss_grad": FLOATS},
    oracle=_with_gradient_oracle,
    samples=_with_gradient_samples,
    gradient=None,
    differences="shapes and dtypes are checked when the op is made; a `reduction` that is refused leaves no constant",
)
