"""Runs a Python program as a process of a job: ``python program.py PROGRAM.py ...``. It imports nothing of popxl.

At the end of a process JAX waits until all processes of its job are there, for minutes. One that has failed must not:
the others wait for it in a collective, and `popxl run` ends them only once it is gone.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
from pathlib import Path
from types import TracebackType


def main() -> None:
    """Run the program as ``python PROGRAM.py ...`` does; if it fails once it has joined its job, end at once."""
    sys.argv = sys.argv[1:]
    program = sys.argv[0]
    sys.path[0] = str(Path(program).resolve().parent)
    try:
        runpy.run_path(program, run_name="__main__")
    except SystemExit as stop:
        if not stop.code:
            raise
        if not isinstance(stop.code, int):
            sys.stderr.write(f"{stop.code}\n")
        _end(stop.code & 0xFF if isinstance(stop.code, int) else 1)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it ends the process
        shown = _without_this_file(error.__traceback__)
        sys.excepthook(type(error), error.with_traceback(shown), shown)
        _end(128 + signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1)


def _has_joined() -> bool:
    jax = sys.modules.get("jax")
    return jax is not None and bool(jax.distributed.is_initialized())


def _without_this_file(traceback: TracebackType | None) -> TracebackType | None:
    """What follows the frames of this module and of `runpy`: the program's own ones."""
    hidden = {__file__, runpy.__file__, "<frozen runpy>"}
    while traceback is not None and traceback.tb_frame.f_code.co_filename in hidden:
        traceback = traceback.tb_next
    return traceback


def _end(status: int) -> None:
    if not _has_joined():
        sys.exit(status)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
