"""What is known of the runs in a stack's lanes, and when they end."""

from __future__ import annotations

from collections.abc import Sequence

from ppo_lab.config.run import Config
from ppo_lab.devices.meters import Meters
from ppo_lab.envs.base import Env
from ppo_lab.training.lane_progress import LaneProgress
from ppo_lab.training.lane_values import LaneValues
from ppo_lab.training.recorder import Recorder
from ppo_lab.training.scores import History

__all__ = ["LaneRuns"]


class LaneRuns:
    """Base of a trainer: one run in each of its lanes.

    A lane is *live* from its first iteration until it is retired, at its end or before. A retired
    lane is still computed, with a learning rate of 0, until another config replaces it.
    """

    config: Config
    env: Env
    meters: Meters
    progress: LaneProgress
    recorder: Recorder
    _lanes: LaneValues

    @property
    def configs(self) -> list[Config]:
        """The config in each lane."""
        return self.progress.configs

    @property
    def iteration(self) -> int:
        """Iterations of the stack since it was built."""
        return self.progress.iteration

    @property
    def num_live_steps(self) -> int:
        """Environment steps of all live lanes since then."""
        return self.progress.num_all_steps

    @property
    def live_lanes(self) -> list[int]:
        """The lanes that train; only these are recorded."""
        return self.progress.live_lanes

    def history(self, lane: int) -> History:
        """Return a lane's curve so far."""
        return self.recorder.histories[lane]

    def lane_iteration(self, lane: int) -> int:
        """Return the number of iterations of the config in ``lane``."""
        return self.progress.lane_iteration(lane)

    def lane_steps(self, lane: int) -> int:
        """Return the number of environment steps of the config in ``lane``."""
        return self.progress.num_steps[lane]

    def has_ended(self, lane: int) -> bool:
        """Return whether a lane has used up its steps or diverged."""
        return self.progress.is_done(lane) or self.history(lane).diverged is not None

    def retire_ended(self) -> bool:
        """Retire the lanes that have ended; return whether any lane still trains."""
        for lane in filter(self.has_ended, self.live_lanes):
            self.retire_lane(lane)
        return bool(self.live_lanes)

    def retire_lane(self, lane: int) -> None:
        """Stop recording a lane and freeze its parameters."""
        self.progress.is_live[lane] = False
        self._lanes.freeze_lane(lane)

    def is_policy_start(self, lane: int) -> bool:
        """Return whether the policy of ``lane`` begins to train, after a while of its critic."""
        return 0 < self.configs[lane].policy_start_iteration == self.lane_iteration(lane)

    def is_at_boundary(self, lane: int) -> bool:
        """Return whether the environments of ``lane`` restart before its next iteration.

        They do at fixed iterations, so that interrupted and other runs are equal.
        """
        done = self.lane_iteration(lane)
        is_boundary = self.config.checkpoint.is_boundary(done, self.config.num_rows)
        return is_boundary and done > 0 and self.env.state_mode == "boundary"

    def lanes_to_evaluate(self) -> Sequence[int]:
        """Return the lanes whose policies are evaluated after the iteration that has ended."""
        if not (every := self.config.eval_every):
            return ()
        return [
            lane
            for lane in self.live_lanes
            if self.lane_iteration(lane) % every == 0 or self.progress.is_done(lane)
        ]

    def phase_seconds(self) -> dict[str, float]:
        """Return the seconds spent so far in each phase; see ``PhaseClock.without_overlap``."""
        return self.meters.clock.without_overlap()
