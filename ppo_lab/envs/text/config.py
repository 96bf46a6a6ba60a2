"""Options of the config group ``env`` for texts."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import Enum
from typing import ClassVar

import torch
from torch import Tensor

from ppo_lab.devices.placement import Place, Placement
from ppo_lab.envs.base import Env, EnvSpec
from ppo_lab.envs.config import EnvConfig
from ppo_lab.envs.gymnasium_spec import imports_module
from ppo_lab.envs.text.arithmetic import ArithmeticTask
from ppo_lab.envs.text.grammar import GrammarTask
from ppo_lab.envs.text.own_prompts import prompts_task
from ppo_lab.envs.text.rewards import RewardFunction, check_reward, load_reward
from ppo_lab.envs.text.task import TextTask
from ppo_lab.envs.text.text_env import TextEnv, text_spec
from ppo_lab.utils.errors import ConfigError, check_number

__all__ = ["TextConfig", "TextTaskName"]

_WITHOUT_EFFECT = (
    *("backend", "normalize_observations", "normalize_rewards", "max_episode_steps", "kwargs"),
)  # fmt: skip
_WHOLE = {  # smallest and largest; all prompts of arithmetic are listed, 10,000 at most
    "max_summand": (1, 99), "samples_every": (0, 10**9), "pretrain_steps": (0, 10**6),
    "pretrain_batch": (1, 2**16), "pretrain_seed": (0, 2**63 - 1),
}  # fmt: skip


class TextTaskName(Enum):
    """What a text is about."""

    grammar = "grammar"  # sentences of a small grammar; the reward counts friendly words
    arithmetic = "arithmetic"  # sums; the reward is 1 for a right answer
    prompts = "prompts"  # the prompts of a file


@dataclass(kw_only=True)
class TextConfig(EnvConfig):
    """Texts: a task, its reward, and the frozen reference that keeps the policy near language.

    ``timeout_s`` limits a call of ``reward``. Of the other options of an environment, those of
    Gymnasium have no effect and are refused.
    """

    whole_episodes: ClassVar[bool] = True

    id: str = "text"
    """Name of the task in records; free."""
    task: TextTaskName = TextTaskName.grammar
    """grammar, arithmetic, or prompts (of your own)."""
    max_summand: int = 19
    """Largest summand of ``task=arithmetic``, up to 99. Larger makes it harder to learn."""
    reward: str | None = None
    """Your own reward, ``module:function``: it takes a list of texts (with their prompts) and
    returns as many numbers. None: the task's own."""
    prompts: str | None = None
    """JSONL file of ``task=prompts``: an object with a field ``prompt`` on each line."""
    tokenizer: str | None = None
    """Folder of a Hugging Face tokenizer, for ``task=prompts``; None: the words of the grammar."""
    kl_coef: float = 0.3
    """beta: the log-ratio of policy and reference, times this, is subtracted from the reward of
    each token (arXiv:1909.08593, eq. 2). Smaller gives more reward, and texts that drift away. 0:
    there is no reference in memory, and no KL is measured."""
    kl_target: float | None = None
    """Nats a text that ``kl_coef`` is adapted to (arXiv:1909.08593, section 2.2); None: fixed."""
    samples_every: int = 10
    """Iterations between texts in the log; 0: none."""
    pretrain_steps: int = 400
    """Gradient steps that make the reference, which every policy starts from. More make better
    sentences and take longer. 0: it is a new network, from ``pretrain_seed``."""
    pretrain_lr: float = 3e-3
    """Learning rate of these steps."""
    pretrain_batch: int = 64
    """Texts per step."""
    pretrain_seed: int = 0
    """Seed of the reference: runs of all seeds start from the same one."""

    @property
    def has_reference(self) -> bool:
        """Whether a reward depends on a reference."""
        return self.kl_coef > 0.0

    def make_task(self) -> TextTask:
        """Return the task; raise ``ConfigError`` if its files cannot be used."""
        if self.task is TextTaskName.arithmetic:
            return ArithmeticTask(self.max_summand)
        if self.task is TextTaskName.grammar:
            return GrammarTask()
        if self.prompts is None:
            raise ConfigError("env.prompts", None, "env.task=prompts needs a JSONL file")
        return prompts_task(self.prompts, self.tokenizer)

    def imported_module(self) -> str | None:
        """See ``EnvConfig.imported_module``: that of the reward."""
        return None if self.reward is None else imports_module(self.reward)

    def check(self) -> EnvSpec:
        """Return the sizes that a network needs; raise ``ConfigError`` for unusable options.

        Example:
            >>> TextConfig().check().num_tokens
            41
        """
        self.check_values()
        task = self.make_task()
        if self.pretrain_steps:
            task.corpus(self.pretrain_seed, 1)
        texts = [task.tokenizer.decode(prompt) for prompt in task.prompts[:3]]
        check_reward(self.reward, self._reward_function(task), texts, self.timeout_s)
        return text_spec(task)

    def check_rollout(self, num_steps: int) -> None:
        """Raise ``ConfigError`` unless T = ``num_steps`` has room for each prompt and text."""
        task = self.make_task()
        longest_prompt = max(map(len, task.prompts))
        least = max(longest_prompt, task.longest - 1)
        if num_steps < least:
            text = f"must be >= {least}: the longest text has as many tokens after its first"
            if least == longest_prompt:
                text = f"must be >= {least}: a prompt has {longest_prompt} tokens"
            raise ConfigError("num_steps", num_steps, text)

    def build(
        self,
        *,
        seeds: Tensor,
        num_envs: int,
        gamma: Tensor,  # noqa: ARG002
        placement: Placement,
        dtype: torch.dtype = torch.float32,
        is_dry: bool = False,
        num_steps: int | None = None,
    ) -> Env:
        """See ``EnvConfig.build``; ``num_steps`` is the most tokens after a text's first."""
        assert num_steps is not None
        task = self.make_task()
        return TextEnv(
            task,
            self._reward_function(task),
            seeds=placement.move(seeds, Place.device),
            num_envs=num_envs,
            num_steps=num_steps,
            placement=placement,
            dtype=dtype,
            timeout_s=self.timeout_s,
            is_dry=is_dry,
        )

    def _reward_function(self, task: TextTask) -> RewardFunction:
        return task.rewards if self.reward is None else load_reward(self.reward)

    def check_values(self) -> None:
        """Raise ``ConfigError`` for a value that is out of range; no file is read."""
        defaults = {field.name: field.default for field in fields(EnvConfig)}
        for name in _WITHOUT_EFFECT:
            if (value := getattr(self, name)) and value is not defaults[name]:
                raise ConfigError(f"env.{name}", value, "has no effect on texts; leave it out")
        if self.task is not TextTaskName.prompts:
            for name in ("prompts", "tokenizer"):
                if (value := getattr(self, name)) is not None:
                    raise ConfigError(f"env.{name}", value, "needs env.task=prompts")
        check_number("env.timeout_s", self.timeout_s, above=0.0, off=True)
        check_number("env.kl_coef", self.kl_coef, at_least=0.0)
        check_number("env.kl_target", self.kl_target, above=0.0, off=True)
        if self.kl_target is not None and not self.has_reference:
            allowed = "needs env.kl_coef above 0, to begin with"
            raise ConfigError("env.kl_target", self.kl_target, allowed)
        check_number("env.pretrain_lr", self.pretrain_lr, above=0.0)
        for name, (least, most) in _WHOLE.items():
            if not least <= (value := getattr(self, name)) <= most:
                allowed = f"must be a whole number >= {least} and <= {most:,}"
                raise ConfigError(f"env.{name}", value, allowed)
