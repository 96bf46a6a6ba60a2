"""The second of PPO's two phases: learn from a rollout.

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
from ppo_lab.ppo.diagnostics import UpdateDiagnostics, UpdateLog, UpdateStep
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
    """Over which rows advantages get mean 0 and standard deviation 1."""

    minibatch = "minibatch"
    rollout = "rollout"
    none = "none"


class LaneHyperparameters(NamedTuple):
    """What may differ between lanes, this iteration's values; every field (L,)."""

    lr: Tensor
    clip: ClipRange
    value_epsilon: Tensor | None  # None where no lane clips its value loss
    dual_clip: Tensor | None  # None where no lane bounds its objective below
    target_kl: Tensor | None  # nats, None where no lane stops early
    entropy_coef: Tensor
    value_coef: Tensor
    max_grad_norm: Tensor


@dataclass(frozen=True)
class UpdatePlan:
    """What all lanes of a stack share in an update."""

    num_minibatches: int
    normalization: AdvantageNormalization
    store: ObservationStore = field(default_factory=DeviceObservations)
    """What keeps the rollout's observations."""
    num_micro_batches: int = 1
    """Parts of a minibatch whose gradients are added up."""
    around_step: Callable[[], AbstractContextManager[None]] = nullcontext
    """Context of each optimizer step, for the observers that count memory."""
    num_dry_steps: int | None = None
    """A forecast takes only the first few gradient steps of a pass; memory is that of all."""


def update(
    model: ActorCritic,
    optimizer: LaneOptimizer,
    rows: RolloutRows,
    permutations: Tensor,
    coefficients: LaneHyperparameters,
    plan: UpdatePlan,
) -> UpdateDiagnostics:
    """Pass over ``rows`` once per permutation (E, L, R); nothing is read back to the host.

    With ``target_kl`` a lane stops before the first gradient step whose minibatch shows a k3 KL
    above 1.5 times it, and sits out the rest of the update (Stable-Baselines3's rule).
    """
    if plan.normalization is AdvantageNormalization.rollout:
        rows = rows._replace(advantages=normalize_advantages(rows.advantages))
    num_epochs, num_lanes, num_rows = permutations.shape
    num_steps = num_epochs * plan.num_minibatches
    log = UpdateLog(
        num_steps,
        num_lanes,
        num_rows // plan.num_minibatches,
        optimizer.num_clip_groups,
        like=rows.advantages,
    )
    objective = UpdateLoss(model, rows.observations, coefficients, plan)
    for training in optimizer.passes():
        batches = minibatches(rows, permutations, plan.num_minibatches, plan.store)
        for step, batch in zip(range(num_steps)[: plan.num_dry_steps], batches):
            slot = log.steps[step]
            objective.backward(slot, batch, training, before_last=optimizer.prepare_final_backward)
            active = log.apply_target_kl(step, coefficients.target_kl)
            with plan.around_step():
                norms = optimizer.step(
                    lr=coefficients.lr, max_grad_norm=coefficients.max_grad_norm, active=active
                )
            slot.grad_norms.add_(norms)
            optimizer.zero_grad()
    return log.means(coefficients.clip, plan.num_minibatches)


