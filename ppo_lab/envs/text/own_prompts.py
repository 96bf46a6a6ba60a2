"""Prompts of the user's own, from a JSONL file: one object a line, with a field ``prompt``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from ppo_lab.envs.text.grammar import GrammarTask
from ppo_lab.envs.text.task import TextTask
from ppo_lab.envs.text.tokenizers import PretrainedTokenizer, Tokenizer
from ppo_lab.utils.errors import ConfigError

__all__ = ["OwnPromptsTask", "prompts_task", "read_prompts"]

_MOST_BYTES, _MOST_PROMPTS = 64 * 1024**2, 100_000


def read_prompts(path: str) -> dict[int, str]:
    """Return the prompts of a JSONL file by the number of their line; blank ones are left out.

    Raises:
        ConfigError: The file cannot be read, is larger than 64 MiB, holds none or more than 100,000
            of them, or a line has another form.
    """
    file = Path(path)
    if not file.is_file():
        raise ConfigError("env.prompts", path, "there is no such file")
    if file.stat().st_size > _MOST_BYTES:
        raise ConfigError("env.prompts", path, f"must have at most {_MOST_BYTES // 1024**2} MiB")
    try:
        prompts = dict(_prompts(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, RecursionError) as error:
        told = " ".join(str(error).split())
        raise ConfigError("env.prompts", path, told) from None
    if not 0 < len(prompts) <= _MOST_PROMPTS:
        allowed = f"must hold 1 to {_MOST_PROMPTS:,} prompts, not {len(prompts):,}"
        raise ConfigError("env.prompts", path, allowed)
    return prompts


def _prompts(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"line {number} is no JSON: {error}") from None
        if not isinstance(row, dict) or not isinstance(row.get("prompt"), str):
            raise ValueError(f'line {number} must be an object such as {{"prompt": "Once"}}')
        yield number, row["prompt"]


class OwnPromptsTask(TextTask):
    """Prompts for a pretrained model; it has no reward and no corpus of its own."""

    longest = 0

    def __init__(self, tokenizer: Tokenizer) -> None:
        """Take the prompts as tokens of ``tokenizer``."""
        self.tokenizer = tokenizer

    def rewards(self, texts: Sequence[str]) -> list[float]:  # noqa: ARG002
        """Raise ``ConfigError``: the reward is the user's."""
        allowed = "env.tokenizer needs a reward of your own: module:function"
        raise ConfigError("env.reward", None, allowed)

    def corpus(self, seed: int, number: int) -> list[str]:  # noqa: ARG002
        """Raise ``ConfigError``: the model has been pretrained."""
        allowed = "must be 0 with env.tokenizer: there is no corpus in its tokens"
        raise ConfigError("env.pretrain_steps", "...", allowed)


def prompts_task(path: str, tokenizer: str | None) -> TextTask:
    """Return the task of a file's prompts; without a tokenizer, in the words of the grammar.

    Raises:
        ConfigError: See ``read_prompts``; or a prompt has no tokens, unknown ones, or the last one.
    """
    prompts = read_prompts(path)
    task: TextTask = GrammarTask()
    if tokenizer is not None:
        task = OwnPromptsTask(PretrainedTokenizer(tokenizer))
    task.prompts = [_encode(path, task.tokenizer, *prompt) for prompt in prompts.items()]
    return task


def _encode(path: str, tokenizer: Tokenizer, line: int, prompt: str) -> list[int]:
    try:
        tokens = tokenizer.encode(prompt)
    except ValueError as error:
        raise ConfigError("env.prompts", path, f"line {line}: {error}") from None
    if tokenizer.end in tokens[1:]:
        raise ConfigError("env.prompts", path, f"line {line} holds the token that ends a text")
    return tokens
