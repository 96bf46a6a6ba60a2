"""Each strategy's device memory in closed form: the forecast's explanation, and a check on it.

Nothing is run and no tensor is made. Memory is that of the largest of a few moments, and each
moment is a sum of terms that a person can work out on paper. Small terms are left out: rounding to
512 B, scalars, what a loss keeps for a row, the environment's own temporaries.

Symbols: P = parameters, b = rows of a micro-batch, B = rows of a minibatch, R = rows of a rollout,
E = epochs, O = observation size, w = bytes of a weight, c = bytes of a number in a layer's output
(2 under autocast, else w).
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Protocol

import torch

from ppo_lab.devices.placement import Place
from ppo_lab.envs import NATIVE_ENVS
from ppo_lab.envs.base import DiscreteActions, EnvSpec
from ppo_lab.envs.config import Backend, EnvConfig
from ppo_lab.forecast.categories import Category
from ppo_lab.forecast.layer_memory import (
    Layer,
    NetworkShape,
    PassMoment,
    largest_copy,
    network_shapes,
    pass_moments,
    tensor_sizes,
)
from ppo_lab.memory.base import MemoryStrategy
from ppo_lab.networks import MlpConfig, NetworkConfig

__all__ = ["Footprint", "Moment", "Sized", "Term", "footprint", "times"]


class Term(NamedTuple):
    """One line of the sum."""

    category: Category
    name: str
    num_bytes: int
    formula: str
    """Such as ``4 B x 2,345 parameters``."""


@dataclass(frozen=True)
class Moment:
    """What is held at one moment."""

    name: str
    terms: tuple[Term, ...]

    @property
    def total(self) -> int:
        """Bytes."""
        return sum(term.num_bytes for term in self.terms)


def times(category: Category, name: str, num_bytes: int, count: int, of: str) -> Term:
    """Return ``count`` things of ``num_bytes`` each."""
    return Term(category, name, num_bytes * count, f"{num_bytes:,} B x {count:,} {of}")


_DRAW = 32
"""Bytes per number while random.bits mixes: its counters, the mixed, the shifted, the masked."""
_STEPS_AT_ONCE, _DRAWN_AT_ONCE = 128, 1 << 18  # envs/native.py: as many starts, as many numbers
_MIN_ROWS_PER_PASS = 4096  # trainer.py: forward passes without gradients are not split below it


class Sized(Protocol):
    """What of a configuration decides its memory."""

    env: EnvConfig
    memory: MemoryStrategy
    network: NetworkConfig
    num_envs: int
    num_epochs: int
    num_minibatches: int

    @property
    def num_rows(self) -> int:
        """Environment steps of one rollout."""

    @property
    def clips_separately(self) -> bool:
        """Whether actor and critic are each clipped by their own norm."""

    @property
    def weights_dtype(self) -> torch.dtype:
        """Type of weights and observations."""

    @property
    def compute_dtype(self) -> torch.dtype | None:
        """Autocast's type; None for the weights' own."""


@dataclass(frozen=True)
class Footprint:
    """The moments that can be the peak, and what a strategy holds in short."""

    moments: tuple[Moment, ...]
    """Each phase's most: of the many moments of a forward and backward pass, the largest."""
    summary: str
    """Such as ``16 B per parameter``: what stays where activations and rollout are small."""

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
    form = _Form(config, spec)
    moments = (form.build(), form.values(), form.largest_pass(), form.step(), form.log_summary())
    return Footprint((*moments, *form.diagnostics()), form.summary())


