"""Graph to graph: transforms of programs."""

from popxl.transforms.autodiff import autodiff
from popxl.transforms.decompose import decompose_sum
from popxl.transforms.exchange import io_tile_exchange, merge_exchange
from popxl.transforms.grad_info import ExpectedConnection, ExpectedConnectionType, GradGraphInfo

__all__ = [
    "ExpectedConnection",
    "ExpectedConnectionType",
    "GradGraphInfo",
    "autodiff",
    "decompose_sum",
    "io_tile_exchange",
    "merge_exchange",
]
