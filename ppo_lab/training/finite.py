"""Finds the first number of an iteration that is NaN or infinite, and says where it is.

A sum is finite only if all its terms are. So a few sums per lane, which go to the host with the
iteration's other results, tell whether to look closer; only then are single numbers read.

Shapes: T = steps per rollout, L = lanes, N = environments per lane.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppo_lab.networks import ActorCritic
from ppo_lab.ppo.diagnostics import UpdateDiagnostics
from ppo_lab.ppo.rollout import Rollout

__all__ = ["FiniteCheck"]


@dataclass(frozen=True)
class FiniteCheck:
    """The numbers of an iteration that must be finite."""

    rollout: Rollout
    update: UpdateDiagnostics
    model: ActorCritic
    """After the update."""
    num_minibatches: int

    @torch.no_grad()
    def sums(self, weights: Sequence[Tensor]) -> Tensor:
        """Return sums (L, 4) of what may not be finite while all losses and norms are.

        ``weights`` (L, …) hold all parameters of the model.
        """
        rollout = self.rollout
        observations = rollout.observations.sum((0, 2, 3)).to(rollout.rewards)
        rewards = (rewards.sum((0, 2)) for rewards in (rollout.rewards, rollout.env_rewards))
        parameters = [tensor.flatten(1).sum(1) for tensor in weights]
        return torch.stack((observations, *rewards, sum(parameters[1:], parameters[0])), -1)

    def describe(self, lane: int) -> str | None:
        """Return what is not finite in ``lane``, and where; None if all numbers are."""
        described = self._in_rollout(lane) or self._in_update(lane) or self._in_model(lane)
        num_lanes = self.rollout.rewards.shape[1]
        if described is None or num_lanes == 1:
            return described
        return f"{described}, lane {lane} of the stack"

    def _in_rollout(self, lane: int) -> str | None:
        rollout = self.rollout
        columns: dict[str, Tensor | None] = {
            "the observation": rollout.observations,
            "the reward": rollout.env_rewards,
            "the scaled reward": rollout.rewards,
            "the value": rollout.values,
            "the value of the next observation": rollout.next_values,
        }
        found = []
        for name, column in columns.items():
            if column is None or not column.dtype.is_floating_point:
                continue
            numbers = column[:, lane].flatten(2) if column.ndim == 4 else column[:, lane, :, None]
            if (index := _first_bad(numbers)) is not None:
                found.append((index, name, numbers[index].item()))
        if not found:
            return None
        (step, env, _), name, value = min(found, key=lambda bad: bad[0][0])  # of a step, the first
        place = f"step {step + 1} of {len(rollout.rewards)}, environment {env}"
        return f"{name} is {value} in the rollout ({place})"

    def _in_update(self, lane: int) -> str | None:
        update = self.update
        if (first := int(update.first_bad[lane])) < 0:
            return None
        names = ["policy_loss"] + ([] if update.value_loss is None else ["value_loss"])
        if update.grad_norm_actor is None:
            names.append("grad_norm")
        else:
            names += ["grad_norm_actor", "grad_norm_critic"]
        step, number = divmod(first, len(names))
        epoch, minibatch = divmod(step, self.num_minibatches)
        place = f"gradient step {step + 1}: epoch {epoch + 1}, minibatch {minibatch + 1}"
        value = getattr(update, names[number])[lane].item()
        return f"losses/{names[number]} is {value} in the update ({place})"

    def _in_model(self, lane: int) -> str | None:
        for name, parameter in self.model.named_parameters():
            numbers = parameter.detach()[lane].flatten()
            if (index := _first_bad(numbers)) is not None:
                return f"the parameter {name} is {numbers[index].item()} after the update"
        return None


def _first_bad(numbers: Tensor) -> tuple[int, ...] | None:
    """Return the index of the first number that is not finite; None if all are."""
    bad = (~numbers.isfinite()).nonzero()
    return tuple(bad[0].tolist()) if len(bad) else None
