"""How far the run of each lane of a stack has come.

Shapes: T = steps per rollout, L = lanes, N = environments per lane.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ppo_lab.config.run import Config

__all__ = ["LaneProgress"]


class LaneProgress:
    """Counts the iterations and environment steps of every lane's config.

    A lane is *live* from its first iteration until it is retired, at its end or before.
    """

    def __init__(self, configs: Sequence[Config]) -> None:
        """Begin all lanes at iteration 0 of the stack."""
        self.configs = list(configs)
        self.is_live = [True] * len(configs)
        self.iteration = 0
        """Iterations of the stack since it was built."""
        self.num_steps = [0] * len(configs)
        """Environment steps by lane; of whole episodes, the live ones."""
        self.spent = [0.0] * len(configs)
        """By lane, the share of the run before its latest iteration."""
        self.num_latest_steps = 0
        """Of all live lanes in the latest iteration."""
        self.num_all_steps = 0
        """Of all live lanes since the stack was built."""
        self._begins = [0] * len(configs)  # the stack's iteration at which a lane began

    @property
    def live_lanes(self) -> list[int]:
        """The lanes that train; only these are recorded."""
        return [lane for lane, is_live in enumerate(self.is_live) if is_live]

    def lane_iteration(self, lane: int) -> int:
        """Return the number of iterations of the config in ``lane``."""
        return self.iteration - self._begins[lane]

    def count(self, live: Tensor | None) -> None:
        """Count an iteration whose ``live`` steps are (T, L, N); None if all are."""
        counts = None if live is None else live.sum((0, 2)).tolist()
        self.num_latest_steps = 0
        for lane in self.live_lanes:
            config = self.configs[lane]
            if counts is None:
                self.spent[lane] = self.lane_iteration(lane) / config.num_iterations
            else:
                self.spent[lane] = min(self.num_steps[lane] / config.total_steps, 1.0)
            latest = config.num_rows if counts is None else counts[lane]
            self.num_steps[lane] += latest
            self.num_latest_steps += latest
        self.num_all_steps += self.num_latest_steps
        self.iteration += 1

    def is_done(self, lane: int) -> bool:
        """Return whether the config in ``lane`` has used up its steps."""
        return self.num_steps[lane] >= self.configs[lane].num_counted_steps

    def begin_lane(
        self, lane: int, config: Config, iteration: int = 0, num_steps: int | None = None
    ) -> int:
        """Begin ``config`` in ``lane``, at an age; return the stack's iteration of its begin.

        After ``iteration`` iterations it has made ``num_steps``; None for all of their rows.
        """
        self.configs[lane], self.is_live[lane] = config, True
        self._begins[lane] = self.iteration - iteration
        self.num_steps[lane] = iteration * config.num_rows if num_steps is None else num_steps
        return self._begins[lane]