class _Form:
    """The moments of one configuration, and the terms that they share."""

    def __init__(self, config: Sized, spec: EnvSpec) -> None:
        network, actions, memory = config.network, spec.actions, config.memory
        assert isinstance(network, MlpConfig), "the closed form is that of a multilayer perceptron"
        is_discrete = isinstance(actions, DiscreteActions)
        num_actions = actions.num_actions if is_discrete else len(actions.low)  # type: ignore[union-attr]
        self.config, self.spec, self.memory = config, spec, memory
        self.w = config.weights_dtype.itemsize
        self.c = self.w if config.compute_dtype is None else config.compute_dtype.itemsize
        self.is_mixed = config.compute_dtype is not None
        self.is_parked = memory.num_passes > 1
        self.has_device_adam = memory.optimizer_place is Place.device or self.is_parked
        self.rows, self.epochs = config.num_rows, config.num_epochs
        self.minibatch = config.num_rows // config.num_minibatches
        self.micro = self.minibatch // memory.num_micro_batches
        self.action_bytes = 8 if is_discrete else self.w * num_actions
        self.head_width = num_actions if is_discrete else 2 * num_actions
        self.noise_width = num_actions
        self.hidden = network.hidden
        self.networks = network_shapes(
            (spec.observation_size, *network.hidden),
            num_actions,
            has_free_std=not is_discrete,
            shares_trunk=memory.shares_trunk,
            is_checkpointed=memory.checkpoint_activations,
        )
        self.num_parameters = sum(shape.num_parameters for shape in self.networks)
        # A pass of its own trains the larger of the two; with one pass, all.
        sizes = [shape.num_parameters for shape in self.networks]
        self.num_trained = max(sizes) if self.is_parked else sum(sizes)

    # What is held all along

    def weights(self, count: int | None = None) -> Term:
        number = self.num_parameters if count is None else count
        return times(Category.weights, "weights", self.w, number, "parameters")

    def moments(self, *, in_update: bool) -> Term:
        """Adam's two numbers per parameter; parked, those of the network in training."""
        name, w2 = "Adam's moments", 2 * self.w
        if not self.has_device_adam or (self.is_parked and not in_update):
            return Term(Category.optimizer, name, 0, "on the host")
        return times(Category.optimizer, name, w2, self.num_trained, "parameters")

    def environment(self) -> Term:
        """Start states, which native environments draw for many steps at once (envs/native.py)."""
        config, name = self.config, "environment"
        numbers = 2 * self.spec.observation_size  # current and last observations
        if config.env.resolved_backend() is Backend.torch:
            kind = NATIVE_ENVS[config.env.id]
            width = len(kind.start_low)
            limit = config.env.max_episode_steps or kind.time_limit
            window = min(kind.shortest_episode, limit)
            num_steps = window * (_DRAWN_AT_ONCE // (config.num_envs * width))
            num_steps = max(1, min(_STEPS_AT_ONCE, num_steps))
            if width != self.spec.observation_size:
                width += self.spec.observation_size
            numbers += num_steps * width
        return times(
            Category.environment, name, self.w, numbers * config.num_envs, "starts and observations"
        )

    def rollout(self, *, is_collecting: bool = False) -> Term:
        """Columns of rollout.py's Rollout and Advantages; while collecting, of collect.py's."""
        w, size = self.w, self.spec.observation_size
        observations = 0 if self.memory.rollout_place is Place.host else w * size
        per_row = observations + self.action_bytes + 2  # terminated, truncated
        if is_collecting:  # last observations, distribution, rewards twice, log probs, values
            per_row += observations + w * self.head_width + 4 * w
        else:  # log probs, values, next values, rewards twice, advantages, targets
            per_row += 7 * w
        return times(Category.rollout, "rollout", per_row, self.rows, "rows")

    def update_workspace(self) -> list[Term]:
        """What waits through an update: orders, the log, the minibatch's columns."""
        logged = self.epochs * self.rows
        per_row = self.action_bytes + 5 * self.w  # of a Batch; advantages raw and normalised
        return [
            times(
                Category.workspace,
                "orders",
                8,
                logged + self.rows,
                "rows: every epoch's, and one in use",
            ),
            times(Category.workspace, "step log", 2 * self.w, logged, "rows of all epochs"),
            times(Category.workspace, "minibatch", per_row, self.minibatch, "rows"),
        ]

    # The moments

    def build(self) -> Moment:
        """A layer's random numbers are drawn beside the layers before it."""
        before, moments = 0, []
        for layer in self._layers():
            drawn = times(
                Category.workspace, "random numbers", _DRAW, layer.num_weights, "of a layer"
            )
            moments.append(Moment("build: a layer is drawn", (self.weights(before), drawn)))
            before += layer.num_parameters
        return max(moments, key=lambda moment: moment.total)

    def _forward(self, network: NetworkShape) -> list[Term]:
        """Layer by layer, without gradients: a layer's input, its sum and its output."""
        rows = min(self.rows, max(self.minibatch, _MIN_ROWS_PER_PASS))
        widths = (0, *self.hidden)  # the first layer's input is a view of the rollout
        most = max(before + 2 * width for before, width in pairwise(widths))
        terms = [
            times(Category.workspace, "layers in use", self.c * most, rows, "rows of a pass"),
        ]
        if self.memory.rollout_place is Place.host:
            per_row = self.w * self.spec.observation_size
            terms.append(times(Category.workspace, "observations", per_row, rows, "rows sent up"))
        if self.is_mixed:
            count = network.num_weights
            terms.append(
                times(Category.activations, "copies by autocast", self.c, count, "weights")
            )
        return terms

    def values(self) -> Moment:
        noise = self.w * self.noise_width
        kept = [
            self.weights(),
            self.moments(in_update=False),
            self.environment(),
            self.rollout(is_collecting=True),
            times(Category.workspace, "noise", noise, self.rows, "rows"),
        ]
        return Moment("rollout: values of its rows", (*kept, *self._forward(self.networks[-1])))

    def largest_pass(self) -> Moment:
        """The largest of all moments of a forward and backward pass (layer_memory.py)."""
        passes = [[shape] for shape in self.networks] if self.is_parked else [self.networks]
        moments = [
            self._pass(moment, len(networks))
            for networks in passes
            for moment in pass_moments(
                networks,
                is_mixed=self.is_mixed,
                has_gradients=self.memory.num_micro_batches > 1,
            )
        ]
        return max(moments, key=lambda moment: moment.total)

    def _pass(self, moment: PassMoment, num_networks: int) -> Moment:
        per_unit, units = self.c * self.micro, f"units of {self.micro:,} rows"
        # Autocast casts them for each network; the product keeps what it reads.
        observed = num_networks * self.c if self.is_mixed else 0
        observed += 0 if self.is_mixed and moment.has_begun else self.w
        observed *= self.spec.observation_size
        activations, workspace = Category.activations, Category.workspace
        terms = [
            times(Category.gradients, "gradients", self.w, moment.num_gradients, "parameters"),
            times(activations, "kept for backward", per_unit, moment.num_kept, units),
            times(activations, "in use", per_unit, moment.num_in_use, units),
            times(workspace, "observations", observed, self.micro, "rows"),
            times(activations, "copies by autocast", self.c, moment.num_cast, "weights"),
        ]
        return Moment(f"update: {moment.name}", (*self._during_update(), *terms))

    def _during_update(self) -> list[Term]:
        kept = [self.weights(), self.moments(in_update=True), self.environment(), self.rollout()]
        return kept + self.update_workspace()

    def step(self) -> Moment:
        """Small gradients are copied side by side (optimizer.py) while they still exist."""
        gradients = times(Category.gradients, "gradients", self.w, self.num_trained, "parameters")
        terms = [*self._during_update(), gradients]
        if self.has_device_adam:
            copied = max(map(largest_copy, self._parameter_groups()))
            terms.append(times(Category.workspace, "a bucket's copy", self.w, copied, "parameters"))
        return Moment("update: optimizer step", tuple(terms))

    def _parameter_groups(self) -> list[list[int]]:
        """Sizes of the parameters in the optimizer's order, clipped together or apart."""
        if self.config.clips_separately:
            return [
                [*tensor_sizes((*shape.trunk, *shape.heads)), shape.num_free]
                for shape in self.networks
            ]
        return [[*(shape.num_free for shape in self.networks), *tensor_sizes(self._layers())]]

    def _layers(self) -> list[Layer]:
        """Every layer in the order in which the model makes them."""
        trunks = [layer for shape in self.networks for layer in shape.trunk]
        return trunks + [layer for shape in self.networks for layer in shape.heads]

    def log_summary(self) -> Moment:
        """diagnostics.py's clip_fractions over the log: a ratio, 9 masks, 5 of them as float32."""
        logged = self.epochs * self.rows
        masks = times(
            Category.workspace, "clip fractions", self.w + 29, logged, "rows of all epochs"
        )
        terms = [t for t in self._during_update() if t.category is not Category.optimizer]
        return Moment(
            "update: the log is summarised", (*terms, self.moments(in_update=False), masks)
        )

    def diagnostics(self) -> tuple[Moment, Moment]:
        """The policy over the rollout once more; and episodes.py's sums.

        These are 7 columns of 8 B and 2 masks, beside log ratios, entropies, advantages, rewards.
        """
        kept = [self.weights(), self.moments(in_update=False), self.environment(), self.rollout()]
        sums = times(Category.workspace, "sums", 7 * 8 + 2 + 4 * self.w, self.rows, "rows")
        return (
            Moment(
                "diagnostics: policy over the rollout", (*kept, *self._forward(self.networks[0]))
            ),
            Moment("diagnostics: episodes", (*kept, sums)),
        )

    def summary(self) -> str:
        """What a parameter costs when its gradient is there and the step has not been taken."""
        w = self.w
        if self.is_parked:
            return f"{w} B per parameter + {3 * w} B per parameter of the network in training"
        total = 4 * w if self.has_device_adam else 2 * w
        return f"{total} B per parameter" + (
            " of trunk and heads" if len(self.networks) == 1 else ""
        )
