"""PPO's update: epochs of gradient steps over the minibatches of one rollout.

Shapes: L = lanes, R = rows per lane of a rollout, E = epochs, M = minibatches per epoch,
K = E * M gradient steps, B = rows per lane in a minibatch.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

import torch
from torch import Tensor

from ppo_lab.networks import ActorCritic
from ppo_lab.ppo.adam import LaneOptimizer, TrainTarget
from ppo_lab.ppo.diagnostics import UpdateDiagnostics, UpdateLog, UpdateStep, apply_target_kl
from ppo_lab.ppo.losses import ClipRange, clipped_surrogate, normalize_advantages, value_loss
from ppo_lab.ppo.rollout import Batch, ObservationStore, RolloutRows, minibatches

__all__ = ["AdvantageNormalization", "LaneHyperparameters", "UpdateLoss", "UpdatePlan", "update"]


class AdvantageNormalization(Enum):
    """Over which rows advantages are normalized to mean 0 and standard deviation 1."""

    minibatch = "minibatch"
    rollout = "rollout"
    none = "none"


class LaneHyperparameters(NamedTuple):
    """Hyperparameters that may differ between lanes, in this iteration; every field (L,)."""

    lr: Tensor
    clip: ClipRange
    value_epsilon: Tensor | None  # None if no lane clips its value loss
    dual_clip: Tensor | None  # None if no lane bounds its objective below
    target_kl: Tensor | None  # nats, None if no lane stops early
    entropy_coef: Tensor
    value_coef: Tensor
    max_grad_norm: Tensor


@dataclass(frozen=True)
class UpdatePlan:
    """Settings of rollouts and updates that all lanes share."""

    num_minibatches: int
    normalization: AdvantageNormalization
    store: ObservationStore = field(default_factory=ObservationStore)
    """Storage of the rollout's observations."""
    num_micro_batches: int = 1
    """Parts of a minibatch whose gradients are summed."""
    rows_per_pass: int = 4096
    """Most rows per lane in a forward pass without gradients; fewer are not worth a split."""
    around_step: Callable[[], AbstractContextManager[None]] = nullcontext
    """Context of each optimizer step, for the observers that count memory."""
    num_dry_steps: int | None = None
    """For a forecast: only so many gradient steps per pass (they need the memory of all)."""

    def in_passes(self, function: Callable[[Tensor], Tensor], observations: Tensor) -> Tensor:
        """Return ``function`` of (L, R, O), at most ``rows_per_pass`` rows per lane at a time.

        A forward pass over a whole rollout may need more memory than the update itself.
        """
        num_rows, size = observations.shape[1], self.rows_per_pass
        parts = [
            function(self.store.slice(observations, begin, min(begin + size, num_rows)))
            for begin in range(0, num_rows, size)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def normalize(self, advantages: Tensor, over: AdvantageNormalization) -> Tensor:
        """Return ``advantages``, normalized if they are to be normalized ``over`` these rows."""
        return normalize_advantages(advantages) if self.normalization is over else advantages


def update(
    model: ActorCritic,
    optimizer: LaneOptimizer,
    rows: RolloutRows,
    permutations: Tensor,
    hyperparameters: LaneHyperparameters,
    plan: UpdatePlan,
) -> UpdateDiagnostics:
    """Take E epochs of gradient steps on ``rows``, in the order of ``permutations`` (E, L, R).

    With all tensors on the device, nothing here waits for it. With ``target_kl`` a lane stops for
    the rest of the update before the first gradient step whose minibatch has a k3 KL above 1.5
    times it (Stable-Baselines3's rule). Results are means over the gradient steps that a lane took.
    """
    advantages = plan.normalize(rows.advantages, over=AdvantageNormalization.rollout)
    rows = rows._replace(advantages=advantages)
    num_parts, num_groups = plan.num_micro_batches, optimizer.num_clip_groups
    log = UpdateLog(permutations.shape, plan.num_minibatches, num_groups, like=advantages)
    loss = UpdateLoss(model, rows.observations, hyperparameters, plan)
    for target in optimizer.passes():
        previous: UpdateStep | None = None
        batches = minibatches(rows, permutations, plan.num_minibatches, plan.store)
        for step, batch in zip(log.steps[: plan.num_dry_steps], batches):
            advantages = plan.normalize(batch.advantages, over=AdvantageNormalization.minibatch)
            step.advantages.copy_(advantages)
            for number, part in enumerate(zip(batch.split(num_parts), step.split(num_parts)), 1):
                total = loss(*part, target).sum()  # the lanes' gradients are independent
                if number == num_parts:
                    optimizer.prepare_final_backward()
                (total if num_parts == 1 else total * (1.0 / num_parts)).backward()
            with plan.around_step():
                norms = optimizer.step(
                    lr=hyperparameters.lr,
                    max_grad_norm=hyperparameters.max_grad_norm,
                    active=apply_target_kl(step, previous, hyperparameters.target_kl),
                )
            step.grad_norms.add_(norms)
            optimizer.zero_grad()
            previous = step
    return log.means(hyperparameters.clip)


@dataclass(frozen=True)
class UpdateLoss:
    """Each lane's loss (L,): policy - c2 * entropy + c1 * value (arXiv:1707.06347, eq. 9)."""

    model: ActorCritic
    observations: Tensor
    """The rollout's (L, R, O), in the plan's store."""
    hyperparameters: LaneHyperparameters
    plan: UpdatePlan

    def __call__(
        self, batch: Batch, step: UpdateStep, target: TrainTarget = TrainTarget.both
    ) -> Tensor:
        """Return the loss (L,) of a micro-batch, and add its diagnostics to ``step``.

        ``step.advantages`` are the minibatch's, normalized as the plan says.
        """
        of_lane, share = self.hyperparameters, 1.0 / self.plan.num_micro_batches
        policy_parameters, values = self._forward(batch, target)
        losses: list[Tensor] = []
        if policy_parameters is not None:
            log_prob, entropies = self.model.distribution.log_prob_and_entropy(
                policy_parameters, batch.actions
            )
            log_ratio, entropy = log_prob - batch.log_probs, entropies.mean(-1)
            policy_loss = clipped_surrogate(
                log_ratio, step.advantages, of_lane.clip, of_lane.dual_clip
            )
            step.log_ratios.copy_(log_ratio.detach())
            step.policy_loss.add_(policy_loss.detach(), alpha=share)
            step.entropy.add_(entropy.detach(), alpha=share)
            losses.append(policy_loss - of_lane.entropy_coef * entropy)
        if values is not None:
            error = value_loss(values, batch.values, batch.value_targets, of_lane.value_epsilon)
            step.value_loss.add_(error.detach(), alpha=share)
            losses.append(of_lane.value_coef * error)
        return sum(losses[1:], start=losses[0])

    def _forward(self, batch: Batch, target: TrainTarget) -> tuple[Tensor | None, Tensor | None]:
        """Return policy parameters (L, b, P) and values (L, b); None for what is not trained."""
        observations = self.plan.store.gather(self.observations, batch.row_index)
        if target is TrainTarget.policy:
            return self.model.policy(observations), None
        if target is TrainTarget.values:
            return None, self.model.values(observations)
        return self.model(observations)
