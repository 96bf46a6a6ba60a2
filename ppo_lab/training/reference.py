"""The frozen reference of texts, and the KL that keeps the policy near it.

The policy is rewarded with r - beta * log(pi(a) / pi_ref(a)) at every token (arXiv:1909.08593,
eq. 2). The expectation of that sum over a text is the KL of the two models' texts.

Shapes: T = steps per rollout, L = lanes, N = environments per lane.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from ppo_lab.config.run import Config
from ppo_lab.devices.placement import Place, Placement
from ppo_lab.envs.base import EnvSpec
from ppo_lab.envs.text.config import TextConfig
from ppo_lab.networks import ActorCritic
from ppo_lab.networks.sequences import Sequences
from ppo_lab.ppo.baselines import GroupBaseline
from ppo_lab.ppo.rollout import Rollout, by_env
from ppo_lab.ppo.update import UpdatePlan
from ppo_lab.training.pretraining import Pretrained, new_actor, start_from

__all__ = [
    "Reference",
    "TextKl",
    "adapted_coef",
    "build_reference",
    "named_metrics",
    "text_kl",
    "with_penalty",
]

_ADAPTATION, _MOST_ERROR = 0.1, 0.2  # arXiv:1909.08593, section 2.2


class TextKl(NamedTuple):
    """What the reference says of a rollout, (L,) each; means over texts."""

    kl: Tensor  # nats a text: the sum of log(pi / pi_ref), whose expectation is the KL (k1)
    kl_k3: Tensor  # the same by an estimator that is never negative
    kl_coef: Tensor  # beta that the rewards of this rollout have
    reward_with_kl: Tensor


def with_penalty(rewards: Tensor, log_ratio: Tensor, live: Tensor, coef: Tensor) -> Tensor:
    """Return rewards (T, L, N) minus ``coef`` (L,) times log(pi / pi_ref), where steps are live."""
    return rewards - coef.unsqueeze(-1) * log_ratio.masked_fill(~live, 0.0)


def text_kl(log_ratio: Tensor, live: Tensor) -> tuple[Tensor, Tensor]:
    """Return the estimates k1 and k3 (L,) of the KL of a text, from log(pi / pi_ref) (T, L, N).

    k1 is the mean log-ratio, k3 that of 1 / ratio - 1 + log-ratio
    (Schulman 2020, "Approximating KL Divergence"); both are summed over a text's live steps.
    """
    ratio = log_ratio.masked_fill(~live, 0.0)
    # Summed along contiguous memory, in whose order the number of lanes has no part.
    k1, k3 = (
        step.movedim(0, -1).contiguous().sum(-1).mean(-1)
        for step in (ratio, torch.expm1(-ratio) + ratio)
    )
    return k1, k3


def adapted_coef(coef: Tensor, kl: Tensor, target: float) -> Tensor:
    """Return the next iteration's beta (L,) from this one's and its KL a text, in nats.

    beta * (1 + 0.1 * clip(KL / target - 1, -0.2, 0.2)) (arXiv:1909.08593, section 2.2).
    """
    error = (kl / target - 1.0).clamp(-_MOST_ERROR, _MOST_ERROR)
    return coef * (1.0 + _ADAPTATION * error)


def build_reference(
    config: Config,
    spec: EnvSpec,
    num_lanes: int,
    placement: Placement,
    first: Pretrained | None,
) -> Reference | None:
    """Return the frozen reference of all lanes, ``first``; None if no reward depends on one."""
    env = config.env
    if not (isinstance(env, TextConfig) and env.has_reference):
        return None
    model = new_actor(config, spec, placement.device)
    start_from(model, first)
    place = config.memory.reference_place
    return Reference(model, env, num_lanes=num_lanes, placement=placement, place=place)


class Reference:
    """One frozen actor for all lanes, and each lane's beta.

    If it is parked, its weights lie on the host between uses, and are copied to the device once per
    iteration.
    """

    def __init__(
        self,
        model: ActorCritic,
        env: TextConfig,
        *,
        num_lanes: int,
        placement: Placement,
        place: Place,
    ) -> None:
        """Freeze ``model``, whose one lane is on the device; park it if ``place`` is the host."""
        self.model = model.requires_grad_(requires_grad=False)
        """A single actor; its parameters are replaced by others while it is in use, if parked."""
        self._env, self._placement, self._place = env, placement, place
        self.kl_coef = torch.full(
            (num_lanes,), env.kl_coef, dtype=model.dtype, device=placement.device
        )
        """beta (L,) of the next rollout; the first is ``env.kl_coef``."""
        self._slots = [
            (module, name)
            for module in model.modules()
            for name, _ in module.named_parameters(recurse=False)
        ]
        if place is Place.host:
            self._put([self._to_host(weight) for weight in self.weights()])

    def weights(self) -> list[Tensor]:
        """Return all weights (1, …), where they are now."""
        return [getattr(module, name).detach() for module, name in self._slots]

    def reset_lanes(self, lanes: Tensor) -> None:
        """Begin the beta of ``lanes`` (int64) anew."""
        self.kl_coef.index_fill_(0, lanes, self._env.kl_coef)

    @torch.no_grad()
    def evaluate(self, rollout: Rollout, plan: UpdatePlan) -> tuple[Rollout, TextKl]:
        """Return the rollout with the KL in its rewards, and adapt beta to ``env.kl_target``."""
        live = rollout.live
        assert live is not None
        log_ratio = rollout.log_probs - self.log_probs(rollout, plan)
        rewards = with_penalty(rollout.rewards, log_ratio, live, self.kl_coef)
        kl, kl_k3 = text_kl(log_ratio, live)
        total = rewards.movedim(0, -1).contiguous().sum(-1).mean(-1)
        measured = TextKl(kl, kl_k3, self.kl_coef.clone(), total)
        if self._env.kl_target is not None:
            # In place: lane states hold views of it.
            self.kl_coef.copy_(adapted_coef(self.kl_coef, kl, self._env.kl_target))
        return rollout._replace(rewards=rewards), measured

    def log_probs(self, rollout: Rollout, plan: UpdatePlan) -> Tensor:
        """Return the log-probabilities (T, L, N) of the rollout's actions under the reference."""
        context, shape = rollout.sequences, rollout.actions.shape
        assert context is not None
        # The lanes' texts are one batch of the single lane.
        observations, actions = (
            by_env(column).flatten(0, 1).unsqueeze(0)
            for column in (rollout.observations, rollout.actions)
        )

        def evaluate(inputs: Tensor | Sequences, part: slice) -> list[Tensor]:
            found = self.model.evaluate(inputs, actions[:, part], with_values=False)
            return [cast(Tensor, found.log_probs)]

        with self._in_use():
            (log_probs,) = plan.in_passes(evaluate, observations, context)
        return log_probs.view(*shape[1:], -1).permute(2, 0, 1)

    @contextmanager
    def _in_use(self) -> Iterator[None]:
        """Have the weights on the device inside."""
        if self._place is Place.device:
            yield
            return
        parked = self.weights()
        move = self._placement.move
        self._put([move(weight, Place.device, non_blocking=True) for weight in parked])
        try:
            yield
        finally:
            self._put(parked)  # they have not changed: nothing is copied back

    def _put(self, weights: list[Tensor]) -> None:
        for (module, name), weight in zip(self._slots, weights, strict=True):
            setattr(module, name, nn.Parameter(weight, requires_grad=False))

    def _to_host(self, weight: Tensor) -> Tensor:
        parked = self._placement.empty_host_like(weight, pin=True)
        return self._placement.move(weight, Place.host, out=parked)


def named_metrics(rollout: Rollout, config: Config, text: TextKl | None) -> dict[str, Tensor]:
    """Return the metrics (L,) that only some configs have: of groups without signal, and texts."""
    named: dict[str, Tensor] = {}
    baseline = config.resolved_baseline
    if isinstance(baseline, GroupBaseline) and rollout.live is not None:
        named["ppo/no_signal_frac"] = baseline.no_signal_frac(rollout.rewards, rollout.live)
    if text is not None:
        named |= {f"text/{name}": value for name, value in text._asdict().items()}
    return named
