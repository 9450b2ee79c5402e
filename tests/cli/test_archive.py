"""`popxl buffers push` and `pull` against a server on the loopback: every byte, what is sent, and what goes wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest
from object_server import ObjectServer

from popxl.cli.main import main
from popxl.runtime.streaming import BufferSpec, FileTier
from popxl.runtime.streaming.archive_format import CHUNK_BYTES
from popxl.runtime.streaming.committed import CommittedDirectory

SMALL = BufferSpec(1, (300,), np.dtype("float32"), 9, tuple((k, f"small{k}") for k in range(9)))
LARGE = BufferSpec(2, (CHUNK_BYTES + 5000,), np.dtype("uint8"), 2, ((0, "large"),))
SCRATCH = BufferSpec(3, (4,), np.dtype("int32"), 2)
EMPTY = BufferSpec(4, (0,), np.dtype("float32"), 2, ((0, "empty"),))
SPECS = [SMALL, LARGE, SCRATCH, EMPTY]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Generator[ObjectServer]:
    with ObjectServer() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


def commit(directory: Path, changes: dict[tuple[int, int], np.ndarray], *, reopen: bool = True) -> None:
    tier = FileTier(directory, reopen=reopen)
    tier.open(SPECS)
    for (buffer_id, entry), value in changes.items():
        tier.store(buffer_id, entry, value)
    tier.commit()
    tier.close()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    changes: dict[tuple[int, int], np.ndarray] = {
        (1, k): rng.standard_normal(300, np.float32) for k in range(9) if k != 4
    }
    changes[2, 0] = rng.integers(0, 256, LARGE.shape, np.uint8)
    changes[4, 0] = np.zeros(0, np.float32)
    commit(tmp_path / "here", changes)
    return tmp_path / "here"


def contents(directory: Path) -> dict[tuple[int, int], bytes]:
    with CommittedDirectory.open(directory) as committed:
        return {
            (spec.buffer_id, entry): np.asarray(committed.read(spec.buffer_id, entry)).tobytes()
            for spec in committed.buffers
            if spec.is_persistent
            for entry in range(spec.entries)
        }


def fails(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(["buffers", *words]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "secret" not in said
    return said


def push(directory: Path, server: ObjectServer, *options: str) -> None:
    assert main(["buffers", "push", str(directory), server.url, *options]) == 0


def pull(server: ObjectServer, directory: Path, *options: str) -> None:
    assert main(["buffers", "pull", server.url, str(directory), *options]) == 0


@pytest.mark.parametrize("options", [[], ["--codec", "zstd"]])
def test_what_is_pulled_is_what_was_pushed(
    directory: Path, server: ObjectServer, tmp_path: Path, options: list[str]
) -> None:
    push(directory, server, *options)
    pull(server, tmp_path / "there")
    assert contents(tmp_path / "there") == contents(directory)
    tier = FileTier(tmp_path / "there", reopen=True)
    tier.open(SPECS)  # the program goes on with it
    assert tier.generation == 1
    assert not tier.holds(1, 4)
    tier.close()


def test_zstd_is_used_where_it_saves_something(tmp_path: Path, server: ObjectServer) -> None:
    rng = np.random.default_rng(2)
    smooth = np.linspace(0, 1, 300, dtype=np.float32)
    commit(tmp_path / "here", {(1, 0): smooth, (2, 0): rng.integers(0, 256, LARGE.shape, np.uint8)})
    push(tmp_path / "here", server, "--codec", "zstd")
    kinds = {key.endswith(".zstd"): len(body) for key, body in server.objects.items() if "/chunks/" in key}
    assert set(kinds) == {True, False}
    assert kinds[True] < smooth.nbytes
    pull(server, tmp_path / "there")
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


def test_only_what_has_changed_is_sent_and_fetched(
    directory: Path, server: ObjectServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    push(directory, server)
    pull(server, tmp_path / "there")
    assert server.requests["PUT chunks"] == server.requests["GET chunks"] == 3
    push(directory, server)
    assert server.requests["PUT chunks"] == 3
    commit(directory, {(1, 7): np.ones(300, np.float32), (1, 4): np.ones(300, np.float32)})
    push(directory, server)
    pull(server, tmp_path / "there")
    assert server.requests["PUT chunks"] == server.requests["GET chunks"] == 4
    assert contents(tmp_path / "there") == contents(directory)
    pull(server, tmp_path / "there", "--generation", "1")
    assert contents(tmp_path / "there")[1, 4] == bytes(1200)  # a row that nobody had written then
    capsys.readouterr()
    assert main(["buffers", "generations", server.url]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["1", "2"]


def test_a_failure_in_the_middle_leaves_what_was_committed(
    directory: Path, server: ObjectServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    push(directory, server)
    pull(server, tmp_path / "there")
    before = contents(tmp_path / "there")
    commit(directory, {(1, 7): np.ones(300, np.float32), (2, 0): np.ones(LARGE.shape, np.uint8)})
    server.failing = "generations/2"
    assert "failed" in fails(["push", str(directory), server.url], capsys)
    server.failing = None
    assert main(["buffers", "generations", server.url]) == 0
    sent = server.requests["PUT chunks"]
    push(directory, server)
    assert server.requests["PUT chunks"] == sent  # they were there already
    server.failing = "chunks"
    assert "failed" in fails(["pull", server.url, str(tmp_path / "there")], capsys)
    assert contents(tmp_path / "there") == before
    server.failing = None
    pull(server, tmp_path / "there")
    assert contents(tmp_path / "there") == contents(directory)


def test_damage_never_reaches_the_directory(
    directory: Path, server: ObjectServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    push(directory, server)
    for key in [key for key in server.objects if "/chunks/" in key]:
        whole = server.objects[key]
        for damaged in (whole[:-1], bytes([whole[0] ^ 1]) + whole[1:], whole * 3, b""):
            server.objects[key] = damaged
            assert server.url in fails(["pull", server.url, str(tmp_path / "there")], capsys)
        del server.objects[key]
        push(directory, server)  # what the hint says
        assert server.objects[key] == whole
    with CommittedDirectory.open(tmp_path / "there") as committed:
        assert committed.generation == 0
    pull(server, tmp_path / "there")


def test_a_record_is_read_without_trust(
    directory: Path, server: ObjectServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    push(directory, server)
    key = "archive/generations/1.json"
    good = json.loads(server.objects[key])
    small, manifest = good["buffers"]["1"], json.loads(good["manifest"])
    huge = {**manifest, "buffers": [{**manifest["buffers"][0], "entries": 2**60, "names": []}]}
    vast_row = {
        **manifest,
        "buffers": [b | ({"shape": [2**50], "slot_bytes": 2**50} if b["id"] == 2 else {}) for b in manifest["buffers"]],
    }
    attacks: list[object] = [
        [], {}, {**good, "version": 99}, {**good, "generation": 2}, {**good, "generation": True},
        {**good, "manifest": json.dumps(vast_row)},
        {**good, "manifest": 7}, {**good, "manifest": "{"}, {**good, "manifest": json.dumps(huge)},
        {**good, "buffers": {}}, {**good, "buffers": {**good["buffers"], "9": small}},
        *(
            {**good, "buffers": {**good["buffers"], "1": {**small, **change}}}
            for change in (
                {"codec": "exec"}, {"rows": [0, 0, 1, 2, 3, 5, 6, 7]}, {"rows": [*small["rows"][:-1], 9]},
                {"rows": small["rows"][:-1]}, {"digests": ["x"] * 8}, {"chunks": []}, {"chunks": ["../../etc/passwd"]},
                {"rows": "many"}, {"rows": [-1, *small["rows"][1:]]},
            )
        ),
    ]  # fmt: skip
    for attack in attacks:
        server.objects[key] = json.dumps(attack).encode()
        assert fails(["pull", server.url, str(tmp_path / "there")], capsys).startswith("popxl: ")
    server.objects[key] = b"\xff{"
    fails(["pull", server.url, str(tmp_path / "there")], capsys)
    assert not (tmp_path / "there").exists()
    server.objects[f"archive/generations/{2**63}.json"] = server.objects[key]  # after which nothing could be committed
    server.objects[key] = json.dumps(good).encode()
    pull(server, tmp_path / "there")


def test_what_is_pulled_goes_on_in_the_same_archive(
    directory: Path, server: ObjectServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    push(directory, server)
    commit(directory, {(1, 2): np.ones(300, np.float32)})
    commit(directory, {(1, 3): np.ones(300, np.float32)})
    push(directory, server)  # generation 3
    pull(server, tmp_path / "new")
    commit(tmp_path / "new", {(1, 5): np.ones(300, np.float32)})
    push(tmp_path / "new", server)
    pull(server, tmp_path / "third")  # the last is what was pushed last
    assert contents(tmp_path / "third") == contents(tmp_path / "new") != contents(directory)
    pull(server, tmp_path / "old", "--generation", "1")
    commit(tmp_path / "old", {(1, 6): np.ones(300, np.float32)})
    push(tmp_path / "old", server)
    pull(server, tmp_path / "third")
    assert contents(tmp_path / "third") == contents(tmp_path / "old")
    capsys.readouterr()
    assert main(["buffers", "generations", server.url]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["1", "3", "4", "6"]


def test_a_generation_before_the_last_is_not_pushed(
    directory: Path, server: ObjectServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    commit(directory, {})
    push(directory, server)
    commit(tmp_path / "twin", {(1, 0): np.ones(300, np.float32)}, reopen=False)
    assert "only at 1" in fails(["push", str(tmp_path / "twin"), server.url], capsys)
    assert not [key for key in server.objects if key.endswith("/1.json")]


def test_pulling_mends_damaged_rows_and_leaves_the_rest(directory: Path, server: ObjectServer) -> None:
    push(directory, server)
    before = contents(directory)
    slab = directory / "buffer-1.slab"
    with slab.open("r+b") as file:
        file.write(b"\1\2\3")
    pull(server, directory)
    assert contents(directory) == before
    assert server.requests["GET chunks"] == 1
    fetched = dict(server.requests)
    with CommittedDirectory.open(directory) as committed:
        number = committed.generation
    pull(server, directory)
    with CommittedDirectory.open(directory) as committed:
        assert committed.generation == number  # there was nothing to commit
    assert server.requests["GET chunks"] == fetched["GET chunks"]


def test_a_row_of_several_chunks_is_read_once(
    directory: Path, server: ObjectServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = os.preadv
    counts: list[int] = []
    monkeypatch.setattr(os, "preadv", lambda *words: counts.append(read(*words)) or counts[-1])
    push(directory, server)
    assert LARGE.entry_bytes < sum(counts) < LARGE.entry_bytes + 20_000
    counts.clear()
    push(directory, server)
    assert not counts  # its digest says that it is there


@pytest.mark.parametrize("buffer_id", [1, 2])
def test_damaged_rows_are_not_pushed(
    directory: Path, server: ObjectServer, capsys: pytest.CaptureFixture[str], buffer_id: int
) -> None:
    with (directory / f"buffer-{buffer_id}.slab").open("r+b") as file:
        file.write(b"\1\2\3")
    assert f"buffer {buffer_id}, entry 0" in fails(["push", str(directory), server.url], capsys)
    assert not [key for key in server.objects if "/generations/" in key]


def test_a_busy_store_is_asked_again(directory: Path, server: ObjectServer, tmp_path: Path) -> None:
    server.busy = 1
    push(directory, server)
    server.busy = 1
    pull(server, tmp_path / "there")
    assert server.busy == 0
    assert contents(tmp_path / "there") == contents(directory)


def test_other_programs_and_other_histories_are_refused(
    directory: Path, server: ObjectServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    push(directory, server)
    other = FileTier(tmp_path / "other")
    other.open([SMALL])
    other.commit()
    said = fails(["pull", server.url, str(tmp_path / "other")], capsys)  # it is open, but that is not the reason
    assert "another program" in said
    other.close()
    commit(tmp_path / "twin", {(1, 0): np.ones(300, np.float32)}, reopen=False)
    assert "another generation 1" in fails(["push", str(tmp_path / "twin"), server.url], capsys)


def test_a_directory_in_use_is_not_pulled_into(
    directory: Path, server: ObjectServer, capsys: pytest.CaptureFixture[str]
) -> None:
    push(directory, server)
    commit(directory, {(1, 7): np.ones(300, np.float32)})
    tier = FileTier(directory, reopen=True)
    tier.open(SPECS)
    push(directory, server)  # reading it is no trouble
    assert "use" in fails(["pull", server.url, str(directory), "--generation", "1"], capsys)
    tier.close()


def test_what_is_not_there_is_said(server: ObjectServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "holds no archive" in fails(["pull", server.url, str(tmp_path / "there")], capsys)
    assert "no object store" in fails(["generations", "nowhere://x"], capsys)
    assert "password" in fails(["generations", "s3://me:secret@bucket/x"], capsys)
    assert "query" in fails(["generations", "az://container/x?sig=secret"], capsys)
    assert "nothing to push" in fails(["push", str(_uncommitted(tmp_path)), server.url], capsys)


def _uncommitted(tmp_path: Path) -> Path:
    tier = FileTier(tmp_path / "uncommitted")
    tier.open(SPECS)
    tier.close()
    return tmp_path / "uncommitted"


def test_a_directory_is_an_object_store_too(directory: Path, tmp_path: Path) -> None:
    url = (tmp_path / "archive").as_uri()
    assert main(["buffers", "push", str(directory), url]) == 0
    assert main(["buffers", "pull", url, str(tmp_path / "there")]) == 0
    assert contents(tmp_path / "there") == contents(directory)
