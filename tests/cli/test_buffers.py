from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import popxl
from popxl.cli.main import main
from popxl.runtime.streaming import BufferSpec, FileTier
from popxl.runtime.streaming.committed import CommittedDirectory

SPECS = [
    BufferSpec(1, (2, 3), np.dtype("float32"), entries=4, names=tuple((i, f"layer{i}.w") for i in range(4))),
    BufferSpec(2, (100,), np.dtype("float16"), entries=3),
    BufferSpec(5, (600_000,), np.dtype("float64"), entries=1, names=((0, "großes\tbild"),)),
    BufferSpec(6, (), np.dtype("int64"), entries=1, names=((0, "step"),)),
]
VALUES = {
    "layer0.w": np.array([[1, 2, 3], [4, 5, np.nan]], np.float32),
    "layer1.w": np.full((2, 3), -0.0, np.float32),
    "layer2.w": np.arange(6, dtype=np.float32).reshape(2, 3),
    "layer3.w": np.zeros((2, 3), np.float32),  # never written
    "großes\tbild": np.linspace(0, 1, 600_000),
    "step": np.array(2**62 + 1),
}


def make(directory: Path, values: dict[str, np.ndarray[Any, Any]], specs: list[BufferSpec] = SPECS) -> Path:
    """A directory with one commit of ``values``."""
    tier = FileTier(directory)
    tier.open(specs)
    for spec in specs:
        for entry, name in spec.names:
            if name in values and name != "layer3.w":
                tier.store(spec.buffer_id, entry, values[name])
    tier.commit()
    tier.close()
    return directory


def contents(directory: Path) -> dict[str, np.ndarray[Any, Any]]:
    with CommittedDirectory.open(directory) as committed:
        return {name: committed.read(spec.buffer_id, entry) for spec in committed.buffers for entry, name in spec.names}


