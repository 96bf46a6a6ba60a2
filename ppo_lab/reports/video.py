"""A video of a policy in its environment, as Gymnasium renders it."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppo_lab.envs.config import EnvConfig
from ppo_lab.envs.gymnasium_spec import make_env

if TYPE_CHECKING:
    from ppo_lab.training.acting import Policy

__all__ = ["VIDEO_FORMATS", "record_video"]

VIDEO_FORMATS = (".mp4", ".gif")
_DEFAULT_FPS = 30
_MOST_GIF_FPS = 30  # a GIF is large, and slow to write: of faster ones, every other frame or less


def record_video(
    policy: Policy,
    config: EnvConfig,
    output: Path,
    *,
    seed: int,
    deterministic: bool,
    max_steps: int,
) -> float:
    """Write one episode to ``output``, an MP4 or GIF file; return the sum of its rewards.

    Raises:
        ValueError: The environment cannot be rendered, or a package is missing.
        OSError: ``output`` cannot be written.
    """
    if policy.texts is not None:
        raise ValueError("a policy that writes texts has no video")
    try:
        import gymnasium
        import imageio.v2 as imageio

        shown = {**config.kwargs, "render_mode": "rgb_array"}
        env = make_env(config.id, shown, config.max_episode_steps)
    except ImportError as error:
        raise ValueError(f"a video needs pip install 'ppo_lab[video]': {error}") from error
    except (gymnasium.error.Error, TypeError) as error:
        raise ValueError(f"{config.id} cannot be rendered: {error}") from error
    with closing(env):
        observation, _ = env.reset(seed=seed)
        policy.reset()
        if env.render_mode != "rgb_array":
            raise ValueError(f"{config.id} cannot be rendered: it has no render_mode=rgb_array")
        total, ended, num_steps = 0.0, False, 0
        fps = env.metadata.get("render_fps", _DEFAULT_FPS)
        stride = -(-fps // _MOST_GIF_FPS) if output.suffix == ".gif" else 1
        with _writer(imageio, output, fps / stride) as writer:
            writer.append_data(env.render())
            while not ended and num_steps < max_steps:
                action = policy.act(observation, deterministic=deterministic, seed=seed)
                observation, reward, terminated, truncated, _ = env.step(action)
                total, num_steps = total + float(reward), num_steps + 1
                ended = terminated or truncated
                if ended or num_steps % stride == 0:
                    writer.append_data(env.render())
        return total


def _writer(imageio: Any, output: Path, fps: float) -> Any:  # noqa: ANN401 - an untyped library
    if output.suffix == ".gif":
        return imageio.get_writer(output, duration=1000 / fps, loop=0)
    # Frames keep their size: by default it is rounded up to multiples of 16.
    return imageio.get_writer(output, fps=fps, macro_block_size=2)
