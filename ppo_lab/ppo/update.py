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

from torch import Tensor

from ppo_lab.networks import ActorCritic
from ppo_lab.ppo.adam import LaneOptimizer, TrainTarget
from ppo_lab.ppo.diagnostics import UpdateDiagnostics, UpdateLog, UpdateStep, apply_target_kl
from ppo_lab.ppo.losses import (
    ClipRange,
    clipped_surrogate,
    normalize_advantages,
    value_loss,
)
from ppo_lab.ppo.rollout import (
    Batch,
    DeviceObservations,
    ObservationStore,
    RolloutRows,
    minibatches,
)

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
    """Settings of an update that all lanes share."""

    num_minibatches: int
    normalization: AdvantageNormalization
    store: ObservationStore = field(default_factory=DeviceObservations)
    """Storage of the rollout's observations."""
    num_micro_batches: int = 1
    """Parts of a minibatch whose gradients are summed."""
    around_step: Callable[[], AbstractContextManager[None]] = nullcontext
    """Context of each optimizer step, for the observers that count memory."""
    num_dry_steps: int | None = None
    """Gradient steps of a pass that a forecast takes; memory is that of all. None for all."""


def update(
    model: ActorCritic,
    optimizer: LaneOptimizer,
    rows: RolloutRows,
    permutations: Tensor,
    coefficients: LaneHyperparameters,
    plan: UpdatePlan,
) -> UpdateDiagnostics:
    """Take E epochs of gradient steps on ``rows``, without synchronizing with the device.

    With ``target_kl`` a lane stops before the first gradient step whose minibatch shows a k3 KL
    above 1.5 times it, for the rest of the update (Stable-Baselines3's rule).

    Args:
        model: Policy and value network of all lanes.
        optimizer: Holds the parameters of ``model``.
        rows: The rollout, (L, R, ...).
        permutations: Order of the rows in each epoch, (E, L, R).
        coefficients: This iteration's hyperparameters of each lane.
        plan: What all lanes share.

    Returns:
        Means over the gradient steps that each lane took.
    """
    if plan.normalization is AdvantageNormalization.rollout:
        rows = rows._replace(advantages=normalize_advantages(rows.advantages))
    log = UpdateLog(
        permutations.shape, plan.num_minibatches, optimizer.num_clip_groups, like=rows.advantages
    )
    loss = UpdateLoss(model, rows.observations, coefficients, plan)
    for target in optimizer.passes():
        previous: UpdateStep | None = None
        batches = minibatches(rows, permutations, plan.num_minibatches, plan.store)
        for step, batch in zip(log.steps[: plan.num_dry_steps], batches):
            loss.backward(batch, step, target, before_last=optimizer.prepare_final_backward)
            active = apply_target_kl(step, previous, coefficients.target_kl)
            with plan.around_step():
                norms = optimizer.step(
                    lr=coefficients.lr, max_grad_norm=coefficients.max_grad_norm, active=active
                )
            step.grad_norms.add_(norms)
            optimizer.zero_grad()
            previous = step
    return log.means(coefficients.clip, plan.num_minibatches)


@dataclass(frozen=True)
class UpdateLoss:
    """Each lane's loss (L,): policy - c2 * entropy + c1 * value (arXiv:1707.06347, eq. 9)."""

    model: ActorCritic
    observations: Tensor
    """The rollout's (L, R, O), in the plan's store."""
    coefficients: LaneHyperparameters
    plan: UpdatePlan

    @property
    def _share(self) -> float:
        """Weight of a micro-batch in the mean over its minibatch."""
        return 1.0 / self.plan.num_micro_batches

    def backward(
        self, batch: Batch, step: UpdateStep, target: TrainTarget, before_last: Callable[[], None]
    ) -> None:
        """Add the gradient of the minibatch's loss to the parameters' own, part by part.

        ``before_last`` is called before the backward pass that completes the gradients.
        """
        batch = self.normalize(batch, step)
        num_parts = self.plan.num_micro_batches
        parts = list(zip(batch.split(num_parts), step.split(num_parts)))
        for number, (part, part_of_step) in enumerate(parts, 1):
            loss = self(part, part_of_step, target).sum()  # over lanes: their gradients are apart
            if number == len(parts):
                before_last()
            (loss if num_parts == 1 else loss * self._share).backward()

    def normalize(self, batch: Batch, step: UpdateStep) -> Batch:
        """Return a whole minibatch with its advantages as used; write them to ``step``."""
        if self.plan.normalization is AdvantageNormalization.minibatch:
            batch = batch._replace(advantages=normalize_advantages(batch.advantages))
        step.advantages.copy_(batch.advantages)
        return batch

    def __call__(
        self, batch: Batch, step: UpdateStep, target: TrainTarget = TrainTarget.both
    ) -> Tensor:
        """Return the loss (L,) of a micro-batch, and add its diagnostics to ``step``."""
        coefficients, share = self.coefficients, self._share
        policy_parameters, values = self._forward(batch, target)
        losses: list[Tensor] = []
        if policy_parameters is not None:
            log_prob, entropies = self.model.distribution.log_prob_and_entropy(
                policy_parameters, batch.actions
            )
            log_ratio, entropy = log_prob - batch.log_probs, entropies.mean(-1)
            policy_loss = clipped_surrogate(
                log_ratio, batch.advantages, coefficients.clip, coefficients.dual_clip
            )
            step.log_ratios.copy_(log_ratio.detach())
            step.policy_loss.add_(policy_loss.detach(), alpha=share)
            step.entropy.add_(entropy.detach(), alpha=share)
            losses.append(policy_loss - coefficients.entropy_coef * entropy)
        if values is not None:
            error = value_loss(
                values, batch.values, batch.value_targets, coefficients.value_epsilon
            )
            step.value_loss.add_(error.detach(), alpha=share)
            losses.append(coefficients.value_coef * error)
        return sum(losses[1:], start=losses[0])

    def _forward(self, batch: Batch, target: TrainTarget) -> tuple[Tensor | None, Tensor | None]:
        """Return policy parameters (L, b, P) and values (L, b); None for what is not trained."""
        observations = self.plan.store.gather(self.observations, batch.row_index)
        if target is TrainTarget.policy:
            return self.model.policy(observations), None
        if target is TrainTarget.values:
            return None, self.model.values(observations)
        return self.model(observations)
