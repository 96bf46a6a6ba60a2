"""Six planted secrets of a run: none is in a file, on the terminal or in W&B's log."""

from tests.helpers.commands import ppo_lab

MODULE = """
import gymnasium
import numpy as np


class Leaky(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, dsn, login, url, api_token):
        self.words, self.steps = (dsn, login, url, api_token), 0

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        if self.steps > 40:
            raise RuntimeError(f"redis://:exception-canary@cache does not answer {self.words}")
        return np.zeros(2, np.float32), 0.0, False, self.steps % 10 == 0, {}


gymnasium.register("Leaky-v0", Leaky)
"""


def test_none_of_six_planted_secrets_is_found_anywhere(tmp_path):
    (tmp_path / "leaky.py").write_text(MODULE)
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password netrc-canary\n")
    done = ppo_lab(
        tmp_path,
        "env=gymnasium",
        "env.id=leaky:Leaky-v0",
        "+env.kwargs.dsn=${oc.env:MY_DSN}",
        "+env.kwargs.url=${oc.env:MY_URL}",
        "+env.kwargs.login=${oc.env:MY_PASSWORD}",
        "+env.kwargs.api_token=${oc.env:MY_PASSWORD}",
        "tracking.notes=${oc.env:MY_NOTES}",
        *("network=tiny", "num_envs=2", "num_steps=16", "total_steps=640"),
        MY_DSN="postgresql://me:argument-canary@host/db",
        MY_URL="http://host/netrc-canary?token=kwargs-canary",
        MY_NOTES="ghp_config-canary-0123",
        MY_PASSWORD="variable-canary",
        NETRC=str(tmp_path / "netrc"),
        WANDB_MODE="offline",
    )
    assert done.returncode != 0
    assert "does not answer" in done.stdout + done.stderr  # the reason is told, without the secrets
    files = {
        path: path.read_bytes() for path in (tmp_path / "outputs").rglob("*") if path.is_file()
    }
    assert {".wandb", ".yaml", ".json", ".jsonl"} <= {path.suffix for path in files}
    files[tmp_path / "terminal"] = (done.stdout + done.stderr).encode()
    found = [path for path, content in files.items() if b"canary" in content]
    assert not found
