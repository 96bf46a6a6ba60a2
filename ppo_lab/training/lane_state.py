"""The state of one lane: all that its next iterations depend on, besides its config.

Parameters, optimizer state, environments with their running statistics and next observations, sums
of unfinished episodes, and the history. Random numbers are functions of (seed, stream, counter), so
there is no generator to save. Names do not depend on the stack: a lane may go on in another one.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from ppo_lab.devices.placement import copy_exactly
from ppo_lab.networks import ActorCritic
from ppo_lab.ppo.adam import LaneOptimizer
from ppo_lab.ppo.collector import Collector
from ppo_lab.training.checkpoint import LaneState
from ppo_lab.training.recorder import EpisodeMeter
from ppo_lab.training.scores import History

__all__ = ["LaneStates"]

_LOG = logging.getLogger(__name__)

_OPTIMIZER_PARTS = ("exp_avg", "exp_avg_sq", "num_steps")
"""What ``LaneOptimizer.state_parts`` yields of one parameter, in this order."""


class LaneStates:
    """Reads and writes the states of single lanes of a trainer, between iterations.

    Tensors are written in place, so compiled programs and CUDA graphs stay valid.
    """

    def __init__(
        self,
        model: ActorCritic,
        optimizer: LaneOptimizer,
        collector: Collector,
        episodes: EpisodeMeter,
        histories: list[History],
        others: Mapping[str, Tensor],
        reference_digest: str | None,
    ) -> None:
        """Take the parts of a trainer that change while it trains; ``others`` are (L, …).

        A state has the digest of the reference, which is not part of it.
        """
        self._others, self._reference_digest = others, reference_digest
        self._model, self._optimizer, self._collector = model, optimizer, collector
        self._episodes, self._histories = episodes, histories

    def read(self, lane: int, numbers: Mapping[str, Any]) -> LaneState:
        """Return copies on the host, and ``numbers`` with those that belong to the tensors.

        The copies are not counted as traffic: records must not depend on when a state is read.
        """
        env_tensors, env_numbers = self._collector.lane_state(lane)
        history = self._histories[lane]
        columns = history.columns().items()
        tensors = {
            **dict(self._views(lane)),
            **{f"env.{name}": tensor for name, tensor in env_tensors.items()},
            **{f"history.{n}": torch.tensor(c, dtype=torch.float64) for n, c in columns},
        }
        copies = {name: t.detach().cpu().clone().contiguous() for name, t in tensors.items()}
        own: dict[str, Any] = {
            "env": env_numbers,
            "env_mode": self._collector.env.state_mode,
            "num_episodes": history.num_episodes,
        }
        if history.texts:
            own["texts"] = history.texts
        if self._reference_digest is not None:
            own["reference"] = self._reference_digest
        return LaneState(copies, {**numbers, **own})

    @torch.no_grad()
    def write(self, lane: int, state: LaneState) -> None:
        """Continue ``lane`` from ``state``; raise ``ValueError`` if it does not fit the stack."""
        mode, its_mode = self._collector.env.state_mode, state.numbers["env_mode"]
        if mode != its_mode:
            raise ValueError(f"the state is of {its_mode} environments, these are {mode}")
        if state.numbers.get("reference") != self._reference_digest:
            _LOG.warning("the run goes on with another reference: its file was made again")
        try:
            for name, view in self._views(lane):
                copy_exactly(view, state.tensors[name], name)
            self._optimizer.take_weights()
            env = _within(state.tensors, "env.")
            self._collector.load_lane_state(lane, env, state.numbers["env"])
            columns = {n: t.tolist() for n, t in _within(state.tensors, "history.").items()}
            history = History.from_columns(columns, state.numbers["num_episodes"])
            history.texts = dict(state.numbers.get("texts", {}))
        except KeyError as error:
            raise ValueError(f"the state does not fit this run: it has no {error}") from None
        self._histories[lane] = history

    def _views(self, lane: int) -> Iterator[tuple[str, Tensor]]:
        """Yield views of parameters, optimizer state and sums of ``lane``, each with its name."""
        names = {parameter: name for name, parameter in self._model.named_parameters()}
        for parameter, name in names.items():
            yield f"model.{name}", parameter.detach()[lane]
        num_seen: Counter[str] = Counter()
        for tensor, owner in self._optimizer.state_parts():
            name = "num_steps" if owner is None else names[owner]
            part = num_seen[name] if owner is None else _OPTIMIZER_PARTS[num_seen[name]]
            num_seen[name] += 1
            # Step counts of an optimizer of one lane have no lane axis.
            yield f"optimizer.{name}.{part}", tensor[lane] if tensor.ndim else tensor
        for name, sums in self._episodes.lane_tensors(lane).items():
            yield f"episodes.{name}", sums
        for name, tensor in self._others.items():
            yield name, tensor[lane]


def _within(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with ``prefix``, without it."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
