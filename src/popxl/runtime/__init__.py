"""Runs a plan: compiles segments with XLA, walks the steps, moves data between host, device and Streaming Memory."""
