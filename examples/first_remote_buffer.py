"""A first remote buffer: four rows in Streaming Memory, visited by a loop whose offset is a tensor.

The loop loads row k, adds it to a running total and stores it back doubled. The graph of one visit is built once;
which row it touches is an ordinary input, carried from visit to visit. Run it with a tier as its argument, `ram`
(the default) or `file:DIR`; what it prints is the same.
"""

from __future__ import annotations

import sys

import numpy as np

import popxl
from popxl import ops

ROWS = 4


def visit(k: popxl.Tensor, total: popxl.Tensor, buffer: popxl.RemoteBuffer) -> tuple[popxl.Tensor, popxl.Tensor]:
    row = ops.remote_load(buffer, k)
    ops.remote_store(buffer, k, row * 2)
    # Output n of one visit is input n of the next.
    return k + 1, total + row


def main(tier: str = "ram") -> None:
    ir = popxl.Ir()
    with ir.main_graph:
        buffer = popxl.remote_buffer((2,), popxl.float32, entries=ROWS)
        rows = [popxl.remote_variable(np.full(2, k + 1, np.float32), buffer, k) for k in range(ROWS)]

        k = popxl.constant(0, popxl.uint32)
        total = popxl.constant(np.zeros(2, np.float32))
        k, total = ops.repeat(ir.create_graph(visit, k, total, buffer), ROWS, k, total)

        last_k = popxl.d2h_stream(k.shape, k.dtype)
        answer = popxl.d2h_stream(total.shape, total.dtype)
        ops.host_store(last_k, k)
        ops.host_store(answer, total)

    with popxl.Session(ir, streaming_memory=tier) as session:
        outputs = session.run()
        print("offset after the loop:", outputs[last_k])
        print("total of the rows:", outputs[answer])
        for k, row in enumerate(rows):
            print(f"row {k} is now:", session.get_tensor_data(row))


if __name__ == "__main__":
    main(*sys.argv[1:])
