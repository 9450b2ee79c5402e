"""``popxl doctor``: what it finds, and that it leaves a directory as it was."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from popxl.cli import directory_checks as checks
from popxl.cli import disk_speed, machine_checks
from popxl.cli.devices import Device, Devices
from popxl.cli.file_system import Mount, is_locked, mount_of, read_mounts, scratch_file
from popxl.cli.finding import Finding, Level
from popxl.cli.machine import Memory, read_memory
from popxl.cli.main import main
from popxl.runtime.streaming import BufferSpec, FileTier

SPEC = BufferSpec(1, (1024,), np.dtype("float32"), entries=3, names=((0, "w"),))
GPU = Device("gpu", "A GPU", 80 << 30, ("device", "pinned_host"), "")
CPU = Device("cpu", "cpu", None, ("device",), "")


def committed(directory: Path) -> FileTier:
    """An open tier with one commit."""
    tier = FileTier(directory)
    tier.open([SPEC])
    tier.store(1, 0, np.ones(1024, np.float32))
    tier.commit()
    return tier


def state(directory: Path) -> dict[str, tuple[int, int, bytes]]:
    """All that a look could change."""
    paths = [directory, *directory.rglob("*")]
    return {
        str(path): (path.stat().st_mtime_ns, path.stat().st_mode, path.read_bytes() if path.is_file() else b"")
        for path in paths
    }


def by_name(directory: Path) -> dict[str, Finding]:
    return {finding.what: finding for finding in checks.check_directory(directory)}


# ---------------------------------------------------------------- the command


def test_fit_directory_is_status_0_one_line_each_and_left_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    committed(tmp_path).close()
    before = state(tmp_path)
    assert main(["doctor", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert (state(tmp_path), err) == (before, "")
    *lines, last = out.splitlines()
    assert all(line.startswith(("OK    ", "WARN  ")) for line in lines)
    assert all((". Mend: " in line) == line.startswith("WARN") for line in lines)
    names = [line[6:].partition(":")[0] for line in lines]
    assert names == [
        *("directory", "file system", "space", "locks", "direct I/O", "commits", "file size"),
        *("host memory", "open files", "malloc", "devices", "locked memory"),
    ]
    assert "format 2, generation 1, 1 remote buffer with rows of 12.00 KiB" in lines[0]
    assert last.startswith("Streaming Memory works there: 0 FAIL, ")


def test_directory_of_other_files_is_status_1_and_left_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lost+found").mkdir()
    before = state(tmp_path)
    assert main(["doctor", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert state(tmp_path) == before
    assert out.startswith("FAIL  directory: ")
    assert "lost+found" in out.splitlines()[0]
    assert "Mend: name an empty directory" in out.splitlines()[0]
    assert out.splitlines()[-1].startswith("Streaming Memory cannot work there: 1 FAIL")


# ---------------------------------------------------------------- the directory


def test_directory_that_is_not_there_is_looked_at_where_it_would_be_and_not_made(tmp_path: Path) -> None:
    found = by_name(tmp_path / "a" / "b")
    assert {finding.level for finding in found.values()} <= {Level.OK, Level.WARN}
    assert f"a session makes it in {tmp_path}" in found["directory"].fact
    assert "locks" in found
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["file", "file/rows", "broken-link"])
def test_path_that_can_be_no_directory_fails(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "broken-link").symlink_to("nowhere")
    (only,) = checks.check_directory(tmp_path / name)
    assert only.level is Level.FAIL


def test_directory_that_refuses_files_fails() -> None:
    # Nobody can write there, root included.
    writing = by_name(Path("/proc/self/task"))["writing"]
    assert writing.level is Level.FAIL
    assert writing.mend


def test_session_that_has_the_directory_open_is_noticed_and_not_disturbed(tmp_path: Path) -> None:
    tier = committed(tmp_path)
    try:
        found = by_name(tmp_path)["directory"]
        assert found.level is Level.WARN
        assert "a session has it open" in found.fact
        tier.store(1, 0, np.zeros(1024, np.float32))
        assert tier.commit() == 2
    finally:
        tier.close()
    assert by_name(tmp_path)["directory"].level is Level.OK


def test_damaged_directory_fails_with_the_hint_of_its_error(tmp_path: Path) -> None:
    committed(tmp_path).close()
    (tmp_path / "streaming-memory.json").write_text("{")
    found = by_name(tmp_path)["directory"]
    assert found.level is Level.FAIL
    assert "is damaged" in found.fact
    assert found.mend


def test_rows_that_will_not_fit_are_noticed(tmp_path: Path) -> None:
    status = os.statvfs(tmp_path)
    free = status.f_bavail * status.f_frsize
    assert checks.space_finding(tmp_path, 0).level is Level.OK
    assert checks.space_finding(tmp_path, 2 * free).level is Level.WARN


# ---------------------------------------------------------------- the disk


def test_file_that_is_looked_with_has_no_name_and_is_one_file_opened_twice(tmp_path: Path) -> None:
    with scratch_file(tmp_path) as (first, second):
        assert list(tmp_path.iterdir()) == []
        os.pwrite(first, b"row", 0)
        assert os.pread(second, 3, 0) == b"row"


def test_file_system_without_unnamed_files_is_left_clean_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Without its own bit O_TMPFILE is O_DIRECTORY, which the system answers as such a file system does.
    monkeypatch.setattr(os, "O_TMPFILE", os.O_DIRECTORY)
    with scratch_file(tmp_path) as (first, second):
        assert list(tmp_path.iterdir()) == []
        os.pwrite(first, b"row", 0)
        assert os.pread(second, 3, 0) == b"row"


def test_locks_that_keep_nobody_out_are_a_warning(tmp_path: Path) -> None:
    with scratch_file(tmp_path) as (first, second), scratch_file(tmp_path) as (other, _):
        assert checks.lock_finding(first, second).level is Level.OK
        assert checks.lock_finding(first, other).level is Level.WARN


def test_speed_is_measured_and_nothing_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disk_speed, "_FILE_BYTES", disk_speed._ROW_BYTES)
    assert main(["doctor", "--measure", str(tmp_path / "rows")]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "speed: " in line)
    speeds = re.match(r"OK    speed: ([\d.]+) GB/s written, ([\d.]+) GB/s read", line)
    assert speeds is not None, line
    assert all(float(speed) > 0 for speed in speeds.groups())
    assert list(tmp_path.iterdir()) == []


def test_disk_with_no_room_to_measure_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_speed, "free_bytes", lambda _: 1 << 20)
    found = disk_speed.speed_finding(tmp_path)
    assert (found.level, found.fact) == (Level.WARN, "not measured: it takes 256.00 MiB, and 1.00 MiB are free")


def test_missing_direct_io_is_a_warning(tmp_path: Path) -> None:
    with scratch_file(tmp_path) as (fd, _):
        assert checks.direct_finding(fd, 1).level is Level.WARN


def test_limit_of_file_sizes_is_a_warning(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with scratch_file(tmp_path) as (fd, _):
        assert checks.size_finding(fd).level is Level.OK
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, hard))
        try:
            found = checks.size_finding(fd)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (found.level, found.fact, found.mend) == (
        Level.WARN,
        "`ulimit -f` allows 1.00 GiB",
        "ulimit -f unlimited",
    )


@pytest.mark.parametrize(
    ("kind", "level"),
    [
        ("ext4", Level.OK),
        ("xfs", Level.OK),
        *((kind, Level.WARN) for kind in ("tmpfs", "nfs4", "overlay", "fuse.sshfs")),
    ],
)
def test_file_systems_that_rows_do_not_belong_on_are_a_warning(kind: str, level: Level) -> None:
    assert checks.file_system_finding(Mount(Path("/data"), kind, "source")).level is level


def test_mount_is_the_innermost_and_latest(tmp_path: Path) -> None:
    (tmp_path / "with space" / "rows").mkdir(parents=True)
    escaped = str(tmp_path / "with space").replace(" ", "\\040")
    (tmp_path / "mountinfo").write_text(
        "22 1 8:1 / / rw,noatime shared:1 - ext4 /dev/a rw\n"
        f"23 22 8:2 / {escaped} rw - nfs4 server:/x rw\n"
        f"24 22 8:3 / {escaped} rw shared:2 master:3 - xfs /dev/b rw\n"
        f"25 22 8:4 / {escaped}/ro rw - tmpfs tmpfs rw\n"
    )
    mounts = read_mounts(tmp_path / "mountinfo")
    assert mount_of(tmp_path / "with space" / "rows", mounts) == Mount(tmp_path / "with space", "xfs", "/dev/b")
    assert mount_of(tmp_path, mounts) == Mount(Path("/"), "ext4", "/dev/a")


def test_lock_that_somebody_waits_for_is_no_lock(tmp_path: Path) -> None:
    status = tmp_path.stat()
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    for line, locked in [(f"1: FLOCK ADVISORY WRITE 7 {place} 0 EOF", True), (f"1: -> FLOCK {place} 0 EOF", False)]:
        (tmp_path / "locks").write_text(line + "\n")
        assert is_locked(tmp_path, tmp_path / "locks") is locked


# ---------------------------------------------------------------- the machine


@pytest.mark.parametrize(
    ("memberships", "limits", "expected"),
    [
        ("0::/a/b\n", {"a/memory.max": "4096", "a/b/memory.max": "max"}, 4096),
        ("0::/a\n", {"memory.max": "max"}, None),
        ("5:cpu,memory:/a\n0::/\n", {"memory/memory.limit_in_bytes": "8192"}, 8192),
        ("5:memory:/\n", {"memory/memory.limit_in_bytes": "9223372036854771712"}, None),
    ],
)
def test_memory_limit_is_the_least_of_the_control_groups(
    tmp_path: Path, memberships: str, limits: dict[str, str], expected: int | None
) -> None:
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "cgroup").write_text(memberships)
    (tmp_path / "meminfo").write_text("MemTotal:  1024 kB\nMemAvailable:  512 kB\nSwapTotal:  0 kB\n")
    for name, text in limits.items():
        path = tmp_path / "groups" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    assert read_memory(tmp_path, tmp_path / "groups") == Memory(1 << 20, 1 << 19, 0, expected)


@pytest.mark.parametrize(
    ("find", "level"),
    [
        (lambda: machine_checks.memory_finding(Memory(8 << 30, 4 << 30, 0, None)), Level.OK),
        (lambda: machine_checks.memory_finding(Memory(8 << 30, 4 << 30, 0, 1 << 29)), Level.WARN),
        (lambda: machine_checks.open_files_finding(1024), Level.OK),
        (lambda: machine_checks.open_files_finding(256), Level.WARN),
        (lambda: machine_checks.devices_finding(Devices((CPU, GPU))), Level.OK),
        (lambda: machine_checks.devices_finding(Devices(problem="ImportError: x")), Level.FAIL),
        (lambda: machine_checks.locked_memory_finding(Devices((CPU,)), 8 << 20), Level.OK),
        (lambda: machine_checks.locked_memory_finding(Devices((GPU,)), 8 << 20), Level.WARN),
        (lambda: machine_checks.locked_memory_finding(Devices((GPU,)), resource.RLIM_INFINITY), Level.OK),
    ],
)
def test_machine_is_judged(find: Callable[[], Finding], level: Level) -> None:
    finding = find()
    assert finding.level is level
    assert bool(finding.mend) is (level is not Level.OK)


def test_pinned_memory_is_told_of_gpus_only() -> None:
    refused = Device("gpu", "Old GPU", None, ("device",), "JAX offers only device")
    levels = [finding.level for finding in machine_checks.pinned_findings(Devices((CPU, GPU, refused)))]
    assert levels == [Level.OK, Level.WARN]


@pytest.mark.parametrize(("platforms", "mend"), [("cpu", "unset JAX_PLATFORMS"), (None, "pip install")])
def test_gpu_that_jax_does_not_see_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, platforms: str | None, mend: str
) -> None:
    monkeypatch.setattr(machine_checks, "has_nvidia_driver", lambda: True)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    if platforms:
        monkeypatch.setenv("JAX_PLATFORMS", platforms)
    found = machine_checks.devices_finding(Devices((CPU,)))
    assert found.level is Level.WARN
    assert found.mend.startswith(mend)


def test_line_of_a_finding_is_one_line() -> None:
    assert "\n" not in str(Finding(Level.FAIL, "directory", "a\nb\x1b", "c\nd"))
