"""The gradients of random functions: as jax finds them, and as popxl does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from declared import store
from function_kinds import COUNT, FLAG, KINDS, Spec, const, index
from random_functions import Block, Function, Step

import popxl
from popxl import ops, transforms
from popxl.tensor import Tensor

# What they mean in jax


def shape_of(spec: Spec) -> tuple[int, ...]:
    return () if spec in (COUNT, FLAG) else spec


def random_values(shape: tuple[int, ...], seed: Any) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def evaluate(subs: Sequence[Block], block: Block, inputs: Sequence[Any]) -> list[Any]:
    """The outputs of a block. Counts and flags are Python numbers, so that Python can branch and loop."""
    values = list(inputs)
    for step in block.steps:
        args = [values[i] for i in step.args]
        values += _results(subs, block, step, args, len(values))
    return [values[i] for i in block.outputs]


def _results(subs: Sequence[Block], block: Block, step: Step, args: Sequence[Any], place: int) -> Sequence[Any]:
    match step.kind:
        case "constant":
            return [random_values(block.specs[place], step.extra)]
        case "count":
            return [step.extra]
        case "ends":
            return [args[0][0], args[0][1]]
        case "call":
            return evaluate(subs, subs[step.extra[0]], args)
        case "conditional":
            then_block, else_block = (subs[g] for g in step.extra)
            split = 1 + len(then_block.inputs)
            return evaluate(subs, then_block, args[1:split]) if args[0] else evaluate(subs, else_block, args[split:])
        case "repeat":
            g, count = step.extra
            state = list(args)
            for _ in range(count):
                state[: len(subs[g].outputs)] = evaluate(subs, subs[g], state)
            return state[: len(subs[g].outputs)]
        case kind:
            return [KINDS[kind].jax(*args)]


def expected(function: Function) -> list[np.ndarray]:
    """The gradients of the required inputs, in float64."""
    inputs = arguments(function)

    def loss(*wanted: Any) -> Any:
        values = list(inputs)
        for i, value in zip(function.required, wanted, strict=True):
            values[i] = value
        outputs = evaluate(function.subs, function.main, values)
        return sum(jnp.sum(outputs[k] * s) for k, s in zip(function.provided, seeds(function), strict=True))

    with jax.enable_x64(True):
        wanted = [jnp.asarray(inputs[i], jnp.float64) for i in function.required]
        return [np.asarray(g) for g in jax.grad(loss, tuple(range(len(wanted))))(*wanted)]


def arguments(function: Function) -> list[Any]:
    """The values of the inputs."""
    return [
        function.seed % 8 if spec == COUNT else random_values(spec, (function.seed, i))
        for i, spec in enumerate(function.main.inputs)
    ]


def seeds(function: Function) -> list[np.ndarray]:
    """The gradients of the provided outputs."""
    specs = [function.main.specs[function.main.outputs[k]] for k in function.provided]
    return [random_values(spec, (function.seed, 100 + k)) for k, spec in enumerate(specs)]


# What they are in popxl


def found(function: Function) -> list[np.ndarray]:
    """The gradients of the required inputs, as a session computes them."""
    ir = popxl.Ir()
    with ir.main_graph:
        subs: list[popxl.Graph] = []
        for block in function.subs:
            subs.append(ir.create_graph(_builder(subs, block), *map(_tensor_spec, block.inputs)))
        forward = ir.create_graph(_builder(subs, function.main), *map(_tensor_spec, function.main.inputs))
        provided = [forward.outputs[k] for k in function.provided]
        required = [forward.inputs[i] for i in function.required]
        inputs = [
            popxl.variable(value, popxl.int32 if spec == COUNT else popxl.float32)
            for value, spec in zip(arguments(function), function.main.inputs, strict=True)
        ]
        if function.differentiate_first:
            info = transforms.autodiff(forward, provided, required)
            call = ops.call_with_info(forward, *inputs)
        else:
            call = ops.call_with_info(forward, *inputs)
            info = transforms.autodiff(forward, provided, required)
        gradients = ops.call(info.graph, *map(const, seeds(function)), inputs_dict=info.inputs_dict(call))
        streams = [store(t) for t in gradients]
    with popxl.Session(ir) as session:
        stored = session.run()
    return [np.asarray(stored[s]) for s in streams]


def _tensor_spec(spec: Spec) -> popxl.TensorSpec:
    dtype = {COUNT: popxl.int32, FLAG: popxl.bool}.get(spec, popxl.float32)
    return popxl.TensorSpec(shape_of(spec), dtype)


def _builder(subs: Sequence[popxl.Graph], block: Block) -> Callable[..., list[Tensor]]:
    graphs = list(subs)

    def build(*inputs: Tensor) -> list[Tensor]:
        values = list(inputs)
        for step in block.steps:
            values += _tensors(graphs, block, step, [values[i] for i in step.args], len(values))
        return [values[i] for i in block.outputs]

    return build


def _tensors(
    graphs: Sequence[popxl.Graph], block: Block, step: Step, args: Sequence[Tensor], place: int
) -> Sequence[Tensor]:
    match step.kind:
        case "constant":
            return [const(random_values(block.specs[place], step.extra))]
        case "count":
            return [index(step.extra)]
        case "ends":
            return [ops.squeeze(t, [0]) for t in ops.split(args[0], 2)]
        case "call":
            return ops.call(graphs[step.extra[0]], *args)
        case "conditional":
            then_graph, else_graph = (graphs[g] for g in step.extra)
            split = 1 + len(then_graph.inputs)
            return ops.conditional(args[0], then_graph, else_graph, args[1:split], args[split:])
        case "repeat":
            return ops.repeat(graphs[step.extra[0]], step.extra[1], *args)
        case kind:
            return [KINDS[kind].popxl(*args)]
