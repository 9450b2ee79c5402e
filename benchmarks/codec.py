"""What a lossless codec saves of training state, and what it costs: zstd and zlib, plain and with bytes shuffled.

A codec pays where packing a byte and sending what is left takes less time than sending it plain. Shown is the bandwidth
of packing and unpacking on one core, the size that is left, and for a disk of 2 GB/s and a network of 0.1 GB/s the time
of packing and then sending over that of sending plain.

State: weights of a trained sentence model (all-MiniLM-L6-v2, float32), and of the byte-level language model in
`examples/language_model.py` after some steps: float16 weights, float32 masters, both moments of Adam.

Not measured: other codecs, several cores.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from collections.abc import Callable, Mapping

import numpy as np
import zstandard
from _examples import import_example
from _measure import OtherLoad, alternate, print_table, spread

import popxl

DISK, NETWORK = 2e9, 0.1e9


def trained_state(steps: int) -> dict[str, bytes]:
    """Weights and optimiser state of the small language model after some steps."""
    model = import_example("language_model")
    config = model.Config(layers=2, width=128)
    program = model.build_training(config, phased=False)
    text = model.read_text(500_000)
    with popxl.Session(program.ir) as session:
        for step in range(steps):
            batches, seeds = model.draw_batches(text, config, step), model.draw_seeds(config, step)
            session.run({program.symbols: batches, program.seeds: seeds})
        state: dict[str, list[bytes]] = {}
        for variable in program.ir.main_graph.variables:
            kind = variable.name.split(".")[0]
            if kind in model.KINDS and kind != "sum":
                state.setdefault(kind, []).append(np.asarray(session.get_tensor_data(variable)).tobytes())
    return {f"language model: {kind}": b"".join(parts) for kind, parts in state.items()}


def sentence_weights() -> dict[str, bytes]:
    """Weights of the sentence model."""
    from safetensors import safe_open

    model = import_example("minilm_streamed")
    with safe_open(str(model.model_directory() / "model.safetensors"), "numpy") as file:
        parts = [file.get_tensor(name) for name in file.keys() if "LayerNorm" not in name]  # noqa: SIM118
    return {"MiniLM: weights": b"".join(part.astype(np.float32).tobytes() for part in parts)[: 32 << 20]}


def shuffled(content: bytes, size: int) -> bytes:
    """Bytes of equal significance together."""
    return np.frombuffer(content, np.uint8).reshape(-1, size).T.tobytes()


def unshuffled(content: bytes, size: int) -> bytes:
    """The inverse."""
    return np.frombuffer(content, np.uint8).reshape(size, -1).T.tobytes()


def codecs(size: int) -> Mapping[str, tuple[Callable[[bytes], bytes], Callable[[bytes], bytes]]]:
    """Pack and unpack, by name."""
    packer, unpacker = zstandard.ZstdCompressor(level=1), zstandard.ZstdDecompressor()
    third = zstandard.ZstdCompressor(level=3)
    return {
        "zstd 1": (packer.compress, unpacker.decompress),
        "shuffle + zstd 1": (
            lambda c: packer.compress(shuffled(c, size)),
            lambda c: unshuffled(unpacker.decompress(c), size),
        ),
        "shuffle + zstd 3": (
            lambda c: third.compress(shuffled(c, size)),
            lambda c: unshuffled(unpacker.decompress(c), size),
        ),
        "shuffle + zlib 1": (
            lambda c: zlib.compress(shuffled(c, size), 1),
            lambda c: unshuffled(zlib.decompress(c), size),
        ),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args(arguments)
    rows: list[list[str]] = []
    with OtherLoad() as load:
        for name, content in {**sentence_weights(), **trained_state(options.steps)}.items():
            size = 2 if name.endswith("weight") else 4
            for codec, (pack, unpack) in codecs(size).items():
                packed = pack(content)
                if unpack(packed) != content:
                    sys.exit(f"{codec} changed {name}")
                t = alternate(
                    {"in": lambda p=pack, c=content: p(c), "out": lambda u=unpack, c=packed: u(c)}, options.rounds
                )
                left = len(packed) / len(content)
                packing = min(t["in"].wall_s) / len(content)
                cells = [spread([len(content) / s / 1e9 for s in t[way].wall_s]) for way in ("in", "out")]
                times = [f"{(packing + left / speed) * speed:.2f}" for speed in (DISK, NETWORK)]
                rows.append([name, codec, f"{left:.3f}", *cells, *times])
    print_table(("state", "codec", "size left", "packs, GB/s", "unpacks, GB/s", "disk: time", "network: time"), rows)
    print("time: packing and sending over sending plain; below 1 the codec pays.")
    print(load.text())


if __name__ == "__main__":
    main()