class UpdateLoss:
    """Each lane's loss (L,), policy - c2 * entropy + c1 * value (arXiv:1707.06347, eq. 9)."""

    def __init__(
        self,
        model: ActorCritic,
        observations: Tensor,
        coefficients: LaneHyperparameters,
        plan: UpdatePlan,
    ) -> None:
        """Take the rollout's ``observations`` (L, R, O), which ``plan``'s store keeps."""
        self._model, self._observations = model, observations
        self._coefficients, self._plan = coefficients, plan
        self._share = 1.0 / plan.num_micro_batches

    def backward(
        self, slot: UpdateStep, batch: Batch, training: TrainTarget, before_last: Callable[[], None]
    ) -> None:
        """Add the gradient of the minibatch's mean loss, part by part, to the parameters' own.

        Advantages are normalised over the whole minibatch, so that its parts make no difference.
        ``before_last`` is called before the pass that completes the gradients.
        """
        batch = self._prepare(slot, batch)
        parts = batch.split(self._plan.num_micro_batches)
        log_ratios = [slot.log_ratios]
        if len(parts) > 1:
            log_ratios = list(slot.log_ratios.chunk(len(parts), -1))
        for number, (part, log_ratio) in enumerate(zip(parts, log_ratios), 1):
            loss = _LOSSES[training](self, slot, part, log_ratio)
            if number == len(parts):
                before_last()
            total = loss.sum()  # over lanes, whose gradients never meet
            (total if len(parts) == 1 else total * self._share).backward()

    def whole_loss(self, slot: UpdateStep, batch: Batch) -> Tensor:
        """Return the minibatch's loss in one part, over all lanes, to be differentiated."""
        return self.joint_loss(slot, self._prepare(slot, batch), slot.log_ratios).sum()

    def _prepare(self, slot: UpdateStep, batch: Batch) -> Batch:
        """Return ``batch`` with its advantages as they are used; ``slot`` notes them."""
        if self._plan.normalization is AdvantageNormalization.minibatch:
            batch = batch._replace(advantages=normalize_advantages(batch.advantages))
        slot.advantages.copy_(batch.advantages)
        return batch

    def joint_loss(self, slot: UpdateStep, part: Batch, log_ratio: Tensor) -> Tensor:
        """Return the loss of both networks; ``log_ratio`` (L, b) is written, as are all numbers."""
        policy_parameters, values = self._model(self._rows(part))
        policy = self._policy_loss(slot, part, policy_parameters, log_ratio)
        return policy + self._value_loss(slot, part, values)

    def policy_alone(self, slot: UpdateStep, part: Batch, log_ratio: Tensor) -> Tensor:
        """Return the policy's part of it."""
        return self._policy_loss(slot, part, self._model.policy(self._rows(part)), log_ratio)

    def values_alone(self, slot: UpdateStep, part: Batch, log_ratio: Tensor) -> Tensor:  # noqa: ARG002
        """Return the values' part of it."""
        return self._value_loss(slot, part, self._model.values(self._rows(part)))

    def _rows(self, part: Batch) -> Tensor:
        return self._plan.store.gather(self._observations, part.row_index)

    def _policy_loss(
        self, slot: UpdateStep, part: Batch, policy_parameters: Tensor, kept_log_ratio: Tensor
    ) -> Tensor:
        """Return the surrogate less the entropy bonus; ``kept_log_ratio`` (L, b) is written."""
        distribution, coefficients = self._model.distribution, self._coefficients
        log_prob, entropies = distribution.log_prob_and_entropy(policy_parameters, part.actions)
        log_ratio, entropy = log_prob - part.log_probs, entropies.mean(-1)
        loss = clipped_surrogate(
            log_ratio, part.advantages, coefficients.clip, coefficients.dual_clip
        )
        kept_log_ratio.copy_(log_ratio.detach())
        slot.policy_loss.add_(loss.detach(), alpha=self._share)
        slot.entropy.add_(entropy.detach(), alpha=self._share)
        return loss - coefficients.entropy_coef * entropy

    def _value_loss(self, slot: UpdateStep, part: Batch, values: Tensor) -> Tensor:
        coefficients = self._coefficients
        loss = value_loss(values, part.values, part.value_targets, coefficients.value_epsilon)
        slot.value_loss.add_(loss.detach(), alpha=self._share)
        return coefficients.value_coef * loss


# Not in the object: bound methods would make a cycle, which keeps a rollout until it is collected.
_LOSSES = {
    TrainTarget.both: UpdateLoss.joint_loss,
    TrainTarget.policy: UpdateLoss.policy_alone,
    TrainTarget.values: UpdateLoss.values_alone,
}
