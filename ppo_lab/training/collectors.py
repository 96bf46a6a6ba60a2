"""Which collector a run needs."""

from __future__ import annotations

from ppo_lab.config.run import Config
from ppo_lab.envs.base import Env
from ppo_lab.networks import ActorCritic
from ppo_lab.ppo.collector import Collector
from ppo_lab.ppo.sequence_collector import SequenceCollector
from ppo_lab.ppo.update import UpdatePlan

__all__ = ["build_collector"]


def build_collector(config: Config, env: Env, model: ActorCritic, plan: UpdatePlan) -> Collector:
    """Return the collector of ``config``'s rollouts: of steps, or of whole sequences."""
    if not (config.whole_episodes or config.network.reads_sequences):
        return Collector(env, model, config.num_steps, plan)
    group_size = config.group_size if config.whole_episodes else None
    return SequenceCollector(env, model, config.rollout_steps, plan, group_size)
