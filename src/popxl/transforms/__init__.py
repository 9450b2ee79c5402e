"""Graph to graph: transforms of programs."""

from popxl.transforms.exchange import io_tile_exchange, merge_exchange

__all__ = ["io_tile_exchange", "merge_exchange"]
