"""Graph to graph: transforms of programs."""
