"""What updates of variables and updaters refuse, and that nothing is left behind (spec ops-updates.md §1-§4)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import popxl
from popxl.errors import CoreError, PopxlTypeError, PopxlValueError
from popxl.ops import var_updates as up
from popxl.tensor import Tensor

Call = Callable[[], Any]


def tensor(*shape: int, dtype: Any = np.float32) -> Tensor:
    return popxl.variable(np.ones(shape, dtype), name="x")


def moments(*shape: int) -> tuple[Tensor, Tensor]:
    return tensor(*shape), tensor(*shape)


def elsewhere() -> Tensor:
    with popxl.gcg().ir.create_empty_graph():
        return popxl.graph_input((), popxl.float32, "elsewhere")


def placed(ipu: int) -> Tensor:
    with popxl.ipu(ipu):
        return popxl.ops.identity(tensor(2), "placed")


SAME_SHAPE: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "accumulate_": up.accumulate_,
    "accumulate_square_": up.accumulate_square_,
    "accumulate_mean_": lambda t, x: up.accumulate_mean_(t, x, 1.0),
    "accumulate_moving_average_": lambda t, x: up.accumulate_moving_average_(t, x, 0.5),
    "accumulate_moving_average_square_": lambda t, x: up.accumulate_moving_average_square_(t, x, 0.5),
    "copy_var_update_": up.copy_var_update_,
    "adam_var_update": lambda t, x: up.adam_var_update(t, x, tensor(), tensor(), 0.5),
}
FACTOR: dict[str, Callable[[Any], Any]] = {
    "accumulate_": lambda f: up.accumulate_(tensor(2), tensor(2), f),
    "accumulate_square_": lambda f: up.accumulate_square_(tensor(2), tensor(2), f),
    "accumulate_mean_": lambda f: up.accumulate_mean_(tensor(2), tensor(2), f),
    "accumulate_moving_average_": lambda f: up.accumulate_moving_average_(tensor(2), tensor(2), f),
    "accumulate_moving_average_square_": lambda f: up.accumulate_moving_average_square_(tensor(2), tensor(2), f),
    "sparse_accumulate_": lambda f: up.sparse_accumulate_(tensor(2), tensor(1), popxl.constant([0]), f=f),
    "accumulator_scale_": lambda f: up.accumulator_scale_(tensor(2), f),
}
NUMBERS: dict[str, Callable[[Any], Any]] = {
    "learning_rate": lambda f: up.adam_var_update(*moments(2), *moments(), f),
    "max_weight_norm": lambda f: up.adam_var_update(*moments(2), *moments(), 0.5, f),
    "weight_decay": lambda f: up.adam_updater(*moments(2), tensor(2), weight_decay=f),
    "beta1": lambda f: up.adam_updater(*moments(2), time_step=tensor(), beta1=f, beta2=0.9),
    "beta2": lambda f: up.lamb_updater(*moments(2), time_step=tensor(), beta1=0.9, beta2=f),
    "epsilon": lambda f: up.adamax_updater(*moments(2), time_step=tensor(), epsilon=f),
}
UPDATERS = {"adam": up.adam_updater, "lamb": up.lamb_updater, "adamax": up.adamax_updater}


def refused(call: Call, kind: type[Exception], start: str) -> None:
    """Check the error, and that no op was added."""
    with popxl.Ir().main_graph as graph:
        with pytest.raises(kind) as caught:
            call()
        # An operand may be placed by an op of its own.
        assert [op.type for op in graph.ops if op.type != "Identity"] == []
    assert str(caught.value).startswith(start)
    assert "Hint: " in str(caught.value)


@pytest.mark.parametrize("api", SAME_SHAPE)
def test_nothing_is_broadcast(api: str) -> None:
    x = "x" if api == "adam_var_update" else "X"
    refused(
        lambda: SAME_SHAPE[api](tensor(2, 3), tensor(3)),
        CoreError,
        f"{api} needs `t` and `{x}` of one shape, not [2, 3] and [3].",
    )


def test_a_mean_of_other_shapes_adds_no_constant() -> None:
    with popxl.Ir().main_graph as graph:
        with pytest.raises(CoreError):
            up.accumulate_mean_(tensor(2), tensor(1), 1.0)
        assert list(graph.constants) == []


@pytest.mark.parametrize("api", [api for api in FACTOR if api != "accumulator_scale_"])
def test_a_factor_that_is_a_tensor_is_a_scalar(api: str) -> None:
    name = "step" if api == "accumulate_mean_" else "factor"
    refused(lambda: FACTOR[api](tensor(1)), CoreError, f"The {name} of {api} must be a scalar, not of shape [1].")


def test_a_scale_is_a_scalar_or_one_for_each_element() -> None:
    refused(
        lambda: FACTOR["accumulator_scale_"](tensor(1)),
        CoreError,
        "The factor of accumulator_scale_ must be a scalar or have the shape of `t`, [2], not [1].",
    )


@pytest.mark.parametrize("api", FACTOR)
def test_a_factor_is_a_number_or_a_tensor(api: str) -> None:
    name = "step" if api == "accumulate_mean_" else "f"
    refused(lambda: FACTOR[api]("0.5"), PopxlTypeError, f"`{name}` is '0.5', which is neither a number nor a tensor.")


@pytest.mark.parametrize("api", [api for api in FACTOR if api not in ("accumulate_", "sparse_accumulate_")])
def test_a_factor_must_be_given(api: str) -> None:
    name = "step" if api == "accumulate_mean_" else "f"
    refused(lambda: FACTOR[api](None), PopxlTypeError, f"`{name}` is None, which is neither a number nor a tensor.")


@pytest.mark.parametrize("name", NUMBERS)
def test_settings_are_numbers_or_tensors(name: str) -> None:
    refused(lambda: NUMBERS[name]([0.5]), PopxlTypeError, f"`{name}` is [0.5], which is neither a number nor a tensor.")


@pytest.mark.parametrize("name", NUMBERS)
def test_settings_that_are_tensors_are_scalars(name: str) -> None:
    refused(lambda: NUMBERS[name](tensor(2)), CoreError, f"The {name} of ")


@pytest.mark.parametrize("call", [*FACTOR.values(), *NUMBERS.values()], ids=[*FACTOR, *NUMBERS])
def test_factors_belong_to_the_graph(call: Callable[[Any], Any]) -> None:
    refused(lambda: call(elsewhere()), PopxlValueError, "The input tensor `")


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda t: up.accumulate_(t, tensor()), "t"),
        (lambda t: up.accumulate_(tensor(), t), "X"),
        (lambda t: up.accumulate_mean_(tensor(), t, 1.0), "X"),
        (lambda t: up.copy_var_update_(t, tensor()), "t"),
        (lambda t: up.accumulator_zero_(t), "t"),
        (lambda t: up.sparse_accumulate_(tensor(2), tensor(1), t), "indices"),
        (lambda t: up.sparse_accumulate_(tensor(2), tensor(1), popxl.constant([0]), W=t), "W"),
        (lambda t: up.adam_var_update(tensor(), t, tensor(), tensor(), 0.5), "x"),
        (lambda t: up.adam_var_update(tensor(), tensor(), tensor(), t, 0.5), "r2"),
        (lambda t: up.adam_updater(t, tensor()), "acc_first_order"),
        (lambda t: up.lamb_updater(tensor(), t), "acc_second_order"),
        (lambda t: up.adam_updater(*moments(), t), "weight"),
        (lambda t: up.adamax_updater(*moments(), time_step=t), "time_step"),
    ],
)
def test_tensors_are_tensors_of_the_graph(call: Callable[[Any], Any], argument: str) -> None:
    refused(lambda: call(elsewhere()), PopxlValueError, f"The input tensor `{argument}` is not in the current Graph")
    refused(lambda: call("no tensor"), PopxlTypeError, f"The input `{argument}` is not a Tensor")


@pytest.mark.parametrize("api", [api for api in SAME_SHAPE if api != "adam_var_update"])
def test_operands_are_on_one_ipu(api: str) -> None:
    refused(
        lambda: SAME_SHAPE[api](placed(0), placed(1)),
        PopxlValueError,
        "The input tensors `t` and `X` are located on different IPUs: 0 != 1",
    )


def test_moments_are_on_one_ipu() -> None:
    refused(
        lambda: up.adam_updater(placed(0), placed(1)),
        PopxlValueError,
        "The input tensors `acc_first_order` and `acc_second_order` are located on different IPUs: 0 != 1",
    )


def test_adam_var_update_does_not_check_where_its_operands_are() -> None:
    with popxl.Ir().main_graph:
        up.adam_var_update(placed(0), placed(1), tensor(), tensor(), 0.5)


# dtypes


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda t: up.accumulate_(t, tensor()), "t"),
        (lambda t: up.accumulate_square_(tensor(), t), "X"),
        (lambda t: up.accumulate_moving_average_(tensor(), tensor(), t), "f"),
        (lambda t: up.accumulator_scale_(t, 0.5), "t"),
        (lambda t: up.accumulator_zero_(t), "t"),
        (lambda t: up.sparse_accumulate_(tensor(1), t, popxl.constant(0)), "X"),
        (lambda t: up.adam_var_update(tensor(), tensor(), t, tensor(), 0.5), "r1"),
        (lambda t: up.adam_updater(tensor(), t), "acc_second_order"),
        (lambda t: up.adamax_updater(*moments(), time_step=tensor(), beta1=t), "beta1"),
    ],
)
def test_operands_are_floats(call: Callable[[Tensor], Any], argument: str) -> None:
    refused(lambda: call(popxl.constant(3)), CoreError, f"Unsupported dtype popxl.dtypes.int32 of `{argument}`")


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda t: up.accumulate_mean_(tensor(), tensor(), t), "step"),
        (lambda t: up.adam_updater(*moments(), time_step=t, beta1=0.9, beta2=0.9), "time_step"),
    ],
)
def test_counters_are_numbers(call: Callable[[Tensor], Any], argument: str) -> None:
    refused(lambda: call(tensor(dtype=bool)), CoreError, f"Unsupported dtype popxl.dtypes.bool of `{argument}`")


def test_indices_are_integers() -> None:
    refused(
        lambda: up.sparse_accumulate_(tensor(2), tensor(1), tensor(1)),
        CoreError,
        "Unsupported dtype popxl.dtypes.float32 of `indices`",
    )


def test_a_copy_has_the_dtype_of_what_it_overwrites() -> None:
    refused(
        lambda: up.copy_var_update_(tensor(2), tensor(2, dtype=np.float16)),
        CoreError,
        "copy_var_update_ needs `t` and `X` of one dtype, not float32 and float16.",
    )


# Sparse sums


@pytest.mark.parametrize("axis", [2, -3])
def test_a_sparse_sum_has_the_axis(axis: int) -> None:
    refused(
        lambda: up.sparse_accumulate_(tensor(2, 3), tensor(1, 3), popxl.constant([0]), axis),
        CoreError,
        f"sparse_accumulate_ axis {axis} is outside the acceptable range [-2, 1]",
    )


@pytest.mark.parametrize("shape", [(2, 3), (1, 3, 1), (3,)])
def test_a_sparse_sum_takes_slices_that_fit(shape: tuple[int, ...]) -> None:
    refused(
        lambda: up.sparse_accumulate_(tensor(2, 3), tensor(*shape), popxl.constant([0])),
        CoreError,
        f"sparse_accumulate_ needs `X` of shape [1, 3] for `t` of shape [2, 3] and `indices` of shape [1] on axis 0, "
        f"not {list(shape)}.",
    )


# Updaters


@pytest.mark.parametrize("updater", UPDATERS.values(), ids=UPDATERS)
@pytest.mark.parametrize("decay", [0.1, "tensor"])
def test_weight_decay_needs_the_weight_before_all_else(updater: Callable[..., Tensor], decay: Any) -> None:
    refused(
        lambda: updater(*moments(), weight_decay=tensor() if decay == "tensor" else decay, time_step=tensor()),
        PopxlValueError,
        "Weight decay requires weight to not be None.",
    )


@pytest.mark.parametrize("mode", ["adam", "lamb"])
@pytest.mark.parametrize("betas", [{}, {"beta1": 0.9}, {"beta2": 0.9}], ids=str)
def test_correction_needs_both_betas(mode: str, betas: dict[str, float]) -> None:
    refused(
        lambda: UPDATERS[mode](*moments(), time_step=tensor(), **betas),
        PopxlValueError,
        "Bias correction requires both beta1 and beta2 to not be None.",
    )


def test_adamax_needs_a_time_step() -> None:
    refused(lambda: up.adamax_updater(*moments()), PopxlValueError, "AdaMax requires time_step to not be None.")


@pytest.mark.parametrize("argument", ["beta1", "epsilon"])
def test_adamax_needs_its_settings(argument: str) -> None:
    refused(
        lambda: up.adamax_updater(*moments(), time_step=tensor(), **{argument: None}),
        PopxlTypeError,
        f"`{argument}` is None, which is neither a number nor a tensor.",
    )


@pytest.mark.parametrize("mode", UPDATERS)
def test_moments_have_one_shape(mode: str) -> None:
    refused(
        lambda: UPDATERS[mode](tensor(2), tensor(1), time_step=tensor(), beta1=0.9, **BETA2[mode]),
        CoreError,
        f"{mode}_updater needs `acc_first_order` and `acc_second_order` of one shape, not [2] and [1].",
    )


@pytest.mark.parametrize("mode", UPDATERS)
def test_the_weight_has_the_shape_of_the_moments(mode: str) -> None:
    refused(
        lambda: UPDATERS[mode](*moments(2), tensor(1), tensor(), 0.1, 0.9, **BETA2[mode]),
        CoreError,
        f"{mode}_updater needs `acc_first_order` and `weight` of one shape, not [2] and [1].",
    )


@pytest.mark.parametrize("mode", UPDATERS)
def test_a_time_step_is_a_scalar(mode: str) -> None:
    refused(
        lambda: UPDATERS[mode](*moments(2), time_step=tensor(1), beta1=0.9, **BETA2[mode]),
        CoreError,
        f"The time_step of {mode}_updater must be a scalar, not of shape [1].",
    )


BETA2: dict[str, dict[str, float]] = {"adam": {"beta2": 0.9}, "lamb": {"beta2": 0.9}, "adamax": {}}


# The step


def test_a_step_needs_a_learning_rate() -> None:
    refused(
        lambda: up.adam_var_update(*moments(2), *moments()),
        PopxlValueError,
        "adam_var_update requires learning_rate to not be None.",
    )


@pytest.mark.parametrize("argument", ["r1", "r2"])
def test_norms_are_scalars(argument: str) -> None:
    norms = [tensor, tensor]

    def call() -> None:
        r1, r2 = (make(1) if name == argument else make() for name, make in zip(("r1", "r2"), norms, strict=True))
        up.adam_var_update(*moments(2), r1, r2, 0.5)

    refused(call, CoreError, f"The {argument} of adam_var_update must be a scalar, not of shape [1].")


# Gradients


def gradients_of(update: Callable[[Tensor], Any]) -> Any:
    ir = popxl.Ir()
    with ir.main_graph:

        def body(x: Tensor, time_step: popxl.TensorByRef) -> Tensor:
            update(time_step)
            return popxl.ops.mul(x, x)

        graph = ir.create_graph(body, tensor(), tensor())
        return popxl.transforms.autodiff(graph, grads_required=graph.inputs[:1])


@pytest.mark.parametrize(
    "update",
    [
        lambda t: up.accumulate_(t, t),
        lambda t: up.accumulator_zero_(t),
        lambda t: up.adam_var_update(t, t, t, t, 0.5),
        lambda t: up.adam_updater(t, t, time_step=t, beta1=0.9, beta2=0.9),
    ],
)
def test_a_graph_with_an_update_has_no_gradients(update: Callable[[Tensor], Any]) -> None:
    with pytest.raises(CoreError, match="contains a modifying op"):
        gradients_of(update)


def test_an_updater_without_a_time_step_modifies_nothing() -> None:
    assert len(gradients_of(lambda t: up.adam_updater(t, t)).outputs) == 1


def test_an_updater_has_no_gradient() -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        graph = ir.create_graph(up.adam_updater, *moments())
        with pytest.raises(CoreError, match=r"^\[Autodiff\] Unable to provide required gradient output"):
            popxl.transforms.autodiff(graph)
