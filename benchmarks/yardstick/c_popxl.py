"""Plug-in for the yardstick's forward pass: the same weights in remote buffers over files.

Run from the yardstick: ``python c_forward.py --plugin .../c_popxl.py --only "popxl,O_DIRECT"``, with this project's
benchmarks folder on PYTHONPATH. The script's names `contender`, `weights_file`, `COUNT`, `NB` are in scope.
"""

import shutil
from pathlib import Path

import numpy as np
import streamed_stack as _stack

import popxl as _popxl


@contender("popxl, files")  # noqa: F821
def _popxl_files(layers, slots, batch):
    sizes = _stack.Sizes(layers=layers, batch=batch)
    path = weights_file(layers)  # noqa: F821
    directory = Path(SCRATCH) / "popxl-forward"  # noqa: F821
    shutil.rmtree(directory, ignore_errors=True)
    program = _stack.forward(sizes, lambda i: np.fromfile(path, np.float32, COUNT, offset=i * NB))  # noqa: F821
    memory = _popxl.StreamingMemory(f"file:{directory}", host_memory=(slots - 1) * NB)  # noqa: F821
    session = _popxl.Session(program.ir, weights_to_host_on_exit=False, streaming_memory=memory)
    session.__enter__()
    return lambda x: session.run({program.x_in: x})[program.out], str(directory)
