"""Texts that a policy writes, token by token; every rollout is one text per environment.

Shapes: L = lanes, N = environments per lane, T = most tokens after the first, P = tokens of the
longest prompt, G = groups of environments per lane, M = prompts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ppo_lab.devices.placement import Place, Placement
from ppo_lab.envs.base import DiscreteActions, Env, EnvSpec, Step
from ppo_lab.envs.guard import EnvGuard
from ppo_lab.envs.text.rewards import RewardFunction, rewards_of
from ppo_lab.envs.text.task import TextTask
from ppo_lab.utils.rng import Stream, bits, lane_keys

__all__ = ["TextEnv", "text_spec"]

_NON_NEGATIVE = (1 << 63) - 1


def text_spec(task: TextTask) -> EnvSpec:
    """Return the sizes that a network needs to write texts of ``task``."""
    num_tokens = task.tokenizer.size
    return EnvSpec(1, DiscreteActions(num_tokens), num_tokens=num_tokens)


@dataclasses.dataclass(frozen=True)
class _LaneTexts:
    """What a lane wrote in the last rollout."""

    texts: list[str]
    metrics: dict[str, float]


class TextEnv(Env):
    """L * N texts; the observation is the last token (L, N, 1) int64, the action the next one.

    An episode ends with the token for the end, or as the T-th after its first one. Then it is dead:
    its tokens are padding and its rewards 0, until ``begin_episodes``. Rewards need whole texts on
    the host: every step's are 0, and ``final_rewards`` returns them after the last.
    """

    def __init__(
        self,
        task: TextTask,
        reward: RewardFunction,
        *,
        seeds: Tensor,
        num_envs: int,
        num_steps: int,
        placement: Placement,
        dtype: torch.dtype = torch.float32,
        timeout_s: float | None = None,
        is_dry: bool = False,
    ) -> None:
        """Build L * N texts of at most T = ``num_steps`` tokens after the first.

        ``seeds`` (L,) are on the device. ``timeout_s`` limits a call of ``reward``. ``is_dry``:
        transfer what a run does, but read no values, so that nothing is rewarded.
        """
        self.spec, self.device = text_spec(task), placement.device
        self.num_lanes, self.num_envs = shape = len(seeds), num_envs
        self._task, self._reward = task, reward
        self._num_steps, self._placement, self._is_dry = num_steps, placement, is_dry
        self._dtype = dtype
        self._guard = EnvGuard(self.num_lanes, num_envs, timeout_s)
        self._keys = lane_keys(seeds, Stream.ENV)  # (L,)
        self._longest = max(map(len, task.prompts))  # P
        assert self._longest <= num_steps, "check_rollout() comes first"
        pad = task.tokenizer.pad
        rows = [[*row, *[pad] * (self._longest - len(row))] for row in task.prompts]
        self._prompt_table = placement.move(torch.tensor(rows), Place.device)  # (M, P)
        lengths = torch.tensor([len(row) for row in task.prompts])
        self._length_table = placement.move(lengths, Place.device)  # (M,)
        self._zeros = torch.zeros(shape, dtype=dtype, device=self.device)
        self._never = torch.zeros(shape, dtype=torch.bool, device=self.device)
        # Everything that was written; int64, as observations and actions are.
        self._tokens = torch.full((*shape, num_steps + 1), pad, device=self.device)
        self._written: list[_LaneTexts] = []

    def reset(self) -> Tensor:
        """See ``Env.reset``: the prompts follow from the seeds."""
        return self.begin_episodes(self._keys, 1)

    def begin_episodes(self, keys: Tensor, group_size: int) -> Tensor:
        """See ``Env.begin_episodes``; environments of a group have the same prompt."""
        self._prompts, self._lengths = self._draw(keys, group_size)
        self._step = 0  # tokens after the first
        self._is_running = ~self._never
        first = self._prompts[..., :1]  # (L, N, 1)
        self._tokens.fill_(self._task.tokenizer.pad)
        self._tokens[..., :1] = first
        return first

    def _draw(self, keys: Tensor, group_size: int) -> tuple[Tensor, Tensor]:
        """Return prompts (L, N, P) and their lengths (L, N), a pure function of keys (L,)."""
        num_groups = -(-self.num_envs // group_size)
        numbers = (bits(keys, num_groups) & _NON_NEGATIVE) % len(self._length_table)  # (L, G)
        numbers = numbers.repeat_interleave(group_size, -1)[:, : self.num_envs]
        return self._prompt_table[numbers], self._length_table[numbers]

    def given_actions(self, actions: Tensor) -> tuple[Tensor, Tensor | None]:
        """See ``Env.given_actions``: the rest of the prompt."""
        number = self._step + 1
        if number >= self._longest:
            return actions, None
        is_given = self._lengths > number
        return torch.where(is_given, self._prompts[..., number], actions), is_given

    def step(self, actions: Tensor) -> Step:
        """Append a token to each running text; ``actions`` are int64 (L, N)."""
        assert self._step < self._num_steps, "begin_episodes() comes first"
        self._step += 1
        pad, end = self._task.tokenizer.pad, self._task.tokenizer.end
        was_running = self._is_running
        tokens = torch.where(was_running, actions, pad)
        self._tokens[..., self._step] = tokens
        is_last = self._step == self._num_steps
        terminated = was_running if is_last else was_running & (actions == end)
        self._is_running = was_running > terminated  # and not
        observations = torch.where(self._is_running, tokens, pad).unsqueeze(-1)
        none, never = self._zeros, self._never
        return Step(observations, none, none, terminated, never, tokens.unsqueeze(-1))

    def final_rewards(self) -> Tensor:
        """See ``Env.final_rewards``; one copy to the host, and one back.

        Raises:
            EnvironmentFault: The user's reward raised an error, or returned no finite numbers.
        """
        tokens = self._placement.move(self._tokens, Place.host)  # (L, N, T + 1)
        rewards = torch.zeros(tokens.shape[:2], dtype=self._dtype)
        if not self._is_dry:
            self._written = []
            for lane, rows in enumerate(tokens.tolist()):
                texts = [self._text(row) for row in rows]
                with self._guard("env.reward", lane * self.num_envs):
                    of_texts = rewards_of(self._reward, texts)
                rewards[lane] = torch.tensor(of_texts, dtype=self._dtype)
                self._written.append(_LaneTexts(texts, self._measure(texts, rows, of_texts)))
        return self._placement.move(rewards, Place.device)

    def _text(self, row: list[int]) -> str:
        return self._task.tokenizer.decode(row[: self._end(row)])

    def _end(self, row: list[int]) -> int:
        """Return the number of tokens up to the end of a text, and with it."""
        end = self._task.tokenizer.end
        return row.index(end, 1) + 1 if end in row[1:] else len(row)

    def _measure(
        self, texts: Sequence[str], rows: Sequence[list[int]], rewards: Sequence[float]
    ) -> dict[str, float]:
        """Return the metrics of a lane."""
        length = sum(self._end(row) - 1 for row in rows) / len(rows)
        reward = sum(rewards) / len(rewards)
        return {"reward_mean": reward, "length_mean": length} | self._task.quality(texts)

    def text_metrics(self) -> dict[str, Tensor]:
        """See ``Env.text_metrics``: reward, tokens after the first, and the task's qualities."""
        if not self._written:
            return {}
        names = self._written[0].metrics
        return {
            name: torch.tensor([lane.metrics[name] for lane in self._written], dtype=torch.float64)
            for name in names
        }

    def samples(self, lane: int, number: int) -> list[str]:
        """See ``Env.samples``."""
        return self._written[lane].texts[:number] if self._written else []

    def reset_lane(self, lane: int, seed: int, *, is_same_run: bool = False) -> Tensor:  # noqa: ARG002
        """See ``Env.reset_lane``; between rollouts, as all texts begin together."""
        seeds = torch.full((1,), seed, dtype=torch.int64, device=self.device)
        self._keys[lane] = lane_keys(seeds, Stream.ENV)[0]
        return self.reset()

    @property
    def state_mode(self) -> Literal["exact"]:
        """See ``Env.state_mode``: nothing is left when a rollout ends."""
        return "exact"

    def close(self) -> None:
        """See ``Env.close``."""
        self._guard.close()
