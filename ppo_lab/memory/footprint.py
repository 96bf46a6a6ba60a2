"""Each strategy's device memory in closed form: the forecast's explanation, and a check on it.

Nothing is run and no tensor is made. Memory is the largest of a few moments, and each moment is a
sum of terms that a person can work out on paper.

Symbols: P = parameters, B = rows of a micro-batch, R = rows of a rollout, O = observation size,
w = bytes of a number.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch

from ppo_lab.envs.base import DiscreteActions, EnvSpec
from ppo_lab.memory.base import MemoryStrategy
from ppo_lab.networks import MlpConfig, NetworkConfig
from ppo_lab.placement import Place
from ppo_lab.tally import Category

__all__ = ["Footprint", "Moment", "Sized", "Term", "footprint"]


class Sized(Protocol):
    """What of a configuration decides its memory."""

    @property
    def memory(self) -> MemoryStrategy:
        """The strategy."""

    @property
    def network(self) -> NetworkConfig:
        """The network."""

    @property
    def num_rows(self) -> int:
        """R."""

    @property
    def num_envs(self) -> int:
        """Environments stepped together."""

    @property
    def num_epochs(self) -> int:
        """Passes over a rollout."""

    @property
    def num_minibatches(self) -> int:
        """Gradient steps per epoch."""

    @property
    def weights_dtype(self) -> torch.dtype:
        """Type of weights."""

    @property
    def compute_dtype(self) -> torch.dtype | None:
        """Autocast's type; None for the weights' own."""


class Term(NamedTuple):
    """One line of the sum."""

    category: Category
    name: str
    num_bytes: int
    formula: str
    """In words, such as ``4 B x 2,345 parameters``."""


@dataclass(frozen=True)
class Moment:
    """What is held at one moment."""

    name: str
    terms: tuple[Term, ...]

    @property
    def total(self) -> int:
        """Bytes."""
        return sum(term.num_bytes for term in self.terms)


@dataclass(frozen=True)
class Footprint:
    """The moments that can be the peak, and what a strategy holds in short."""

    moments: tuple[Moment, ...]
    summary: str
    """Such as ``16 B per parameter + activations``."""

    @property
    def peak(self) -> Moment:
        """The moment that holds most."""
        return max(self.moments, key=lambda moment: moment.total)

    @property
    def total(self) -> int:
        """Bytes on the device at the peak."""
        return self.peak.total

    def by_category(self) -> dict[Category, int]:
        """Return the peak's bytes by category, absent ones as 0."""
        sums = dict.fromkeys(Category, 0)
        for term in self.peak.terms:
            sums[term.category] += term.num_bytes
        return sums


def footprint(config: Sized, spec: EnvSpec) -> Footprint:
    """Return the closed form of ``config`` in an environment that looks like ``spec``."""
    network, memory = config.network, config.memory
    assert isinstance(network, MlpConfig), "the closed form is that of a multilayer perceptron"
    w = config.weights_dtype.itemsize
    actions = spec.actions
    num_outputs = actions.num_actions if isinstance(actions, DiscreteActions) else len(actions.low)
    trunk = network.num_trunk_parameters(spec.observation_size)
    heads = (network.hidden[-1] + 1) * (num_outputs + 1)
    nets = 1 if memory.shares_trunk else 2
    num_parameters = nets * trunk + heads
    trained = num_parameters // memory.num_passes
    on_device = memory.optimizer_place is Place.device or memory.num_passes > 1
    rows = config.num_rows // config.num_minibatches // memory.num_micro_batches
    widths = sum(b for _, b in pairwise([spec.observation_size, *network.hidden]))
    kept = [
        Term(Category.weights, "weights", w * num_parameters, f"{w} B x {num_parameters:,}"),
        Term(
            Category.optimizer,
            "Adam's moments",
            2 * w * trained if on_device else 0,
            f"{2 * w} B x {trained:,}" if on_device else "on the host",
        ),
    ]
    gradients = Term(Category.gradients, "gradients", w * trained, f"{w} B x {trained:,}")
    activations = Term(
        Category.activations,
        "activations",
        2 * w * nets * widths * rows,
        f"{2 * w} B x {nets} x {widths:,} units x {rows:,} rows",
    )
    moments = (
        Moment("update: backward begins", (*kept, activations)),
        Moment("update: optimizer step", (*kept, gradients)),
    )
    return Footprint(moments, f"{(3 if on_device else 1) * w + w} B per parameter + activations")
