"""Trainers held to the reference: both are given the same rollouts, all that follows must agree."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import pytest
import torch
from torch import Tensor

from ppo_lab.config.lanes import LANE_KEYS
from ppo_lab.config.run import Config
from ppo_lab.envs.base import ContinuousActions
from ppo_lab.ppo.rollout import Rollout
from ppo_lab.training.trainer import Trainer
from tests.helpers.reference import Keys, Reference

__all__ = [
    "CHANGES",
    "OF_LANES",
    "check_lane_keys",
    "at_defaults",
    "check_iteration",
    "differing",
    "made_up_rollout",
    "of_lane",
    "with_keys",
]

_SIZES = ("num_envs", "num_steps", "num_epochs", "num_minibatches", "total_steps")
_OPTIONS = {"value_epsilon", "dual_clip", "target_kl"}
_KEYS = {field.name for field in dataclasses.fields(Keys)} - {"activation"}
# One key changed from its default at a time; each must change what the reference says.
CHANGES = [
    {"epsilon": 0.05}, {"epsilon": None}, {"epsilon_high": 0.5}, {"epsilon_schedule": "linear"},
    {"dual_clip": 1.1}, {"value_epsilon": 0.1}, {"target_kl": 0.016}, {"lr": 1e-3},
    {"lr_schedule": "linear"}, {"adam_eps": 1e-2}, {"max_grad_norm": 0.05}, {"max_grad_norm": None},
    {"separate_grad_clip": True}, {"gamma": 0.5}, {"gae_lambda": 0.3},
    {"bootstrap_truncated": False}, {"num_epochs": 4}, {"num_minibatches": 4},
    {"advantage_normalization": "rollout"}, {"advantage_normalization": "none"},
    {"entropy_coef": 2.0}, {"value_coef": 2.0},
]  # fmt: skip
OF_LANES = [change for change in CHANGES if LANE_KEYS.issuperset(change)]
_NOT_OURS = ("time/", "perf/", "charts/SPS")  # of the machine, not of the algorithm


def with_keys(base: Config, keys: Mapping[str, Any]) -> Config:
    """Return ``base`` with ``keys`` as a user writes them."""
    changed = {}
    for key, value in keys.items():
        old = getattr(base, key)
        changed[key] = type(old)(value) if isinstance(old, Enum) else value
    return dataclasses.replace(base, **changed)


def at_defaults(composed: Config, **keys: Any) -> Config:
    """Return a run with the parts of ``composed``, and PPO's keys at the package's defaults."""
    parts = {name: getattr(composed, name) for name in ("env", "network", "memory", "tracking")}
    fixed = {name: getattr(composed, name) for name in ("device", "dtype", "compile")}
    return Config(**parts, **fixed, **keys)


def of_lane(trainer: Trainer, lane: int, keys: Mapping[str, Any]) -> Reference:
    """Return the reference of a run that begins in ``lane`` with ``keys``, all others default."""
    keys = {**keys}
    if trainer.config.clips_separately:  # parked always does
        keys["separate_grad_clip"] = True
    weights = {name: _unstacked(p, lane) for name, p in trainer.model.named_parameters()}
    reference = Reference(Keys(**keys), weights)
    activation = trainer.config.network.activation.value
    reference.keys = dataclasses.replace(reference.keys, activation=activation)
    return reference


def _unstacked(parameter: Tensor, lane: int) -> Tensor:
    """Return a lane's weight (I, O) or bias (O,)."""
    one = parameter.detach()[lane]
    return one[0] if one.shape[0] == 1 and one.ndim == 2 else one


def made_up_rollout(trainer: Trainer, reference: Reference, seed: int) -> dict[str, Tensor]:
    """Return a rollout (T, N, …) with ratios, ends and values of all kinds."""
    generator = torch.Generator().manual_seed(seed)
    shape = (trainer.config.num_steps, trainer.config.num_envs)

    def normal(*sizes: int) -> Tensor:
        return torch.randn(*shape, *sizes, generator=generator, dtype=torch.float64)

    observations = normal(trainer.spec.observation_size)
    actions, ends = trainer.spec.actions, torch.rand(shape, generator=generator)
    if isinstance(actions, ContinuousActions):
        chosen = normal(len(actions.low))
    else:
        chosen = torch.randint(actions.num_actions, shape, generator=generator)
    with torch.no_grad():
        log_probs = reference.policy(observations, chosen)[0] + 0.25 * normal()
        values = reference.values(observations) + 0.3 * normal()
    rollout = {
        "observations": observations,
        "actions": chosen,
        "log_probs": log_probs,
        "values": values,
        "next_values": 2.0 * normal(),
        "rewards": normal(),
        "env_rewards": 10.0 * normal(),
        "terminated": ends < 0.1,
        "truncated": ends > 0.9,
    }
    dtype = trainer.config.weights_dtype
    # As the trainer will see it, and still in double precision for the reference.
    return {n: t.to(dtype).double() if t.is_floating_point() else t for n, t in rollout.items()}


