"""A trained policy that acts, or writes texts, outside of training.

Shapes: O = observation size, A = action size, n = observations in a batch, T = most tokens of a
text after its first.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppo_lab.envs.base import DiscreteActions, EnvSpec
from ppo_lab.envs.running_stats import normalize
from ppo_lab.envs.text.config import TextConfig
from ppo_lab.networks import ActorCritic
from ppo_lab.networks.sequences import Memory, Sequences, SequenceTrunk
from ppo_lab.utils import rng

__all__ = ["OBSERVATION_MEAN", "OBSERVATION_VAR", "Policy", "Texts", "read_step"]

OBSERVATION_MEAN, OBSERVATION_VAR = "observation_mean", "observation_var"
_NONE = -1  # no token is given: the policy chooses


class Texts(NamedTuple):
    """What texts a policy has learned to write."""

    config: TextConfig  # its task with prompts and tokenizer; no reward is used
    num_steps: int  # T


class Policy:
    """A trained policy for raw observations, which it normalises as in training.

    One that has a memory (``network=lstm``) goes on with each call; say where episodes begin::

        policy = load_policy("outputs/runs/<run>")
        observation, _ = env.reset()
        policy.reset()
        ended = False
        while not ended:
            observation, _, terminated, truncated, _ = env.step(policy.act(observation))
            ended = terminated or truncated

    In a batch, episodes begin at different times: ``policy.act(observations, starts=ended)``.
    One that was trained on texts writes them: ``policy.generate(["the tiny"], num_texts=5)``.

    Attributes:
        spec: Shape of the observations, and the action space.
        env_id: Id of the environment that the policy was trained on.
        texts: What a policy for texts writes; None for others.
    """

    def __init__(
        self,
        model: ActorCritic,
        spec: EnvSpec,
        env_id: str,
        state: dict[str, Tensor],
        texts: Texts | None = None,
    ) -> None:
        """Wrap a model of one lane.

        ``state`` holds the observations' mean and variance if they were normalised, else nothing.
        """
        self.spec, self.env_id, self.texts = spec, env_id, texts
        self._model, self._state = model, state
        self._memory: Memory | None = None
        self._num_sequences = self._num_read = 0  # that the memory is of, and steps that it holds
        self._num_drawn = 0

    def reset(self) -> None:
        """Begin new episodes: forget all observations. Without a memory, this does nothing."""
        self._memory = None

    def act(
        self,
        observation: NDArray[Any],
        *,
        deterministic: bool = True,
        seed: int = 0,
        starts: NDArray[np.bool_] | bool | None = None,
    ) -> NDArray[Any]:
        """Return the action for one observation, or the actions for a batch.

        Args:
            observation: The environment's observation, with a leading axis n for a batch.
            deterministic: Take the most probable action (continuous: the mean) instead of a sample.
            seed: Of the samples; these also depend on the number of earlier calls.
            starts: Whether the observation is the first of its episode, (n,) for a batch; what was
                seen before is then forgotten. None: only after ``reset``. Policies without a memory
                need none.

        Returns:
            Discrete actions as int64, () or (n,), numbered as in the environment; continuous
            actions in the dtype of the action space, (A,) or (n, A), clipped to it.

        Raises:
            ValueError: The observation does not have the environment's shape, or, with a memory,
                the batch does not have the size of the one before.
        """
        # Numpy converts all dtypes and strides that a space can have, torch does not.
        array = np.array(observation, self._input_dtype)
        shape = self.spec.shape
        is_batch = array.ndim == len(shape) + 1
        if array.shape[is_batch:] != shape:
            raise ValueError(f"an observation has shape {shape}, not {array.shape}")
        rows = torch.as_tensor(array).reshape(1, -1, self.spec.observation_size)
        begins = self._begin(rows.shape[1], starts)
        with torch.no_grad():
            parameters, self._memory = self._read(rows, self._memory, begins)
            actions = self._choose(parameters, seed, self._num_drawn, deterministic)[0]
        self._num_drawn += not deterministic
        chosen = actions.numpy()
        if isinstance(self.spec.actions, DiscreteActions):
            chosen = chosen + self.spec.actions.start
        else:
            box = self.spec.actions
            low, high = (np.array(bound, box.dtype) for bound in (box.low, box.high))
            chosen = np.clip(chosen.astype(box.dtype), low, high)
        return chosen if is_batch else chosen[0]

    def generate(
        self,
        prompts: Sequence[str] | None = None,
        *,
        num_texts: int | None = None,
        seed: int = 0,
        greedy: bool = False,
    ) -> list[str]:
        """Return texts, each with the prompt that it goes on from.

        Args:
            prompts: Beginnings of texts; None: those of the task.
            num_texts: Number of texts, for which prompts repeat in order. None: one for each.
            seed: Of the samples.
            greedy: Take the most probable token in place of a sample.

        Raises:
            ValueError: The policy was not trained on texts, a prompt has unknown words, or leaves
                no room for a token of the policy.
        """
        if self.texts is None:
            raise ValueError(f"the policy acts in {self.env_id}; only env=text writes texts")
        task, num_steps = self.texts.config.make_task(), self.texts.num_steps
        given = task.prompts if prompts is None else [*map(task.tokenizer.encode, prompts)]
        if (longest := max(map(len, given), default=0)) > num_steps:
            raise ValueError(f"a prompt has {longest} tokens; this policy reads {num_steps}")
        count = len(given) if num_texts is None else num_texts
        chosen = list(itertools.islice(itertools.cycle(given), count))
        if not chosen:
            return []
        end, pad = task.tokenizer.end, task.tokenizer.pad
        rows = self._write(chosen, end=end, pad=pad, seed=seed, greedy=greedy).tolist()
        ends = (row.index(end, 1) + 1 if end in row[1:] else len(row) for row in rows)
        return [task.tokenizer.decode(row[:stop]) for row, stop in zip(rows, ends, strict=True)]

    @torch.no_grad()
    def _write(
        self, prompts: Sequence[Sequence[int]], *, end: int, pad: int, seed: int, greedy: bool
    ) -> Tensor:
        """Return tokens (n, T + 1 or fewer) that begin with ``prompts``, padded after the end."""
        assert self.texts is not None
        columns = itertools.zip_longest(*prompts, fillvalue=_NONE)
        given = [torch.tensor(column) for column in columns]  # (n,) each
        tokens, memory = [given[0]], None
        is_running = torch.ones(len(prompts), dtype=torch.bool)
        for step in range(1, self.texts.num_steps + 1):
            parameters, memory = self._read(tokens[-1].view(1, -1, 1), memory)
            column = self._choose(parameters, seed, step, greedy)[0]
            if step < len(given):
                column = torch.where(given[step] == _NONE, column, given[step])
            tokens.append(torch.where(is_running, column, pad))
            is_running &= column != end
            if not is_running.any():
                break
        return torch.stack(tokens, 1)

    @property
    def _input_dtype(self) -> type[np.generic]:
        if self.spec.num_tokens is not None:
            return np.int64
        is_double = self._model.dtype is torch.float64
        return np.float64 if is_double else np.float32

    def _begin(self, num_sequences: int, starts: NDArray[np.bool_] | bool | None) -> Tensor | None:
        """Forget what episodes have ended; return where they begin (1, n, 1), None for nowhere."""
        if not self._model.reads_sequences:
            return None
        if starts is not None and np.all(starts):
            self.reset()
            starts = None
        if self._memory is None:
            self._num_sequences, self._num_read = num_sequences, 0
        elif num_sequences != self._num_sequences:
            found = f"{num_sequences} observations after a batch of {self._num_sequences}"
            raise ValueError(f"{found}; call reset() where other episodes begin")
        if self.texts is not None and (self._num_read == self.texts.num_steps or np.any(starts)):
            most = f"at most {self.texts.num_steps} tokens after their first"
            raise ValueError(f"texts begin together and have {most}: call reset(), or generate()")
        self._num_read += 1
        if self._memory is None or starts is None:
            return None
        return torch.as_tensor(np.broadcast_to(starts, num_sequences).copy()).view(1, -1, 1)

    def _read(
        self, rows: Tensor, memory: Memory | None, starts: Tensor | None = None
    ) -> tuple[Tensor, Memory | None]:
        """Return the distributions' parameters (1, n, P) for raw observations (1, n, O)."""
        if OBSERVATION_MEAN in self._state:
            var, mean = self._state[OBSERVATION_VAR], self._state[OBSERVATION_MEAN]
            rows = normalize(rows, var=var, mean=mean)
        num_steps = self.texts.num_steps if self.texts else 1  # which does not limit others
        return read_step(self._model, rows, memory, starts, num_steps)

    def _choose(self, parameters: Tensor, seed: int, number: int, is_greedy: bool) -> Tensor:
        """Return actions (1, n, …): the modes, or the samples of ``seed`` with a ``number``."""
        distribution = self._model.distribution
        if is_greedy:
            return distribution.mode(parameters)
        keys = rng.fold_in(rng.lane_keys(torch.tensor([seed]), rng.Stream.EVAL), number)
        dtype = self._model.dtype
        return distribution.sample(parameters, distribution.noise(keys, parameters.shape[1], dtype))


def read_step(
    model: ActorCritic,
    rows: Tensor,
    memory: Memory | None,
    starts: Tensor | None = None,
    num_steps: int = 1,
) -> tuple[Tensor, Memory | None]:
    """Return the distributions' parameters (L, n, P) for observations (L, n, O), and the memory.

    Of a policy without a memory that is None. None for ``memory``: nothing has been read; there
    will be ``num_steps`` at most, if the network has a limit.
    """
    if not model.reads_sequences:
        return model.policy(rows), None
    if memory is None:
        memory = cast(SequenceTrunk, model.actor).empty_memory(rows.shape[1], num_steps)
    return model.act(Sequences(rows.unsqueeze(2), starts, memory))
