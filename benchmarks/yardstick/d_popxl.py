"""Plug-in for the yardstick's training step: weights and Adam's moments in remote buffers over files.

Run from the yardstick: ``python d_train.py --plugin .../d_popxl.py --only "popxl,weights + moments on disk"``, with
this project's benchmarks folder on PYTHONPATH. The script's names `contender`, `weights_file`, `COUNT`, `NB` are in
scope.
"""

import shutil
from pathlib import Path

import numpy as np
import streamed_stack as _stack

import popxl as _popxl


@contender("popxl, all states in files")  # noqa: F821
def _popxl_files(layers, slots, batch):
    sizes = _stack.Sizes(layers=layers, batch=batch)
    path = weights_file(layers)  # noqa: F821
    directory = Path(SCRATCH) / "popxl-training"  # noqa: F821
    shutil.rmtree(directory, ignore_errors=True)
    program = _stack.training(sizes, lambda i: np.fromfile(path, np.float32, COUNT, offset=i * NB))  # noqa: F821
    memory = _popxl.StreamingMemory(f"file:{directory}", host_memory=slots * NB)  # noqa: F821
    session = _popxl.Session(program.ir, weights_to_host_on_exit=False, streaming_memory=memory)
    session.__enter__()

    def step(x):
        loss = float(session.run({program.x_in: x})[program.out])
        session.wait()
        return loss

    return step, str(directory)
