"""Options of the evaluation of a policy while it trains."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from ppo_lab.config.checks import check_whole
from ppo_lab.envs.config import EnvConfig
from ppo_lab.utils.errors import ConfigError

__all__ = ["EvaluationConfig"]


@dataclass(kw_only=True)
class EvaluationConfig:
    """When the deterministic policy is evaluated, and over how many episodes."""

    eval_every: int = 0
    """Iterations between evaluations of the deterministic policy, which takes the most probable
    action or the mean. They use environments and seeds of their own, so training stays the same,
    and the statistics of normalised observations as they are. The last policy is always evaluated,
    the best is kept in best/. 0: never. 10 to 50 is usual; time/eval_s shows the cost."""
    eval_episodes: int = 10
    """Whole episodes of an evaluation, stepped together; more give a more precise mean. A forecast
    of memory leaves them out: they are so many rows of a forward pass."""

    def check_evaluation(self, env: EnvConfig) -> None:
        """Raise ``ConfigError`` unless policies can be evaluated in ``env``, if they are to be."""
        check_whole("eval_every", self.eval_every, at_least=0)
        check_whole("eval_episodes", self.eval_episodes, at_most=100_000)
        if not self.eval_every:
            return
        if env.whole_episodes:
            allowed = "is for episodes of actions; the rewards of texts as written are in text/*"
            raise ConfigError("eval_every", self.eval_every, allowed)
        if env.imported_module() in (None, *sys.modules):  # else checked where it was imported
            env.episode_limit()
