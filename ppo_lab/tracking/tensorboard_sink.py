"""TensorBoard's event file in a run's folder: ``tensorboard --logdir outputs`` shows all runs."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from ppo_lab.tracking.base import Histogram, Record, RunInfo, Sink
from ppo_lab.utils.json_files import flat, to_jsonable
from ppo_lab.utils.redaction import mask_values

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["TensorBoardSink"]

_EVENT_FILES = "events.out.tfevents.*"
_FLUSH_S = 2  # how much of a killed run is lost at most; the writer's default is 120
_IN_HPARAMS = ("final_return", "best_return", "auc_return", "env_steps_per_s", "wall_time_s")
_NO_HPARAMS = ("versions.", "git.", "machine.", "tracking.", "checkpoint.", "overrides")


class TensorBoardSink(Sink):
    """Writes scalars, histograms and texts by environment steps, and the config as HPARAMS."""

    def start(self, run: RunInfo) -> None:
        """Note the run; the file begins with the first record."""
        import torch.utils.tensorboard  # noqa: F401 - takes 0.3 s, better now than while training

        self._folder, self._config = run.folder, dict(run.config)
        self._writer: Any = None  # torch's SummaryWriter, whose types are incomplete

    def describe(self, values: Mapping[str, Any]) -> None:
        """Add to the run's config."""
        self._config |= values

    def record(self, record: Record) -> None:
        """Queue one iteration for the writer's thread."""
        step = record.global_step
        writer = self._writer or self._open(step)
        # One event an iteration: add_scalar would write one a metric.
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [Summary.Value(tag=t, simple_value=v) for t, v in record.metrics.items()]
        writer.file_writer.add_summary(Summary(value=values), step)
        for tag, histogram in record.histograms.items():
            _add_histogram(writer, tag, histogram, step)
        if record.samples:
            lines = [f"- {reward:.3f}: {text}" for text, reward in record.samples]
            writer.add_text("samples", "\n".join(lines), step)

    def finish(self, summary: Mapping[str, Any], exit_code: int) -> None:  # noqa: ARG002
        """Add config and results for the tab HPARAMS, and close the file."""
        if self._writer is None:
            return
        from torch.utils.tensorboard.summary import hparams

        config = mask_values(to_jsonable(self._config))
        # A list is shown as text; one type per key, so that null is text too.
        settings = {
            key: value if isinstance(value, bool | int | float | str) else str(value)
            for key, value in flat(config)
            if not key.startswith(_NO_HPARAMS)
        }
        results = {key: summary[key] for key in _IN_HPARAMS if summary.get(key) is not None}
        for each in hparams(settings, results):
            self._writer.file_writer.add_summary(each)
        for key, value in results.items():  # HPARAMS takes its numbers from scalars
            self._writer.add_scalar(key, value)
        self._writer.close()

    def _open(self, step: int) -> Any:  # noqa: ANN401 - see start
        from torch.utils.tensorboard import SummaryWriter

        # An earlier process of the run may have recorded later steps, which are hidden then.
        purge = step if any(self._folder.glob(_EVENT_FILES)) else None
        self._writer = SummaryWriter(str(self._folder), purge_step=purge, flush_secs=_FLUSH_S)
        return self._writer


def _add_histogram(writer: SummaryWriter, tag: str, histogram: Histogram, step: int) -> None:
    edges, counts = histogram.edges, histogram.counts
    middles = [(low + high) / 2 for low, high in pairwise(edges)]
    writer.add_histogram_raw(
        tag,
        min=edges[0],
        max=edges[-1],
        num=sum(counts),
        sum=sum(n * x for n, x in zip(counts, middles)),
        sum_squares=sum(n * x * x for n, x in zip(counts, middles)),
        bucket_limits=list(edges[1:]),
        bucket_counts=list(counts),
        global_step=step,
    )
