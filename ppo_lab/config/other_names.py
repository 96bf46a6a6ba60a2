"""Names of CleanRL's and Stable-Baselines3's (SB3) options, answered with this package's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ppo_lab.utils.errors import ConfigError

__all__ = ["answer", "check_flags", "refuse_other_names"]

_SAME = {  # the value stays as it is
    "clip_coef": "epsilon", "clip_range": "epsilon", "clip_param": "epsilon",
    "clip_range_vf": "value_epsilon", "learning_rate": "lr", "update_epochs": "num_epochs",
    "n_epochs": "num_epochs", "n_steps": "num_steps", "n_envs": "num_envs",
    "total_timesteps": "total_steps", "ent_coef": "entropy_coef", "discount": "gamma",
    "exp_name": "name", "wandb_project_name": "tracking.project", "wandb_entity": "tracking.entity",
    "net_arch": "network.hidden",
}  # fmt: skip
_MINIBATCHES = "num_minibatches = num_envs * num_steps / {}"
_OTHERWISE = {
    "vf_coef": "write value_coef; CleanRL's value as it is, SB3's doubled, as its loss has no half",
    "batch_size": f"write {_MINIBATCHES.format('batch_size')} (SB3's; CleanRL's is "
    "num_envs * num_steps)",
    "minibatch_size": f"write {_MINIBATCHES.format('minibatch_size')}",
    "env_id": "write env=cartpole, or any Gymnasium id as env=gymnasium env.id=ID",
    "anneal_lr": "write lr_schedule=linear, or constant",
    "norm_adv": "write advantage_normalization=minibatch, or none",
    "normalize_advantage": "write advantage_normalization=minibatch, or none",
    "clip_vloss": "write value_epsilon=0.2, or none for no clip",
    "cuda": "write device=cuda, or device=cpu",
    "track": "write tracking=wandb, or tracking=local for files only",
    "torch_deterministic": "a run is deterministic as it is; leave it out",
    "capture_video": "leave it out; python -m ppo_lab.play shows a saved policy",
}


def answer(name: str, value: str = "...") -> str | None:
    """Return what to write for an option of CleanRL or SB3; None for any other name.

    Example:
        >>> answer("clip_coef", "0.1")
        'write epsilon=0.1'
    """
    name = name.replace("-", "_")
    if name in _SAME:
        return f"write {_SAME[name]}={value}"
    return _OTHERWISE.get(name)


def refuse_other_names(typed: Mapping[str, str]) -> None:
    """Raise ``ConfigError`` if keys of ``typed`` are other names; the message answers them all."""
    answers = {key: told for key, value in typed.items() if (told := answer(key, value))}
    if answers:
        first, *others = answers
        more = "".join(f"; for {key} {answers[key]}" for key in others)
        raise ConfigError(first, typed[first], answers[first] + more)


def check_flags(unknown: Sequence[str], words: Sequence[str]) -> None:
    """Raise ``ConfigError`` for flags that the command does not have, such as ``--epsilon 0.1``.

    They are the ``unknown`` ones among its ``words``.
    """
    told = {}
    for flag in (word for word in unknown if word.startswith("-")):
        name, _, value = flag.lstrip("-").partition("=")
        (after,) = words[words.index(flag) + 1 :][:1] or ("-",)
        is_value = after[:1] != "-" and "=" not in after
        name, value = name.replace("-", "_"), value or (after if is_value else "true")
        told[flag.partition("=")[0], value] = answer(name, value) or f"write {name}={value}"
    if told:
        allowed = f"keys have no dashes; {'; '.join(told.values())}"
        raise ConfigError(*next(iter(told)), allowed)
