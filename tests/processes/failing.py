"""A job of which one process fails while the other waits for it in a collective.

Arguments: how it fails, which process, and a directory.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

import popxl
from popxl import ops
from popxl.ops import collectives


def damage(slab: Path) -> None:
    """Change each byte of a file."""
    slab.write_bytes(bytes(byte ^ 1 for byte in slab.read_bytes()))


def main(how: str, which: int, directory: str) -> None:
    """Run once well; then one process does what it is told."""
    ir = popxl.Ir("popdist")
    with ir.main_graph, popxl.in_sequence():
        buffer = popxl.remote_buffer((3,), popxl.float32)
        popxl.remote_variable(np.ones(3, np.float32), buffer, 0)
        row = ops.remote_load(buffer, 0)
        out = popxl.d2h_stream((3,), popxl.float32)
        ops.host_store(out, collectives.replicated_all_reduce(row))
        ops.remote_store(buffer, 0, row + 1)
    mine = ir.job.process_id
    with popxl.Session(ir, "cpu", streaming_memory=f"file:{directory}") as session:
        assert session.run()[out].tolist() == [2, 2, 2]
        session.commit()
        if mine == which and how == "exit":
            sys.exit(7)
        if mine == which and how == "raise":
            raise KeyError("what this process lacks")
        if mine == which:
            damage(Path(directory, f"process-{mine}", "buffer-1.slab"))
        while True:
            session.run()
            session.wait()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
