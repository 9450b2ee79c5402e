"""Seeing what a session does: traces, reports, a memory timeline, progress. Reads events, off the hot path."""

from .progress_bar import Progress, progress
from .recording import Recording
from .report import Report

__all__ = ["Progress", "Recording", "Report", "progress"]
