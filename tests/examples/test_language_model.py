"""examples/language_model.py: against a plain JAX version, its two forms against each other, and how much it keeps.

The JAX version is differentiated by `jax.grad` and has the dtypes of the example. Its dropout masks come from the
definition of the draws in NumPy (`popxl.ops._threefry`).
"""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import popxl
from popxl.ops._threefry import Stream, bits_on_host
from popxl.runtime.executor import Executor
from popxl.runtime.streaming import BufferSpec, FileTier, StreamingMemory
from popxl.runtime.streaming.tier import Capabilities, ImmutableArray, Tier

Array = Any
STEPS = 8


@pytest.fixture(scope="module")
def tiny(language_model: ModuleType) -> Any:
    return language_model.Config(
        layers=2, width=16, heads=2, length=12, batch=3, micro_batches=2, dropout=0.2, learning_rate=5e-3
    )


@pytest.fixture(scope="module")
def text(language_model: ModuleType) -> np.ndarray[Any, Any]:
    return language_model.read_text(20_000)


# ---------------------------------------------------------------- the oracle


def half(x: Array) -> Array:
    return x.astype(jnp.float16)


def wide(x: Array) -> Array:
    return x.astype(jnp.float32)


def new_seed(seed: np.ndarray[Any, Any], modifier: int) -> np.ndarray[Any, Any]:
    drawn = bits_on_host([seed[0], np.uint32((int(seed[1]) + modifier) % 2**32)], Stream.MODIFY_RANDOM_SEED, ())
    return np.array([seed[0], drawn], np.uint32)


def mask(seed: np.ndarray[Any, Any], shape: tuple[int, ...], rate: float) -> np.ndarray[Any, Any]:
    """What dropout multiplies with, float32: 0, or 1 over the rate of what is kept."""
    return ((bits_on_host(seed, Stream.DROPOUT, shape) / 2**32 >= rate) / (1 - rate)).astype(np.float32)


