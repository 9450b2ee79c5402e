"""One training step of a transformer stack in memory, against hand-written JAX and torch.

Targets: a step takes at most 1.05x that of the best hand-written JAX and 1.15x that of torch with its fused AdamW; the
first step, everything before it included (building, compilation, copying the weights), at most 0.2x that of JAX's
one-jit version.

The model: blocks of attention and a feed-forward layer (pre-norm, GELU, float32), loss the mean of the squared output,
Adam. Sides, timed in turn in one process:

* ``popxl``: one graph for a layer, its gradient graph, and one graph for Adam, each called once per layer;
* ``jax one jit``: everything in one `jit`, state donated;
* ``jax scan``: the layers stacked, `lax.scan` over them, state donated;
* ``jax layers``: a jitted layer, its jitted backward pass and Adam, called in a Python loop, state donated;
* ``torch``: eager, `torch.optim.AdamW(fused=True)` with no weight decay.

All sides start from the same weights, drawn before anything is timed, and see the same input; their losses after the
timed steps are compared. The process touches as much memory as one side needs before the first side is built, since a
virtual machine is slow to hand out pages for the first time, and the first side would pay for it. A step ends when the
weights are updated, not when the loss is known. Not measured: data loading, other precisions, devices other than the
CPU, and memory.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from _measure import OtherLoad, alternate, median_ratio, print_table, print_verdict, ratio, spread

import popxl
from popxl import ops, transforms
from popxl.ops import var_updates
from popxl.tensor import Tensor

RATE, BETA1, BETA2, EPS = 1e-5, 0.9, 0.999, 1e-8
Weights = dict[str, np.ndarray]
Step = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of the model: layers, features, heads, samples, tokens of each."""

    layers: int = 16
    width: int = 1024
    heads: int = 16
    batch: int = 8
    tokens: int = 128

    @property
    def rows(self) -> int:
        return self.batch * self.tokens


def layer_shapes(sizes: Sizes) -> dict[str, tuple[int, ...]]:
    d = sizes.width
    return {
        "norm1_w": (d,), "norm1_b": (d,), "qkv_w": (d, 3 * d), "qkv_b": (3 * d,), "out_w": (d, d), "out_b": (d,),
        "norm2_w": (d,), "norm2_b": (d,), "up_w": (d, 4 * d), "up_b": (4 * d,), "down_w": (4 * d, d), "down_b": (d,),
    }  # fmt: skip


@cache
def initial_weights(sizes: Sizes, layer: int) -> Weights:
    """The same arrays for every side, none of which may change them."""
    rng = np.random.default_rng(layer)

    def one(name: str, shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) == 2:
            return rng.standard_normal(shape, np.float32) * np.float32(0.02)
        return (np.ones if name.startswith("norm") and name.endswith("_w") else np.zeros)(shape, np.float32)

    return {name: one(name, shape) for name, shape in layer_shapes(sizes).items()}


def input_data(sizes: Sizes) -> np.ndarray:
    return np.random.default_rng(99).standard_normal((sizes.rows, sizes.width), np.float32)


# popxl


