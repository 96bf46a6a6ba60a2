"""PPO's update: epochs of gradient steps over the minibatches of one rollout.

Shapes: L = lanes, R = rows per lane of a rollout, E = epochs, M = minibatches per epoch,
K = E * M gradient steps, B = rows per lane in a minibatch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ppo_lab.networks import ActorCritic, Evaluation
from ppo_lab.networks.sequences import Sequences
from ppo_lab.ppo.adam import LaneOptimizer, TrainTarget
from ppo_lab.ppo.diagnostics import UpdateDiagnostics, UpdateLog, UpdateStep, apply_target_kl
from ppo_lab.ppo.losses import (
    ClipRange,
    PolicyLoss,
    cispo,
    clipped_surrogate,
    gspo,
    normalize_advantages,
    value_loss,
)
from ppo_lab.ppo.rollout import Batch, ObservationStore, RolloutRows, SequenceContext, minibatches
from ppo_lab.ppo.row_weights import Aggregation, rows_mean, scale_weights

__all__ = ["AdvantageNormalization", "LaneHyperparameters", "UpdateLoss", "UpdatePlan", "update"]


class AdvantageNormalization(Enum):
    """Over which rows advantages are normalized to mean 0 and standard deviation 1."""

    auto = "auto"  # replaced in a ``Config``
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
    policy_weight: Tensor | None = None
    """0 where only the critic trains yet, else 1; None if no lane has such iterations."""


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
    around_forward: Callable[[object], AbstractContextManager[None]] = lambda _: nullcontext()
    """Context of each forward pass that is differentiated, given its micro-batch and its log."""
    num_dry_steps: int | None = None
    """For a forecast: only so many gradient steps per pass (they need the memory of all)."""

    policy_loss: PolicyLoss = PolicyLoss.clip
    aggregation: Aggregation = Aggregation.token_mean
    """How the losses of live rows are averaged, where not all rows are live."""
    num_sequence_steps: int = 1
    """Rows of a sequence that stay together: T if the policy or its loss reads sequences."""

    def in_passes(
        self,
        function: Callable[[Tensor | Sequences, slice], Sequence[Tensor]],
        observations: Tensor,
        context: SequenceContext | None = None,
    ) -> list[Tensor]:
        """Return ``function`` of (L, R, O), at most ``rows_per_pass`` rows per lane at a time.

        It is called with a part of the model's input and its rows, and returns tensors (L, b). A
        forward pass over a whole rollout may need more memory than the update itself.
        """
        length = 1 if context is None else context.num_steps
        num_rows, size = observations.shape[1], max(self.rows_per_pass // length, 1) * length
        parts: list[Sequence[Tensor]] = []
        num_alike = num_rows // size  # passes of full size
        for number, begin in enumerate(range(0, num_rows, size)):
            rows = slice(begin, min(begin + size, num_rows))
            inputs: Tensor | Sequences = self.store.slice(observations, rows.start, rows.stop)
            if context is not None:
                own = _part_of(context, rows)
                inputs = own.inputs(cast(Tensor, inputs))
            if self.num_dry_steps is not None and 0 < number < num_alike - 1:
                # The last of them needs the most: the results of all others are beside it.
                parts.append([torch.empty_like(tensor) for tensor in parts[-1]])
            else:
                parts.append(function(inputs, rows))
        return list(parts[0]) if len(parts) == 1 else [torch.cat(part, 1) for part in zip(*parts)]

    def normalize(
        self, advantages: Tensor, over: AdvantageNormalization, live: Tensor | None = None
    ) -> Tensor:
        """Return ``advantages``, normalized if they are to be normalized ``over`` these rows."""
        if self.normalization is not over:
            return advantages
        return normalize_advantages(advantages, live=live)

    @property
    def clipped_steps(self) -> int:
        """Rows whose common ratio is clipped: those of a sequence with GSPO."""
        return self.num_sequence_steps if self.policy_loss is PolicyLoss.gspo else 1

    def policy_objective(self, *args: Any) -> Tensor:  # noqa: ANN401 - those of the losses
        """Return the policy's loss (L,); the arguments are those of ``clipped_surrogate``."""
        if self.policy_loss is PolicyLoss.gspo:
            return gspo(*args, num_steps=self.num_sequence_steps)
        return cispo(*args) if self.policy_loss is PolicyLoss.cispo else clipped_surrogate(*args)

    def prepare(self, rows: RolloutRows) -> RolloutRows:
        """Return ``rows`` with advantages normalized over the rollout if the plan says so."""
        over = AdvantageNormalization.rollout
        return rows._replace(advantages=self.normalize(rows.advantages, over, rows.live))

    def scale(self, batch: Batch, step: UpdateStep) -> Batch:
        """Write a minibatch's advantages to ``step``, and return it with its rows' final weights.

        Both depend on the whole minibatch, so this comes before it is split.
        """
        over = AdvantageNormalization.minibatch
        step.begin(self.normalize(batch.advantages, over, batch.live), batch.live)
        if batch.weights is None:
            return batch
        return batch._replace(weights=scale_weights(batch.weights, self.aggregation))