def masks(config: Any, seed: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """The masks of a micro-batch: after the embedding, then two for each layer."""
    embed_seed, layers_seed = new_seed(seed, 0), new_seed(seed, 1)
    layer_seeds = [new_seed(layers_seed, i) for i in range(config.layers)]
    seeds = [embed_seed, *(new_seed(s, j) for s in layer_seeds for j in (0, 1))]
    return [mask(s, (config.batch * config.length, config.width), config.dropout) for s in seeds]


def drop(x: Array, mask: Array) -> Array:
    return half(wide(x) * mask)


def normalise(x: Array, scale: Array, shift: Array) -> Array:
    x, scale, shift = wide(x), wide(scale), wide(shift)
    centred = x - x.mean(-1, keepdims=True)
    return half(centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + shift)


def product(a: Array, b: Array) -> Array:
    return half(jnp.matmul(a, b, preferred_element_type=jnp.float32))


def forward(config: Any, weights: dict[str, Array], symbols: Array, masks: list[Array]) -> Array:
    """Scores, float32."""
    d, heads = config.width, config.heads
    x = weights["symbols"][symbols] + weights["positions"]
    x = drop(x.reshape(-1, d), masks[0])
    for i in range(config.layers):
        w = {name.split(".")[1]: v for name, v in weights.items() if name.startswith(f"layer{i}.")}
        h = product(normalise(x, w["norm1_scale"], w["norm1_shift"]), w["qkv"])
        q, k, v = (
            part.reshape(config.batch, config.length, heads, d // heads).swapaxes(1, 2) for part in jnp.split(h, 3, 1)
        )
        scores = wide(product(half(wide(q) * (d // heads) ** -0.5), k.swapaxes(2, 3)))
        scores = jnp.where(np.tri(config.length, dtype=bool), scores, -jnp.inf)
        attended = product(half(jax.nn.softmax(scores)), v).swapaxes(1, 2).reshape(x.shape)
        x = x + drop(product(attended, w["out"]), masks[1 + 2 * i])
        h = product(normalise(x, w["norm2_scale"], w["norm2_shift"]), w["up"])
        h = half(jax.nn.gelu(wide(h), approximate=True))
        x = x + drop(product(h, w["down"]), masks[2 + 2 * i])
    x = normalise(x, weights["norm_scale"], weights["norm_shift"])
    return wide(product(x, weights["symbols"].T))


def scaled_loss(config: Any, weights: dict[str, Array], batch: Array, masks: list[Array]) -> tuple[Array, Array]:
    """The loss to differentiate, and the loss to report."""
    scores = forward(config, weights, batch[:, :-1], masks)
    chosen = jax.nn.log_softmax(scores)[np.arange(len(scores)), batch[:, 1:].ravel()]
    # The loss that PopXL reports, but not its gradient, takes the logarithm of the probability plus 1e-7.
    return -chosen.mean() * 1024 / config.micro_batches, -jnp.log(jnp.exp(chosen) + 1e-7).mean()


def jax_losses(
    example: ModuleType, config: Any, text: np.ndarray[Any, Any]
) -> tuple[np.ndarray[Any, Any], dict[str, Array]]:
    """The losses of `STEPS` steps and the weights after them."""
    outer, layers = example.initial_weights(config)
    named = {**outer, **{f"layer{i}.{name}": w for i, of_layer in enumerate(layers) for name, w in of_layer.items()}}
    gradient = jax.jit(jax.grad(scaled_loss, argnums=1, has_aux=True), static_argnums=0)
    masters = {name: jnp.asarray(w) for name, w in named.items()}
    firsts, seconds = jax.tree.map(jnp.zeros_like, masters), jax.tree.map(jnp.zeros_like, masters)
    losses = []
    for step in range(STEPS):
        weights = jax.tree.map(half, masters)
        sums = jax.tree.map(jnp.zeros_like, masters)
        for batch, seed in zip(example.draw_batches(text, config, step), example.draw_seeds(config, step), strict=True):
            grads, loss = gradient(config, weights, batch, masks(config, seed))
            sums = jax.tree.map(lambda total, g: total + wide(g) / 1024, sums, grads)
            losses.append(float(loss))
        firsts = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, firsts, sums)
        seconds = jax.tree.map(lambda v, g: 0.99 * v + 0.01 * g * g, seconds, sums)
        for name, w in masters.items():
            m, v = firsts[name] / (1 - 0.9 ** (step + 1)), seconds[name] / (1 - 0.99 ** (step + 1))
            decay = 0.01 * w if w.ndim > 1 else 0.0
            masters[name] = w - config.learning_rate * (m / (jnp.sqrt(v) + 1e-8) + decay)
    return np.reshape(losses, (STEPS, -1)), masters


@pytest.fixture(scope="module")
def resident(language_model: ModuleType, tiny: Any, text: np.ndarray[Any, Any]) -> Any:
    return language_model.train(tiny, STEPS, text)


def test_training_is_that_of_plain_jax(
    language_model: ModuleType, tiny: Any, text: np.ndarray[Any, Any], resident: Any
) -> None:
    losses, weights = jax_losses(language_model, tiny, text)
    np.testing.assert_allclose(resident.losses, losses, rtol=0, atol=1e-4)
    # Where a gradient is next to nothing, its sign alone moves a weight by Adam's whole step: so not the largest.
    away = {name: np.abs(resident.weights[f"master.{name}"] - w).mean() for name, w in weights.items()}
    assert max(away.values()) < 1e-4, away


# ---------------------------------------------------------------- the two forms


@pytest.mark.parametrize("tier", ["ram", "file"])
def test_phased_training_agrees_bit_for_bit(
    language_model: ModuleType, tiny: Any, text: np.ndarray[Any, Any], resident: Any, tier: str, tmp_path: Path
) -> None:
    memory = StreamingMemory(tier if tier == "ram" else f"file:{tmp_path / 'rows'}")
    phased = language_model.train(tiny, STEPS, text, phased=True, memory=memory)
    assert memory.counters.loads > 0
    assert phased.losses.tobytes() == resident.losses.tobytes()
    assert list(phased.weights) == list(resident.weights)
    for name, w in resident.weights.items():
        assert phased.weights[name].tobytes() == w.tobytes(), name


def test_more_layers_agree_bit_for_bit_too(language_model: ModuleType, tiny: Any, text: np.ndarray[Any, Any]) -> None:
    deeper = replace(tiny, layers=5, micro_batches=1, dropout=0.0)
    forms = [language_model.train(deeper, 2, text, phased=phased) for phased in (False, True)]
    assert forms[0].losses.tobytes() == forms[1].losses.tobytes()
    assert all(forms[0].weights[name].tobytes() == w.tobytes() for name, w in forms[1].weights.items())


# ---------------------------------------------------------------- learning and writing


def test_a_few_steps_lower_the_loss(resident: Any) -> None:
    losses = resident.losses.mean(axis=1)
    assert losses[0] == pytest.approx(np.log(256), abs=0.1)
    assert losses[-1] < losses[0] - 0.5


def test_what_is_written_continues_the_start(language_model: ModuleType, tiny: Any, resident: Any) -> None:
    written = language_model.write(tiny, list(resident.weights.values()), b"def main(", 20)
    assert written.startswith(b"def main(")
    assert len(written) == len(b"def main(") + 20


def test_the_writer_scores_as_jax_does(language_model: ModuleType, tiny: Any, resident: Any) -> None:
    weights = {name.removeprefix("master."): half(w) for name, w in resident.weights.items()}
    symbols = np.arange(tiny.length, dtype=np.int32)[None]
    alone = replace(tiny, batch=1)
    expected = forward(alone, weights, symbols, [1.0] * (1 + 2 * tiny.layers))
    ir, symbols_stream, scores_stream = language_model.build_writer(tiny, list(resident.weights.values()))
    with popxl.Session(ir) as session:
        scores = session.run({symbols_stream: symbols})[scores_stream]
    np.testing.assert_allclose(scores, expected, rtol=0, atol=2e-3)


# ---------------------------------------------------------------- what the phased form keeps


class CountingTier(Tier):
    """The file tier, whose rows are counted while anything holds them."""

    # One transfer at a time: what is held is what the program holds.
    capabilities = Capabilities()

    def __init__(self, directory: Path, meter: Meter) -> None:
        super().__init__()
        self._files, self._meter = FileTier(directory), meter

    def _attach(self, buffers: tuple[BufferSpec, ...]) -> None:
        self._files.open(buffers)

    def _read(self, spec: BufferSpec, entry: int) -> ImmutableArray:
        row = self._files.load(spec.buffer_id, entry)
        self._meter.rows.append(weakref.ref(row))
        self._meter.sample()
        return row

    def _write(self, spec: BufferSpec, entry: int, value: ImmutableArray) -> None:
        self._meter.sample()
        self._files.store(spec.buffer_id, entry, value)

    def _detach(self) -> None:
        self._files.close()


class Meter:
    """The largest sum of bytes of all live device arrays and of all rows that were loaded and are still held.

    On a CPU, an executable uses a loaded row in place: it is no device array of its own, so it is counted as a row.
    """

    def __init__(self) -> None:
        self.rows: list[weakref.ref[Any]] = []
        self.peak = 0

    def sample(self) -> None:
        # XLA lets go of host memory that it used in place when Python collects garbage, which may be long after.
        gc.collect(0)
        self.rows = [row for row in self.rows if row() is not None]
        held = [row() for row in self.rows]
        arrays = sum(a.nbytes for a in jax.live_arrays())
        self.peak = max(self.peak, arrays + sum(row.nbytes for row in held if row is not None))


def peak_bytes(
    example: ModuleType, config: Any, text: np.ndarray[Any, Any], directory: Path, monkeypatch: pytest.MonkeyPatch
) -> int:
    """What two steps of phased training keep at most, sampled at each load, store and computation."""
    meter = Meter()
    compute = Executor._compute

    def sampled(self: Executor, *args: Any) -> None:
        compute(self, *args)
        # What is still running holds its operands: that is how far the host is ahead, which no budget limits yet.
        jax.block_until_ready(jax.live_arrays())
        meter.sample()

    gc.collect()
    before = sum(a.nbytes for a in jax.live_arrays())
    with monkeypatch.context() as patched:
        patched.setattr(Executor, "_compute", sampled)
        example.train(config, 2, text, phased=True, memory=StreamingMemory(tier=CountingTier(directory, meter)))
    return meter.peak - before


@pytest.mark.parametrize("layers", [8, 16, 32])
def test_phased_training_keeps_less_than_the_state_of_three_layers(
    language_model: ModuleType, text: np.ndarray[Any, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: int
) -> None:
    config = language_model.Config(layers=layers, width=32, heads=2, length=16, batch=2)
    _, masters = language_model.initial_weights(config)
    # A copy in float16 and four numbers in float32 for each weight. The activations of a layer are less than one of
    # its three states here; what is outside of the layers, which stays on the device, is counted as well.
    state_bytes = sum(w.size for w in masters[0].values()) * (2 + 4 * 4)
    peak = peak_bytes(language_model, config, text, tmp_path / "rows", monkeypatch)
    assert state_bytes < peak < 3 * state_bytes