def popxl_layer(sizes: Sizes, x: Tensor, w: Mapping[str, Tensor]) -> Tensor:
    """One block; rows of `x` are tokens."""
    batch, tokens, heads, d = sizes.batch, sizes.tokens, sizes.heads, sizes.width
    h = ops.layer_norm(x, w["norm1_w"], w["norm1_b"])
    qkv = (h @ w["qkv_w"] + w["qkv_b"]).reshape((batch, tokens, 3, heads, d // heads))
    q, k, v = (
        ops.squeeze(part, [2]).transpose(order)
        for part, order in zip(ops.split(qkv, 3, axis=2), [(0, 2, 1, 3), (0, 2, 3, 1), (0, 2, 1, 3)], strict=True)
    )
    scores = ops.softmax((q @ k) * (d // heads) ** -0.5, -1)
    attended = (scores @ v).transpose((0, 2, 1, 3)).reshape((sizes.rows, d))
    x = x + (attended @ w["out_w"] + w["out_b"])
    h = ops.layer_norm(x, w["norm2_w"], w["norm2_b"])
    return x + (ops.geluerf(h @ w["up_w"] + w["up_b"]) @ w["down_w"] + w["down_b"])


def popxl_adam(
    weights: list[popxl.TensorByRef],
    firsts: list[popxl.TensorByRef],
    seconds: list[popxl.TensorByRef],
    steps: list[popxl.TensorByRef],
    grads: list[Tensor],
) -> None:
    for w, m, v, t, g in zip(weights, firsts, seconds, steps, grads, strict=True):
        var_updates.accumulate_moving_average_(m, g, BETA1)
        var_updates.accumulate_moving_average_square_(v, g, BETA2)
        x = var_updates.adam_updater(m, v, time_step=t, beta1=BETA1, beta2=BETA2, epsilon=EPS)
        ops.scaled_add_(w, x, b=-RATE)


def popxl_step(sizes: Sizes) -> Step:
    ir = popxl.Ir()
    names = list(layer_shapes(sizes))
    with ir.main_graph, popxl.in_sequence():
        x_in = popxl.h2d_stream((sizes.rows, sizes.width), popxl.float32)
        layers = [
            [popxl.variable(value, name=f"{name}_{i}") for name, value in initial_weights(sizes, i).items()]
            for i in range(sizes.layers)
        ]
        state = [[[popxl.variable(np.zeros(w.shape, np.float32)) for w in ws] for ws in layers] for _ in range(2)]
        steps = [[popxl.variable(0.0) for _ in ws] for ws in layers]
        x = ops.host_load(x_in)

        def layer(x: Tensor, weights: list[Tensor]) -> Tensor:
            return popxl_layer(sizes, x, dict(zip(names, weights, strict=True)))

        def loss(x: Tensor) -> tuple[Tensor, Tensor]:
            return ops.mean(x * x), x * (2.0 / (sizes.rows * sizes.width))

        graph = ir.create_graph(layer, x, layers[0])
        info = transforms.autodiff(graph, grads_provided=graph.outputs[:1])
        adam = ir.create_graph(popxl_adam, layers[0], state[0][0], state[1][0], steps[0], layers[0])
        calls = []
        for ws in layers:
            calls.append(ops.call_with_info(graph, x, ws))
            x = calls[-1].outputs[0]
        value, grad = ops.call(ir.create_graph(loss, x), x)
        for i in reversed(range(sizes.layers)):
            grad, *grads = ops.call(info.graph, grad, inputs_dict=info.inputs_dict(calls[i]))
            ops.call(adam, layers[i], state[0][i], state[1][i], steps[i], grads)
        out = popxl.d2h_stream((), popxl.float32)
        ops.host_store(out, value)
    session = popxl.Session(ir)
    data = {x_in: input_data(sizes)}
    session.__enter__()

    def step() -> float:
        value = session.run(data)[out]
        session.wait()
        return float(value)

    return step


# jax


def jax_layer(sizes: Sizes, w: Mapping[str, jax.Array], x: jax.Array) -> jax.Array:
    def norm(x: jax.Array, weight: jax.Array, bias: jax.Array) -> jax.Array:
        mean = x.mean(-1, keepdims=True)
        variance = ((x - mean) ** 2).mean(-1, keepdims=True)
        return (x - mean) * jax.lax.rsqrt(variance + 1e-5) * weight + bias

    d, heads = sizes.width, sizes.heads
    h = norm(x, w["norm1_w"], w["norm1_b"])
    qkv = (h @ w["qkv_w"] + w["qkv_b"]).reshape(sizes.batch, sizes.tokens, 3, heads, d // heads)
    q, k, v = qkv.transpose(2, 0, 3, 1, 4)
    scores = jax.nn.softmax(q @ k.swapaxes(-1, -2) * (d // heads) ** -0.5, -1)
    attended = (scores @ v).transpose(0, 2, 1, 3).reshape(sizes.rows, d)
    x = x + attended @ w["out_w"] + w["out_b"]
    h = norm(x, w["norm2_w"], w["norm2_b"])
    return x + jax.nn.gelu(h @ w["up_w"] + w["up_b"], approximate=False) @ w["down_w"] + w["down_b"]


def jax_adam(state, grads, t):
    weights, firsts, seconds = state
    firsts = jax.tree.map(lambda m, g: BETA1 * m + (1 - BETA1) * g, firsts, grads)
    seconds = jax.tree.map(lambda v, g: BETA2 * v + (1 - BETA2) * g * g, seconds, grads)
    c1, c2 = 1 - BETA1**t, 1 - BETA2**t
    weights = jax.tree.map(lambda w, m, v: w - RATE * (m / c1) / (jnp.sqrt(v / c2) + EPS), weights, firsts, seconds)
    return weights, firsts, seconds


def jax_state(weights):
    weights = jax.tree.map(jnp.array, weights)
    return weights, jax.tree.map(jnp.zeros_like, weights), jax.tree.map(jnp.zeros_like, weights)


def jax_whole_step(sizes: Sizes, *, scan: bool) -> Step:
    layers = [initial_weights(sizes, i) for i in range(sizes.layers)]
    weights = {name: np.stack([w[name] for w in layers]) for name in layers[0]} if scan else layers

    def loss(weights, x):
        if scan:
            x, _ = jax.lax.scan(lambda x, w: (jax_layer(sizes, w, x), None), x, weights)
        else:
            for w in weights:
                x = jax_layer(sizes, w, x)
        return (x * x).mean()

    def update(state, t, x):
        value, grads = jax.value_and_grad(loss)(state[0], x)
        return jax_adam(state, grads, t + 1), t + 1, value

    return _kept(jax.jit(update, donate_argnums=(0, 1)), jax_state(weights), input_data(sizes))


def _kept(update, state, data: np.ndarray) -> Step:
    """A step that keeps the state between its calls."""
    held = [state, jnp.float32(0)]

    def step() -> float:
        held[0], held[1], value = jax.block_until_ready(update(held[0], held[1], jnp.asarray(data)))
        return float(value)

    return step


def jax_layers_step(sizes: Sizes) -> Step:
    block = partial(jax_layer, sizes)
    # The backward pass of a layer needs its residuals: they come out of the forward pass as a function over arrays.
    forward = jax.jit(lambda w, x: jax.vjp(block, w, x))

    @partial(jax.jit, donate_argnums=0)
    def backward(state, pull, grad, t):
        grads, grad = pull(grad)
        return jax_adam(state, grads, t), grad

    @jax.jit
    def loss(x):
        return jax.value_and_grad(lambda x: (x * x).mean())(x)

    def update(states, t, x):
        t = t + 1
        pulls = []
        for state in states:
            x, pull = forward(state[0], x)
            pulls.append(pull)
        value, grad = loss(x)
        for i in reversed(range(len(states))):
            states[i], grad = backward(states[i], pulls.pop(), grad, t)
        return states, t, value

    return _kept(update, [jax_state(initial_weights(sizes, i)) for i in range(sizes.layers)], input_data(sizes))


# torch


def torch_step(sizes: Sizes) -> Step:
    import torch
    import torch.nn.functional as nn

    d, heads = sizes.width, sizes.heads
    layers = [
        {name: torch.from_numpy(v.copy()).requires_grad_() for name, v in initial_weights(sizes, i).items()}
        for i in range(sizes.layers)
    ]
    optimiser = torch.optim.AdamW(
        [v for w in layers for v in w.values()], lr=RATE, betas=(BETA1, BETA2), eps=EPS, weight_decay=0.0, fused=True
    )
    data = torch.from_numpy(input_data(sizes))

    def layer(w, x):
        h = nn.layer_norm(x, (d,), w["norm1_w"], w["norm1_b"])
        qkv = torch.addmm(w["qkv_b"], h, w["qkv_w"]).view(sizes.batch, sizes.tokens, 3, heads, d // heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = nn.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(sizes.rows, d)
        x = x + torch.addmm(w["out_b"], attended, w["out_w"])
        h = nn.layer_norm(x, (d,), w["norm2_w"], w["norm2_b"])
        return x + torch.addmm(w["down_b"], nn.gelu(torch.addmm(w["up_b"], h, w["up_w"])), w["down_w"])

    def step() -> float:
        x = data
        for w in layers:
            x = layer(w, x)
        loss = (x * x).mean()
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


SIDES: Mapping[str, Callable[[Sizes], Step]] = {
    "popxl": popxl_step,
    "jax one jit": partial(jax_whole_step, scan=False),
    "jax scan": partial(jax_whole_step, scan=True),
    "jax layers": jax_layers_step,
    "torch": torch_step,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default=",".join(SIDES), help="names of sides, joined by commas")
    arguments = parser.parse_args()
    sizes = Sizes(layers=arguments.layers, width=arguments.width, heads=max(1, arguments.width // 64))
    first: dict[str, float] = {}
    steps: dict[str, Step] = {}
    losses: dict[str, list[float]] = {}
    state_bytes = 3 * sum(w.nbytes for i in range(sizes.layers) for w in initial_weights(sizes, i).values())
    np.ones(2 * state_bytes, np.uint8)
    with OtherLoad() as load:
        for name in arguments.only.split(","):
            started = time.perf_counter()
            step = SIDES[name](sizes)
            built = time.perf_counter()
            losses[name] = [step()]
            first[name] = time.perf_counter() - started
            print(
                f"{name}: built in {built - started:.1f} s, first step {time.perf_counter() - built:.1f} s", flush=True
            )
            steps[name] = lambda step=step, name=name: losses[name].append(step())
            gc.collect()
        timings = alternate(steps, arguments.rounds)
    rows = []
    for name, timing in timings.items():
        rows.append([
            name, spread(timing.wall_s), ratio(timings["popxl"], timing), f"{first[name]:.1f}",
            f"{first['popxl'] / first[name]:.2f}", f"{losses[name][-1]:.6f}",
        ])  # fmt: skip
    header = ("side", "step, s", "popxl / it", "to the first result, s", "popxl / it", "last loss")
    print_table(header, rows)
    print(load.text())
    rivals = [name for name in timings if name.startswith("jax")]
    if rivals:
        best = min(rivals, key=lambda name: 1 / median_ratio(timings["popxl"], timings[name]))
        print_verdict(f"a step over that of {best}, the best JAX", median_ratio(timings["popxl"], timings[best]), 1.05)
    if "torch" in timings:
        print_verdict("a step over torch's", median_ratio(timings["popxl"], timings["torch"]), 1.15)
    if "jax one jit" in timings:
        print_verdict("the first result over one jit's", first["popxl"] / first["jax one jit"], 0.2)
    values = [v[-1] for v in losses.values()]
    if max(values) - min(values) > 1e-4 * abs(values[0]):
        sys.exit(f"the losses differ: {losses}")


if __name__ == "__main__":
    main()