def assert_same(found: dict[str, np.ndarray[Any, Any]], wanted: dict[str, np.ndarray[Any, Any]]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert (found[name].shape, found[name].dtype) == (value.shape, value.dtype)
        assert found[name].tobytes() == value.tobytes(), name


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return make(tmp_path / "rows", VALUES)


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit status, output, errors of ``popxl buffers WORDS``."""
    try:
        status = main(["buffers", *map(str, words)])
    except SystemExit as stop:
        status = int(str(stop.code))
    out, err = capsys.readouterr()
    return status, out, err


def failure(capsys: pytest.CaptureFixture[str], *words: object, status: int = 1) -> str:
    """The one line that a command that fails says."""
    found, out, err = run(capsys, *words)
    assert (found, out, err.count("\n")) == (status, "", 1), (found, out, err)
    assert err.startswith("popxl")
    return err


# ---------------------------------------------------------------- words


def test_help_needs_neither_numpy_nor_jax_nor_the_package() -> None:
    # The package itself is replaced by an empty one: what is left is what the command line imports on its own.
    program = (
        "import sys, types\n"
        "package = types.ModuleType('popxl')\n"
        f"package.__path__ = {popxl.__path__!r}\n"
        "sys.modules['popxl'] = package\n"
        "from popxl.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'jax', 'numpy', 'xxhash', 'filelock'} & sys.modules.keys()))\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "buffers" in result.stdout
    assert result.stdout.endswith("[]\n")


def test_commands_need_no_jax() -> None:
    program = "import sys, popxl.cli.buffers, popxl.cli.main; print('jax' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"


@pytest.mark.parametrize(
    "words",
    [[], ["frob"], ["ls"], ["ls", "a", "b"], ["export", "a"], ["import", "a"], ["ls", "a", "--what"], ["\x1b[2J\n"]],
    ids=str,
)
def test_wrong_words_are_one_line_and_status_2(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert "--help" in failure(capsys, *words, status=2)


def test_module_runs_as_a_program(directory: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "popxl.cli", "buffers", "verify", str(directory)], capture_output=True, text=True
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "none damaged" in result.stdout


def test_reader_that_goes_away_is_no_traceback(directory: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "popxl.cli", "buffers", "ls", str(directory)]
    result = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert (result.returncode, result.stderr) == (1, b"")


@pytest.mark.parametrize("command", ["ls", "verify", "export", "import"])
@pytest.mark.parametrize("name", ["missing", "empty", "a-file", "x\n\x1b[2J\udcff"])
def test_directory_that_is_none_is_one_line_and_status_1(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str, name: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "a-file").touch()
    safetensors.numpy.save_file({"w": np.zeros(1)}, tmp_path / "in")
    file = {"export": [tmp_path / "out"], "import": [tmp_path / "in"]}.get(command, [])
    words = [*file, tmp_path / name] if command == "import" else [tmp_path / name, *file]
    assert failure(capsys, command, *words).rstrip("\n").isprintable()
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- ls


def test_ls_shows_every_buffer(capsys: pytest.CaptureFixture[str], directory: Path) -> None:
    status, out, err = run(capsys, "ls", directory)
    assert (status, err) == (0, "")
    assert [" ".join(line.split()) for line in out.splitlines()] == [
        "generation 1",
        "id shape dtype entries written bytes names",
        "1 (2, 3) float32 4 3 96 B layer0.w, layer1.w, layer2.w and 1 more",
        "2 (100,) float16 3 - 600 B (scratch)",
        "5 (600000,) float64 1 1 4.58 MiB großes\\tbild",
        "6 () int64 1 1 8 B step",
        "total: 4 buffers, 9 entries, 4.58 MiB",
    ]


def test_ls_says_that_nothing_was_committed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    tier = FileTier(tmp_path / "rows")
    tier.open(SPECS)
    status, out, _ = run(capsys, "ls", tmp_path / "rows")
    tier.close()
    assert status == 0
    assert out.startswith("generation 0: nothing was committed yet\n")


# ---------------------------------------------------------------- verify


def test_verify_of_sound_rows_is_status_0_and_silent_about_them(
    capsys: pytest.CaptureFixture[str], directory: Path
) -> None:
    assert run(capsys, "verify", directory) == (0, "generation 1: 5 entries of 4.58 MiB, none damaged\n", "")


def test_verify_names_every_damaged_entry_and_is_status_1(capsys: pytest.CaptureFixture[str], directory: Path) -> None:
    content = bytearray((directory / "buffer-1.slab").read_bytes())
    for name in ("layer0.w", "layer2.w"):
        content[content.index(VALUES[name].tobytes())] ^= 1
    (directory / "buffer-1.slab").write_bytes(content)
    status, out, err = run(capsys, "verify", directory)
    assert (status, err) == (1, "")
    first, second, last = out.splitlines()
    assert "buffer 1, entry 0 of" in first
    assert first.endswith("It is layer0.w.")
    assert "buffer 1, entry 2 of" in second
    assert second.endswith("It is layer2.w.")
    assert last == "generation 1: 5 entries of 4.58 MiB, 2 damaged"


def test_progress_is_shown_on_a_terminal_only(directory: Path) -> None:
    terminal, other_end = pty.openpty()
    command = [sys.executable, "-m", "popxl.cli", "buffers", "verify", str(directory)]
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=other_end)
    os.close(other_end)
    shown = os.read(terminal, 10_000)
    os.close(terminal)
    assert result.returncode == 0
    assert b"\rchecked 100 % of 4.58 MiB" in shown


# ---------------------------------------------------------------- export


def test_export_is_what_the_safetensors_library_reads(
    capsys: pytest.CaptureFixture[str], directory: Path, tmp_path: Path
) -> None:
    file = tmp_path / "out.safetensors"
    assert run(capsys, "export", directory, file) == (0, "generation 1: 6 tensors of 4.58 MiB exported\n", "")
    assert_same(safetensors.numpy.load_file(file), VALUES)
    with safetensors.safe_open(file, "numpy") as opened:
        assert opened.metadata() == {"format": "popxl-streaming-memory", "generation": "1"}


DTYPES = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]


@pytest.mark.parametrize("dtype", [*DTYPES, "float16", "float32", "float64", "complex64"])
def test_every_dtype_goes_there_and_back(capsys: pytest.CaptureFixture[str], tmp_path: Path, dtype: str) -> None:
    specs = [BufferSpec(0, (5,), np.dtype(dtype), entries=2, names=((0, "a"), (1, "b")))]
    values = {"a": np.array([0, 1, 1, 0, 1], dtype), "b": np.ones(5, dtype)}
    source = make(tmp_path / "source", values, specs)
    target = make(tmp_path / "target", {}, specs)
    assert run(capsys, "export", source, tmp_path / "file")[0] == 0
    assert_same(safetensors.numpy.load_file(tmp_path / "file"), values)
    assert run(capsys, "import", tmp_path / "file", target)[0] == 0
    assert_same(contents(target), values)


def test_dtype_that_the_format_lacks_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    specs = [BufferSpec(0, (5,), np.dtype("complex128"), entries=1, names=((0, "z"),))]
    directory = make(tmp_path / "rows", {"z": np.ones(5, np.complex128)}, specs)
    assert "'z' has dtype complex128" in failure(capsys, "export", directory, tmp_path / "out")


def test_tensors_start_at_multiples_of_their_element_size(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    specs = [
        BufferSpec(i, (3,), np.dtype(dtype), entries=1, names=((0, dtype),))
        for i, dtype in enumerate(["int8", "float64", "float16", "int32"])
    ]
    directory = make(tmp_path / "rows", {}, specs)
    run(capsys, "export", directory, tmp_path / "out")
    raw = (tmp_path / "out").read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + size])
    for dtype in ("int8", "float64", "float16", "int32"):
        assert (8 + size + header[dtype]["data_offsets"][0]) % np.dtype(dtype).itemsize == 0


def test_export_keeps_a_file_that_exists(capsys: pytest.CaptureFixture[str], directory: Path, tmp_path: Path) -> None:
    file = tmp_path / "out"
    file.write_text("mine")
    assert "exists" in failure(capsys, "export", directory, file)
    assert file.read_text() == "mine"


def test_export_replaces_a_file_when_told_to(
    capsys: pytest.CaptureFixture[str], directory: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("mine")
    assert run(capsys, "export", directory, tmp_path / "out", "--force")[0] == 0
    assert_same(safetensors.numpy.load_file(tmp_path / "out"), VALUES)


def test_export_of_a_damaged_entry_leaves_no_file(
    capsys: pytest.CaptureFixture[str], directory: Path, tmp_path: Path
) -> None:
    content = bytearray((directory / "buffer-1.slab").read_bytes())
    content[content.index(VALUES["layer2.w"].tobytes())] ^= 1
    (directory / "buffer-1.slab").write_bytes(content)
    assert "buffer 1, entry 2" in failure(capsys, "export", directory, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows"]


def test_row_without_a_variable_is_exported_under_a_name_of_its_own_and_comes_back(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    specs = [BufferSpec(4, (2,), np.dtype("int8"), entries=3, names=((0, "w"),))]
    directory = tmp_path / "rows"
    tier = FileTier(directory)
    tier.open(specs)
    tier.store(4, 0, np.array([1, 2], np.int8))
    tier.store(4, 2, np.array([3, 4], np.int8))
    tier.commit()
    tier.close()
    run(capsys, "export", directory, tmp_path / "out")
    assert_same(
        safetensors.numpy.load_file(tmp_path / "out"),
        {"w": np.array([1, 2], np.int8), "buffer-4.entry-2": np.array([3, 4], np.int8)},
    )
    other = make(tmp_path / "other", {}, specs)
    assert run(capsys, "import", tmp_path / "out", other)[0] == 0
    with CommittedDirectory.open(other) as committed:
        assert committed.read(4, 2).tolist() == [3, 4]
        assert committed.written(4).tolist() == [0, 2]


def test_two_variables_of_one_name_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    specs = [BufferSpec(0, (2,), np.dtype("int8"), entries=2, names=((0, "w"), (1, "w")))]
    directory = make(tmp_path / "rows", {}, specs)
    assert "'w' cannot be used" in failure(capsys, "export", directory, tmp_path / "out")


def test_nothing_committed_is_nothing_to_export(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    tier = FileTier(tmp_path / "rows")
    tier.open(SPECS)
    tier.close()
    assert "no commit yet" in failure(capsys, "export", tmp_path / "rows", tmp_path / "out")


# ---------------------------------------------------------------- import


def changed() -> dict[str, np.ndarray[Any, Any]]:
    return {name: np.asarray(value * 0 + 3, value.dtype) for name, value in VALUES.items()}


def test_import_commits_what_the_safetensors_library_wrote(
    capsys: pytest.CaptureFixture[str], directory: Path, tmp_path: Path
) -> None:
    safetensors.numpy.save_file(changed(), tmp_path / "in", metadata={"who": "somebody"})
    result = run(capsys, "import", tmp_path / "in", directory)
    assert result == (0, "generation 2: 6 tensors of 4.58 MiB imported\n", "")
    assert_same(contents(directory), changed())
    assert run(capsys, "verify", directory)[0] == 0


def edited(**changes: Any) -> dict[str, np.ndarray[Any, Any]]:
    values = {**changed(), **changes}
    return {name: value for name, value in values.items() if value is not None}


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (edited(step=None), "has no tensor 'step', which the program"),
        (edited(**{"step": None, "layer0.w": None}), "has no tensor 'layer0.w' and 1 more"),
        (edited(extra=np.zeros(2)), "has the tensor 'extra', and the program"),
        (edited(**{"buffer-1.entry-0": np.zeros((2, 3), np.float32)}), "has the tensor 'buffer-1.entry-0'"),
        (edited(**{"buffer-2.entry-0": np.zeros(100, np.float16)}), "has the tensor 'buffer-2.entry-0'"),
        (edited(**{"buffer-1.entry-4": np.zeros((2, 3), np.float32)}), "has the tensor 'buffer-1.entry-4'"),
        (edited(step=np.zeros((), np.int32)), "'step' has dtype I32, shape () and 4 bytes"),
        (edited(step=np.zeros((), np.float64)), "'step' has dtype F64, shape () and 8 bytes"),
        (edited(**{"layer0.w": np.zeros((3, 2), np.float32)}), r"'layer0.w' has dtype F32, shape (3, 2)"),
    ],
)
def test_import_of_other_tensors_is_refused_and_changes_nothing(
    capsys: pytest.CaptureFixture[str],
    directory: Path,
    tmp_path: Path,
    values: dict[str, np.ndarray[Any, Any]],
    problem: str,
) -> None:
    safetensors.numpy.save_file(values, tmp_path / "in")
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    assert problem in failure(capsys, "import", tmp_path / "in", directory)
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


def test_import_beside_an_open_session_is_refused(
    capsys: pytest.CaptureFixture[str], directory: Path, tmp_path: Path
) -> None:
    safetensors.numpy.save_file(changed(), tmp_path / "in")
    tier = FileTier(directory, reopen=True)
    tier.open(SPECS)
    assert "is in use by another session" in failure(capsys, "import", tmp_path / "in", directory)
    tier.close()
    assert_same(contents(directory), VALUES)


def test_import_that_fails_half_way_commits_nothing(
    capsys: pytest.CaptureFixture[str], directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    safetensors.numpy.save_file(changed(), tmp_path / "in")
    stores: list[int] = []
    store = FileTier.store

    def fails_later(self: FileTier, *arguments: Any) -> None:
        stores.append(1)
        if len(stores) == 4:
            raise OSError(28, "No space left on device")
        store(self, *arguments)

    monkeypatch.setattr(FileTier, "store", fails_later)
    assert "No space left on device" in failure(capsys, "import", tmp_path / "in", directory)
    assert_same(contents(directory), VALUES)


def test_bool_that_is_neither_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    specs = [BufferSpec(0, (5,), np.dtype("bool"), entries=1, names=((0, "a"),))]
    directory = make(tmp_path / "rows", {}, specs)
    safetensors.numpy.save_file({"a": np.ones(5, np.bool_)}, tmp_path / "in")
    raw = (tmp_path / "in").read_bytes()
    (tmp_path / "in").write_bytes(raw[:-1] + b"\2")
    assert "neither 0 nor 1" in failure(capsys, "import", tmp_path / "in", directory)


TWO_NAMES = [BufferSpec(0, (2,), np.dtype("float32"), entries=1, names=((0, "a"), (0, "b")))]


@pytest.mark.parametrize(("b", "status"), [(np.nan, 0), (2, 1)])
def test_two_names_of_one_entry_must_have_one_value(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, b: float, status: int
) -> None:
    directory = make(tmp_path / "rows", {}, TWO_NAMES)
    values = {"a": np.array([1, np.nan], np.float32), "b": np.array([1, b], np.float32)}
    safetensors.numpy.save_file(values, tmp_path / "in")
    assert run(capsys, "import", tmp_path / "in", directory)[0] == status


# ---------------------------------------------------------------- damaged safetensors files


def with_header(header: Any, data: bytes = b"") -> bytes:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(content).to_bytes(8, "little") + content + data


def tensor(start: int, end: int, **changes: Any) -> dict[str, Any]:
    return {"dtype": "I8", "shape": [end - start], "data_offsets": [start, end], **changes}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\1",
        b"\xff" * 8,
        (2**20).to_bytes(8, "little") + b"{}",
        with_header(b"{"),
        with_header(b"\xff\xfe"),
        with_header(b"[" * 100_000),
        with_header([]),
        with_header(None),
        with_header(b'{"a": {}, "a": {}}'),
        with_header({"a": 1}, b"xx"),
        with_header({"a": {}}, b"xx"),
        with_header({"a": tensor(0, 2, dtype=1)}, b"xx"),
        with_header({"a": tensor(0, 2, shape=[-2])}, b"xx"),
        with_header({"a": tensor(0, 2, shape=[True])}, b"xx"),
        with_header({"a": tensor(0, 2, shape=[1] * 65)}, b"xx"),
        with_header({"a": tensor(0, 2, data_offsets=[0])}, b"xx"),
        with_header({"a": tensor(0, 2, data_offsets=[2, 0])}, b"xx"),
        with_header({"a": tensor(0, 2, data_offsets=[0, 1e9])}, b"xx"),
        with_header({"a": tensor(0, 2, data_offsets=[0, 2**70])}, b"xx"),
        with_header({"a": tensor(0, 2)}, b"x"),
        with_header({"a": tensor(0, 2)}, b"xxx"),
        with_header({"a": tensor(1, 2)}, b"xx"),
        with_header({"a": tensor(0, 2), "b": tensor(1, 3)}, b"xxx"),
    ],
    ids=lambda raw: str(raw[8:60]),
)
def test_file_that_is_no_safetensors_file_is_refused(
    capsys: pytest.CaptureFixture[str], directory: Path, tmp_path: Path, raw: bytes
) -> None:
    (tmp_path / "in").write_bytes(raw)
    assert "is no safetensors file, or is damaged" in failure(capsys, "import", tmp_path / "in", directory)


@pytest.mark.parametrize("name", ["missing", "rows"])
def test_file_that_cannot_be_read_is_one_line(
    capsys: pytest.CaptureFixture[str], directory: Path, tmp_path: Path, name: str
) -> None:
    assert str(tmp_path / name) in failure(capsys, "import", tmp_path / name, directory)


def test_empty_safetensors_file_lacks_every_variable(
    capsys: pytest.CaptureFixture[str], directory: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").write_bytes(with_header({}))
    assert "has no tensor" in failure(capsys, "import", tmp_path / "in", directory)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(position=st.integers(0, 400), replacement=st.binary(min_size=1, max_size=20), cut=st.booleans())
def test_file_damaged_anywhere_is_refused_in_one_line_or_imported(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, position: int, replacement: bytes, cut: bool
) -> None:
    directory = tmp_path / "rows"
    if not directory.exists():
        make(directory, {}, SPECS[:1])
    raw = safetensors.numpy.save({name: VALUES[name] for _, name in SPECS[0].names})
    tail = b"" if cut else raw[position + len(replacement) :]
    (tmp_path / "in").write_bytes(raw[:position] + replacement + tail)
    status, _, err = run(capsys, "import", tmp_path / "in", directory)
    assert (status, err.count("\n")) in [(0, 0), (1, 1)]
