"""Evaluate a saved policy: python -m ppo_lab.play outputs/runs/...

Every episode has its own seed and runs to its end. Prints eval_return, mean and standard deviation
over the episodes; of texts also some samples, their reward and what says whether they are good.
With --video it records one more episode as Gymnasium renders it.
Actions are deterministic by default, and the tokens of texts are samples.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from rich.console import Console
from torch import Tensor

from ppo_lab.config.foreign import read_plain
from ppo_lab.devices.placement import Placement
from ppo_lab.envs.base import DiscreteActions, Env
from ppo_lab.envs.config import EnvConfig
from ppo_lab.envs.text.config import TextConfig
from ppo_lab.reports.video import VIDEO_FORMATS, record_video
from ppo_lab.training.acting import Policy
from ppo_lab.training.evaluation import build_raw, first_episodes
from ppo_lab.training.policy import BEST_FOLDER, load_policy
from ppo_lab.utils.errors import EnvironmentFault
from ppo_lab.utils.redaction import printable

__all__ = ["Played", "evaluate", "main"]

_NUM_SHOWN = 10  # texts


class Played(NamedTuple):
    """Whole episodes of a policy."""

    returns: list[float]  # undiscounted, in the environment's own units
    texts: list[str]  # of env=text, else empty
    metrics: dict[str, float]  # means over the texts, as in training


def evaluate(
    policy: Policy,
    env_config: EnvConfig,
    *,
    num_episodes: int,
    seed: int,
    deterministic: bool,
    max_steps: int,
) -> Played:
    """Run whole episodes, all stepped together.

    ``seed`` is that of the initial states and of sampled actions.

    Raises:
        ValueError: The policy does not fit the environment.
        TimeoutError: An episode did not end within ``max_steps``.
    """
    num_steps = None
    if env_config.whole_episodes:
        if policy.texts is None:
            raise ValueError(f"the policy was trained for {policy.env_id}, not for texts")
        num_steps = policy.texts.num_steps
        env_config.check_rollout(num_steps)
    env = build_raw(
        env_config,
        seeds=torch.tensor([seed], dtype=torch.int64),
        num_envs=num_episodes,
        gamma=torch.ones(1),
        placement=Placement(torch.device("cpu")),
        num_steps=num_steps,
    )
    with closing(env):
        _check_fits(policy, env)
        start = env.spec.actions.start if isinstance(env.spec.actions, DiscreteActions) else 0

        def act(observations: Tensor) -> Tensor:
            batch = observations[0].reshape(num_episodes, *env.spec.shape).numpy()
            actions = policy.act(batch, deterministic=deterministic, seed=seed) - start
            return torch.as_tensor(actions).unsqueeze(0)

        policy.reset()
        returns = first_episodes(env, env.reset(), act, max_steps=max_steps).returns[0]
        final = env.final_rewards()
        if final is not None:
            returns += final[0]
        metrics = {name: float(mean[0]) for name, mean in env.text_metrics().items()}
        return Played(returns.tolist(), env.samples(0, num_episodes), metrics)


def _check_fits(policy: Policy, env: Env) -> None:
    for name, ours, its in (
        ("observations", env.spec.observation_size, policy.spec.observation_size),
        ("actions", env.spec.actions, policy.spec.actions),
    ):
        if ours != its:
            raise ValueError(f"the policy was trained for {name} {its}, the environment has {ours}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate the run named on the command line; return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m ppo_lab.play", description=__doc__)
    parser.add_argument("run", type=Path, help="folder of a finished run, or its best/")
    parser.add_argument("--episodes", type=_whole(1, 100_000), default=20, help="default 20")
    parser.add_argument(
        "--seed", type=_whole(0, 2**63 - 1), default=1_000_000, help="default 1000000"
    )
    parser.add_argument(
        "--max-steps", type=_whole(1, 2**63 - 1), default=100_000, help="per episode"
    )
    parser.add_argument(
        "--stochastic",
        action=argparse.BooleanOptionalAction,
        help="sample actions as in training; the default for texts alone",
    )
    parser.add_argument("--json", action="store_true", help="print a JSON object")
    trust = "import the module that env.id=module:Name-v0 or env.reward names without asking"
    parser.add_argument("--trust", action="store_true", help=trust)
    file = "record an episode as FILE.mp4 or FILE.gif; default video.mp4 in the run's folder"
    parser.add_argument("--video", nargs="?", const="", metavar="FILE", help=file)
    parsed = parser.parse_args(arguments)
    try:
        video = _video_path(parsed.video, parsed.run)
        policy = load_policy(parsed.run)
        run = parsed.run.parent if parsed.run.name == BEST_FOLDER else parsed.run
        env_config = _read_env_config(run / ".hydra" / "config.yaml")
        _confirm_import(env_config, is_trusted=parsed.trust)
        env_config.check()
        is_text = policy.texts is not None
        is_deterministic = not (is_text if parsed.stochastic is None else parsed.stochastic)
        played = evaluate(
            policy,
            env_config,
            num_episodes=parsed.episodes,
            seed=parsed.seed,
            deterministic=is_deterministic,
            max_steps=parsed.max_steps,
        )
        if video is not None:
            record_video(
                policy, env_config, video, seed=parsed.seed, deterministic=is_deterministic,
                max_steps=parsed.max_steps,
            )  # fmt: skip
    except (OSError, ValueError, EnvironmentFault) as error:
        sys.stderr.write(f"ppo_lab.play: {printable(error)}\n")
        return 2
    _show(played, policy.env_id, as_json=parsed.json)
    if video is not None:
        sys.stderr.write(f"{printable(video)}\n")
    return 0


def _video_path(given: str | None, run: Path) -> Path | None:
    """Return the file of ``--video``, None without it; raise ``ValueError`` for another format."""
    if given is None:
        return None
    path = Path(given) if given else run / "video.mp4"
    if path.suffix not in VIDEO_FORMATS or not path.parent.is_dir():
        allowed = f"must end in {' or '.join(VIDEO_FORMATS)}, in a folder that exists"
        raise ValueError(f"--video {path}: {allowed}")
    return path


def _show(played: Played, env_id: str, *, as_json: bool) -> None:
    """Print the result: an object, or a line after some texts."""
    returns = played.returns
    mean, deviation = float(np.mean(returns)), float(np.std(returns))
    if as_json:
        result: dict[str, Any] = {
            "eval_return": mean, "eval_return_std": deviation, "returns": returns
        }  # fmt: skip
        if played.texts:
            result |= {"texts": played.texts, **played.metrics}
        sys.stdout.write(json.dumps(result) + "\n")
        return
    console = Console()
    for text, reward in zip(played.texts[:_NUM_SHOWN], returns):
        console.print(f"{reward:6.2f}  {printable(text)}", soft_wrap=True, markup=False)
    decimals = 2 if played.texts else 1
    span = f"({min(returns):,.{decimals}f} to {max(returns):,.{decimals}f})"
    over = f"over {len(returns)} episodes of {printable(env_id)} {span}"
    spread = f", sd {deviation:,.{decimals}f}," if len(returns) > 1 else ""
    lines = [f"eval_return {mean:,.{decimals}f}{spread} {over}"]
    if played.metrics:
        lines.append("  ".join(f"{name} {value:.2f}" for name, value in played.metrics.items()))
    for line in lines:
        console.print(line, soft_wrap=True, markup=False)


def _read_env_config(path: Path) -> EnvConfig:
    """Return the environment of a run from its saved config; raise ``ValueError`` for another."""
    try:
        node = read_plain(path)["env"]
        schema = TextConfig if "task" in node else EnvConfig
        merged = OmegaConf.merge(OmegaConf.structured(schema), node)
        config: Any = OmegaConf.to_object(merged)
    except (KeyError, TypeError, ValueError, OmegaConfBaseException) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path}: holds no config of an environment: {reason}") from error
    if not isinstance(config, EnvConfig):
        raise ValueError(f"{path}: holds no config of an environment")
    return config


def _confirm_import(config: EnvConfig, *, is_trusted: bool) -> None:
    """Ask before code is imported that the run's config names; without a terminal, refuse."""
    module = config.imported_module()
    if module is None or is_trusted:
        return
    what = f"its config imports the Python module {printable(module)}, whose code then runs"
    if not sys.stdin.isatty():
        raise ValueError(f"{what}; add --trust if you trust whoever made this run")
    sys.stderr.write(f"{what}. Import it? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise ValueError("not imported")


def _whole(smallest: int, largest: int) -> Callable[[str], int]:
    def whole_number(text: str) -> int:
        value = int(text)
        if not smallest <= value <= largest:
            raise argparse.ArgumentTypeError(f"{text}: must be from {smallest} to {largest}")
        return value

    return whole_number


if __name__ == "__main__":
    sys.exit(main())
