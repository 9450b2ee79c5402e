"""Data-parallel training with weights and optimizer state in Streaming Memory, sharded over the replicas of a job.

Each process writes lines: its number and id, and after each commit the step and the generation. It goes on from the
last commit of the directory.

Arguments: the directory, the number of the last step, and a file for the weights at the end.
"""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

import popxl
from popxl import ops, transforms
from popxl.ops import collectives

WIDTHS = (6, 9, 5)
ROWS = 4


def say(*words: object) -> None:
    """A line that no other process's gets between, with a mark: libraries write there too."""
    os.write(1, f"> {' '.join(str(word) for word in words)}\n".encode())


def loss(x: Any, y: Any, first: Any, second: Any) -> Any:
    """Of a perceptron with one hidden layer."""
    error = ops.tanh(x @ first) @ second - y
    return ops.mean(error * error)


class Program:
    """One step of Adam without the correction of its start, with what it reads and changes."""

    def __init__(self) -> None:
        self.ir = popxl.Ir("popdist")
        chance = np.random.default_rng(0)
        self.weights: list[Any] = []
        self.state: list[Any] = []
        with self.ir.main_graph, popxl.in_sequence():
            self.x = popxl.h2d_stream((ROWS, WIDTHS[0]), popxl.float32)
            self.y = popxl.h2d_stream((ROWS, WIDTHS[-1]), popxl.float32)
            self.step = popxl.variable(np.int32(0), name="step")
            buffers, shards = [], []
            for k, shape in enumerate(itertools.pairwise(WIDTHS)):
                start = chance.normal(size=shape).astype(np.float32) / 2
                buffer = popxl.replica_sharded_buffer(shape, popxl.float32, entries=3)
                names = (f"weight{k}", f"mean{k}", f"square{k}")
                values = (start, np.zeros(shape, np.float32), np.zeros(shape, np.float32))
                variables = [
                    popxl.remote_replica_sharded_variable(value, buffer, entry, name=name)
                    for entry, (value, name) in enumerate(zip(values, names, strict=True))
                ]
                self.weights.append(variables[0])
                self.state += variables[1:]
                buffers.append(buffer)
                shards.append([ops.remote_load(buffer, entry) for entry in range(3)])
            gradients = self._gradients([collectives.replicated_all_gather(shard[0]) for shard in shards])
            for buffer, shard, gradient in zip(buffers, shards, gradients, strict=True):
                for entry, new in enumerate(_updated(*shard, gradient)):
                    ops.remote_store(buffer, entry, new)
            self.step += 1

    def _gradients(self, weights: list[Any]) -> list[Any]:
        """Each replica's shard of the mean gradient."""
        x, y = ops.host_load(self.x), ops.host_load(self.y)
        forward = self.ir.create_graph(loss, x, y, *weights)
        info = transforms.autodiff(forward, grads_required=forward.inputs[2:])
        call = ops.call_with_info(forward, x, y, *weights)
        found = ops.call(info.graph, popxl.constant(1.0), inputs_dict=info.inputs_dict(call))
        return [
            collectives.replicated_reduce_scatter(t, "mean", configure_output_for_replicated_tensor_sharding=True)
            for t in found
        ]

    def inputs(self, step: int) -> dict[Any, np.ndarray]:
        """The rows of this process's replicas in a step."""
        local = self.ir.instance_replication_factor
        first = self.ir.job.process_id * local
        rows = [np.random.default_rng([step, replica]) for replica in range(first, first + local)]
        x = np.stack([each.normal(size=(ROWS, WIDTHS[0])).astype(np.float32) for each in rows])
        y = np.stack([np.sin(each[:, : WIDTHS[-1]]) for each in x])
        return {self.x: x if local > 1 else x[0], self.y: y if local > 1 else y[0]}


def _updated(weight: Any, mean: Any, square: Any, gradient: Any) -> tuple[Any, Any, Any]:
    mean = mean * 0.9 + gradient * 0.1
    square = square * 0.99 + gradient * gradient * 0.01
    return weight - mean * 0.01 / (ops.sqrt(square) + 1e-3), mean, square


def main(directory: str, last: int, result: str) -> None:
    """Train up to a step."""
    program = Program()
    process = program.ir.job.process_id
    say(process, os.getpid(), "begins")
    memory = popxl.StreamingMemory(f"file:{directory}", reopen=True)
    with popxl.Session(program.ir, "cpu", streaming_memory=memory, weights_to_host_on_exit=False) as session:
        step = int(session.get_tensor_data(program.step))
        say(process, os.getpid(), "starts", step, session.generation)
        while step < last:
            session.run(program.inputs(step))
            step += 1
            generation = session.commit()
            say(process, os.getpid(), "commits", step, generation)
        found = session.get_tensors_data([*program.weights, *program.state, program.step])
        if process == 0:
            np.savez(result, **{v.name: value for v, value in found.items()})


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), str(Path(sys.argv[3])))
