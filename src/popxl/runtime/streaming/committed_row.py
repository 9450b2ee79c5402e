"""The host's value of a remote variable after a commit: not a copy, but where to read it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from popxl.errors import StreamingMemoryError

from .committed import CommittedDirectory


@dataclass(frozen=True, slots=True)
class CommittedRow:
    """Reads one entry of a commit when it is called.

    Args:
        directory: Of the file tier that made the commit.
        buffer_id: Which buffer.
        entry: Which entry.
        generation: Number of the commit.
    """

    directory: Path
    buffer_id: int
    entry: int
    generation: int

    def __call__(self) -> np.ndarray[Any, Any]:
        """The value.

        Raises:
            StreamingMemoryError: The directory is gone, was damaged, or has another commit by now.
        """
        with CommittedDirectory.open(self.directory) as committed:
            if committed.generation != self.generation:
                raise StreamingMemoryError(
                    f"The value of remote buffer {self.buffer_id}, entry {self.entry}, was committed to "
                    f"{self.directory} as generation {self.generation}; that directory now holds generation "
                    f"{committed.generation}.",
                    hint="another session has used the directory since; give each session one of its own.",
                )
            return committed.read(self.buffer_id, self.entry)
