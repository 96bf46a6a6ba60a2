"""A video of a policy in its environment."""

import os

import imageio.v2 as imageio
import pytest

from ppo_lab import play
from ppo_lab.envs.config import EnvConfig
from ppo_lab.reports.video import record_video
from ppo_lab.training.policy import load_policy
from tests.reports.test_player import balancing_policy

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")


@pytest.mark.parametrize(("name", "fewest", "most"), [("v.mp4", 21, 21), ("v.gif", 2, 11)])
def test_a_video_has_a_frame_per_step_and_a_gif_every_other(name, fewest, most, tmp_path):
    balancing_policy(tmp_path)
    policy, config = load_policy(tmp_path), EnvConfig(id="CartPole-v1")
    output = tmp_path / name
    total = record_video(policy, config, output, seed=1, deterministic=True, max_steps=20)
    assert total == 20.0  # it balances
    frames = imageio.mimread(output)
    assert fewest <= len(frames) <= most  # equal frames of a GIF are one
    assert frames[0].shape[:2] == (400, 600)
    assert (frames[0] != frames[-1]).any()


def test_an_environment_without_pictures_is_refused_in_a_line(tmp_path, monkeypatch):
    balancing_policy(tmp_path)
    config = EnvConfig(id="tests.helpers.clock_env:Clock-v0")
    with pytest.raises(ValueError, match="cannot be rendered"):
        record_video(
            load_policy(tmp_path),
            config,
            tmp_path / "v.mp4",
            seed=1,
            deterministic=True,
            max_steps=5,
        )
    assert not (tmp_path / "v.mp4").exists()


def test_another_format_is_refused_before_the_episodes(tmp_path, capsys):
    balancing_policy(tmp_path)
    assert play.main([str(tmp_path), "--video", str(tmp_path / "v.avi")]) == 2
    assert "must end in .mp4 or .gif" in capsys.readouterr().err
