"""Tracking of a run's metrics: its own files, Weights & Biases, and the terminal."""

from ppo_lab.tracking.base import Histogram, Record, RunInfo, Sink
from ppo_lab.tracking.config import Terminal, TrackingConfig, TrackingMode
from ppo_lab.tracking.local import LocalSink, cut_metrics, read_metrics, read_summary
from ppo_lab.tracking.tables import next_steps, places, reasons, summary_panel
from ppo_lab.tracking.terminal import Progress, TerminalSink
from ppo_lab.tracking.tracker import SafeSink, Tracker
from ppo_lab.tracking.wandb_sink import WandbSink

__all__ = [
    "Histogram", "LocalSink", "Progress", "Record", "RunInfo", "SafeSink", "Sink", "Terminal",
    "TerminalSink", "Tracker", "TrackingConfig", "TrackingMode", "WandbSink", "cut_metrics",
    "next_steps", "places", "read_metrics", "read_summary", "reasons",
    "summary_panel"]  # fmt: skip