def stacked(rollouts: Sequence[Mapping[str, Tensor]], dtype: torch.dtype) -> Rollout:
    """Return the lanes' rollouts as the collector would: (T, L, N, …), views of (L, T, N, …)."""
    columns = {}
    for name in rollouts[0]:
        column = torch.stack([rollout[name] for rollout in rollouts])
        column = column.to(dtype) if column.is_floating_point() else column
        columns[name] = column.transpose(0, 1)
    return Rollout(**columns)


def check_iteration(
    trainer: Trainer,
    references: Sequence[Reference],
    seed: int,
    *,
    atol: float = 1e-9,
) -> list[dict[str, float]]:
    """Run an iteration of ``trainer`` on made-up rollouts and hold every lane to its reference.

    Metrics by name, weights and Adam's moments must agree. Returns the lanes' expected metrics.
    """
    rollouts = [made_up_rollout(trainer, r, seed + lane) for lane, r in enumerate(references)]
    store, dtype = trainer.plan.store, trainer.config.weights_dtype
    given = stacked(rollouts, dtype)
    columns = store.allocate(len(given.observations), given.observations[0])
    store.write(columns, given.observations.transpose(0, 1))
    store.synchronize()
    given = given._replace(observations=columns.transpose(0, 1))
    orders, records = trainer._permutations(), {}
    trainer.collect = lambda: given
    trainer._on_record = records.__setitem__
    trainer.iterate()
    expected = []
    for lane, (reference, rollout) in enumerate(zip(references, rollouts)):
        metrics = reference.iterate(rollout, orders[:, lane])
        _check_record(records[lane], reference, metrics, atol)
        _check_state(trainer, lane, reference, atol)
        expected.append(metrics)
    return expected


def check_lane_keys(trainer: Trainer, *, atol: float, options: bool) -> None:
    """Refill the two lanes of ``trainer`` with each key of a lane at another value.

    Without ``options`` no lane gets an option that the stack had not: for it another program would
    be compiled.
    """
    base = at_defaults(trainer.config, **{name: getattr(trainer.config, name) for name in _SIZES})
    keys = {name: getattr(base, name) for name in _KEYS.intersection(_SIZES)}
    changes = [c for c in OF_LANES if options or not _OPTIONS.intersection(c)]
    for number, pair in enumerate(zip(changes, reversed(changes))):
        trainer.replace_lanes({lane: with_keys(base, change) for lane, change in enumerate(pair)})
        references = [of_lane(trainer, lane, keys | change) for lane, change in enumerate(pair)]
        check_iteration(trainer, references, 100 * number, atol=atol)


def _check_record(record: Any, reference: Reference, metrics: dict[str, float], atol: float):
    found = {n: v for n, v in record.metrics.items() if not n.startswith(_NOT_OURS)}
    assert found.keys() == metrics.keys()
    for name, value in metrics.items():
        assert found[name] == pytest.approx(value, rel=max(1e-6, 10 * atol), abs=atol), name
    assert record.histograms["ppo/ratio"].counts == reference.ratio_counts
    assert record.iteration == reference.iteration


def _check_state(trainer: Trainer, lane: int, reference: Reference, atol: float) -> None:
    moments: dict[int, list[Tensor]] = {}
    for tensor, parameter in trainer.optimizer.state_parts():
        if parameter is not None:
            moments.setdefault(id(parameter), []).append(tensor)
    for name, parameter in trainer.model.named_parameters():
        first, second = moments[id(parameter)][:2]
        pairs = [(parameter, reference.weights), (first, reference.first)]
        for found, expected in [*pairs, (second, reference.second)]:
            difference = _unstacked(found, lane).double() - expected[name].detach()
            assert difference.abs().max() < atol, name


def differing(mine: Reference, its: Reference) -> float:
    """Return the largest difference of two references' weights."""
    return max(
        float((w - its.weights[name]).detach().abs().max()) for name, w in mine.weights.items()
    )
