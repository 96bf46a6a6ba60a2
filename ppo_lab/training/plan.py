"""The settings of updates that follow from a config."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

from ppo_lab.config.run import Config
from ppo_lab.devices.observers import PhaseObserver, PhaseObservers
from ppo_lab.devices.placement import Placement
from ppo_lab.networks import ActorCritic
from ppo_lab.ppo.update import UpdatePlan

__all__ = ["build_plan"]


def build_plan(
    config: Config,
    model: ActorCritic,
    placement: Placement,
    dry_steps: int | None,
    observers: Sequence[PhaseObserver],
) -> UpdatePlan:
    """Return the plan of the updates of ``model``; ``observers`` see each optimizer step."""
    memory = config.memory
    return UpdatePlan(
        config.num_minibatches,
        config.advantage_normalization,
        store=memory.build_store(placement),
        num_micro_batches=memory.num_micro_batches,
        rows_per_pass=max(config.num_rows // config.num_minibatches, UpdatePlan.rows_per_pass),
        around_step=PhaseObservers(observers).optimizer_step if observers else nullcontext,
        around_forward=memory.build_saving(model, placement),
        num_dry_steps=dry_steps,
        policy_loss=config.policy_loss,
        aggregation=config.aggregation,
        num_sequence_steps=config.rollout_steps if config.keeps_sequences else 1,
    )