def _part_of(context: SequenceContext, rows: slice) -> SequenceContext:
    begin, end = (row // context.num_steps for row in (rows.start, rows.stop))
    return context.select(lambda tensor: tensor[:, rows], lambda memory: memory[:, begin:end])


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
    rows = plan.prepare(rows)
    num_parts = plan.num_micro_batches
    log = UpdateLog.of(rows, permutations, plan.num_minibatches, optimizer.num_clip_groups)
    loss = UpdateLoss(model, rows.observations, hyperparameters, plan)
    for target in optimizer.passes():
        previous: UpdateStep | None = None
        batches = minibatches(rows, permutations, plan.num_minibatches, plan.store)
        for step, batch in zip(log.steps[: plan.num_dry_steps], batches):
            batch = plan.scale(batch, step)
            for number, part in enumerate(zip(batch.split(num_parts), step.split(num_parts)), 1):
                with plan.around_forward(part):
                    total = loss(*part, target).sum()  # the lanes' gradients are independent
                if number == num_parts:
                    optimizer.prepare_final_backward()
                optimizer.backward(total if num_parts == 1 else total * (1.0 / num_parts))
            with plan.around_step():
                norms = optimizer.step(
                    lr=hyperparameters.lr,
                    max_grad_norm=hyperparameters.max_grad_norm,
                    active=apply_target_kl(step, previous, hyperparameters.target_kl),
                )
            step.grad_norms.add_(norms)
            optimizer.zero_grad()
            previous = step
    return log.means(hyperparameters.clip, clipped_steps=plan.clipped_steps)


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
        weights = batch.weights
        new = self._forward(batch, target)
        losses: list[Tensor] = []
        if new.log_probs is not None and new.entropies is not None:
            log_ratio = new.log_probs - batch.log_probs
            entropy = rows_mean(new.entropies, weights)
            live_entropy = entropy.detach()
            if weights is not None:
                live_entropy = rows_mean(new.entropies.detach(), step.live_weights)
            policy_loss = self.plan.policy_objective(
                log_ratio, step.advantages, of_lane.clip, of_lane.dual_clip, weights
            )
            step.log_ratios.copy_(log_ratio.detach())
            step.policy_loss.add_(policy_loss.detach(), alpha=share)
            step.entropy.add_(live_entropy, alpha=share)
            total = policy_loss - of_lane.entropy_coef * entropy
            # Times 0 the gradient is 0 and so are Adam's moments: no weight changes by a bit.
            losses.append(total if of_lane.policy_weight is None else total * of_lane.policy_weight)
        if new.values is not None:
            assert batch.values is not None
            assert batch.value_targets is not None
            epsilon = of_lane.value_epsilon
            error = value_loss(
                new.values, batch.values, batch.value_targets, epsilon, weights=weights
            )
            assert step.value_loss is not None
            step.value_loss.add_(error.detach(), alpha=share)
            losses.append(of_lane.value_coef * error)
        return sum(losses[1:], start=losses[0])

    def _forward(self, batch: Batch, target: TrainTarget) -> Evaluation:
        """Return log probabilities, entropies and values (L, b); None for what is not trained."""
        inputs: Tensor | Sequences = self.plan.store.gather(self.observations, batch.row_index)
        if batch.sequences is not None:
            inputs = batch.sequences.inputs(cast(Tensor, inputs))
        return self.model.evaluate(
            inputs,
            batch.actions,
            with_policy=target is not TrainTarget.values,
            with_values=target is not TrainTarget.policy,
        )
