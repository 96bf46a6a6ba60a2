"""Folders from strangers: play, report and browse answer in one line, and never hang."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, save

from ppo_lab import browse, play, report
from ppo_lab.config.compose import check_jobs, register
from ppo_lab.training.policy import save_policy
from ppo_lab.training.trainer import Trainer

_HASH = "0" * 64
_TIB = 1 << 40


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run with a policy for CartPole."""
    register()
    folder = tmp_path_factory.mktemp("run")
    command = ["env=cartpole", "network=tiny", "num_envs=2", "num_steps=4"]
    (job,) = check_jobs(command)
    trainer = Trainer([job.config])
    save_policy(folder, job.config, trainer.model, {}, spec=trainer.spec)
    (folder / ".hydra").mkdir()
    (folder / ".hydra" / "config.yaml").write_text("env: {id: CartPole-v1}\n")
    return folder


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "run"))


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """Fail a test that takes longer than 20 seconds."""

    def expire(*_: object) -> None:
        raise AssertionError("it hangs")

    before = signal.signal(signal.SIGALRM, expire)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def refusal(capsys: pytest.CaptureFixture[str], command: Any, *words: object) -> str:
    """Return what ``command`` writes when it refuses: one line that begins with its name."""
    assert command.main([str(word) for word in words]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.count("\n") == 1
    assert shown.err.startswith(f"ppo_lab.{command.__name__.rpartition('.')[2]}: ")
    assert len(shown.err) < 700
    return shown.err


def describe(run: Path, **changes: Any) -> None:
    """Change policy.json as a forger would, with hashes that hold."""
    path, weights = (run / "checkpoint" / n for n in ("policy.json", "model.safetensors"))
    described = json.loads(path.read_text()) | changes
    described = {key: value for key, value in described.items() if value is not ...}
    hashed = hashlib.sha256(weights.read_bytes()).hexdigest()
    described["sha256"] = {"model.safetensors": hashed, "policy.json": _HASH}
    text = json.dumps(described)
    path.write_text(text.replace(_HASH, hashlib.sha256(text.encode()).hexdigest()))


def weights(run: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path = run / "checkpoint" / "model.safetensors"
    path.write_bytes(save(change(load(path.read_bytes()))))
    describe(run)


REPLACE: dict[str, Callable[[Path], object]] = {
    "fifo": os.mkfifo,
    "folder": Path.mkdir,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "loop": lambda path: path.symlink_to(path),
    "giant": lambda path: (path.touch(), os.truncate(path, _TIB)),
    "empty": Path.touch,
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 64),
    "deep": lambda path: path.write_text("[" * 60_000),
    "list": lambda path: path.write_text("[]\n"),
    "missing": lambda path: None,
}
"""What may be in the place of a file."""


def replace(path: Path, kind: str) -> None:
    path.unlink()
    REPLACE[kind](path)


@pytest.mark.parametrize("kind", REPLACE)
@pytest.mark.parametrize(
    "name", ["checkpoint/policy.json", "checkpoint/model.safetensors", ".hydra/config.yaml"]
)
def test_play_refuses_what_is_no_file_of_ours(
    run: Path, capsys: pytest.CaptureFixture[str], name: str, kind: str
) -> None:
    replace(run / name, kind)
    if kind == "list" and name.endswith("safetensors"):
        describe(run)
    assert str(run) in refusal(capsys, play, run)


@pytest.mark.parametrize(
    "changes",
    [
        *({key: ...} for key in ("env_id", "observation_shape", "actions", "network", "dtype")),
        *({"format": value} for value in (2, None, [1])),
        *({"observation_shape": value} for value in ([], [-4], ["a"], 4, [10**30], [5], {"a": 1})),
        *({"network": value} for value in (None, "mlp", {}, {"kind": ["mlp"]}, {"kind": "x"})),
        *(
            {"network": {"kind": "mlp", "hidden": hidden, "init": "default", "activation": "relu"}}
            for hidden in ("abc", [], [-1], [0.5], [10**12, 10**12], 3, [8] * 10_000)
        ),
        *({"actions": value} for value in (None, [], {"kind": "DiscreteActions"}, {"kind": "y"})),
        *(
            {"actions": {"kind": "DiscreteActions", "num_actions": number, "start": 0}}
            for number in (-1, 0, 3, "two", 10**15)
        ),
        {"actions": {"kind": "ContinuousActions", "low": ["a"], "high": [1]}},
        {"actions": {"kind": "ContinuousActions", "low": [0], "high": [1], "dtype": "x"}},
        {"shares_trunk": True},
    ],
    ids=lambda changes: repr(changes)[:60],
)
def test_play_refuses_a_description_of_no_policy(
    run: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any]
) -> None:
    describe(run, **changes)
    assert str(run) in refusal(capsys, play, run)


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: {},
        lambda tensors: {n: t[..., :1] for n, t in tensors.items()},
        lambda tensors: {n: t.astype(np.float16) for n, t in tensors.items()},
        lambda tensors: {n: np.full_like(t, np.nan) for n, t in tensors.items()},
        lambda tensors: tensors | {"model.more": np.zeros(1, np.float32)},
        lambda tensors: tensors | {"env.observation_mean": np.zeros((1, 4), np.float32)},
        lambda tensors: (
            tensors
            | {f"env.observation_{n}": np.zeros((1, 9), np.float32) for n in ("mean", "var")}
        ),
    ],
)
def test_play_refuses_weights_that_do_not_fit(
    run: Path, capsys: pytest.CaptureFixture[str], change: Any
) -> None:
    weights(run, change)
    assert "model.safetensors: " in refusal(capsys, play, run)


BOMB = "\n".join(f"a{n}: &a{n} [{f'*a{n - 1}, ' * 9 if n else 'x'}]" for n in range(9))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("env:", "config.yaml"),
        ("env: 3", "config.yaml"),
        ("seed: 3", "config.yaml"),
        ("env: {}", "config.yaml"),
        ("env: {id: [CartPole-v1]}", "config.yaml"),
        ("env: {id: CartPole-v1, more: 1}", "config.yaml"),
        ("env: {id: CartPole-v1, backend: x}", "config.yaml"),
        ("env: {id: CartPole-v1, max_episode_steps: -1}", "max_episode_steps"),
        ("env: {id: CartPole-v1, kwargs: {colour: red}}", "env.kwargs"),
        ("env: {id: CartPole-v9}", "env.id"),
        ("env: {id: 'no_such:Env-v0', backend: torch}", "imports the Python module no_such"),
        ("env: {id: Pendulum-v1}", "trained for observations 4, the environment has 3"),
        ("env: {id: '${oc.env:NO_SUCH_VARIABLE}'}", "config.yaml"),
        ("env: !!python/object/apply:os.system ['touch executed']", "config.yaml"),
        ("env: {id: !!python/name:os.system ''}", "config.yaml"),
        (BOMB, "values"),
        ("env: {id: CartPole-v1, when: 2026-02-31}", "config.yaml"),
        ("env: {id: 'os:Env-v0'}", "add --trust"),
        ("env: {id: 'executed:Env-v0'}", "imports the Python module executed"),
        ('env: {id: "\\e[31m:x"}', r"module \x1b[31m,"),
    ],
)
def test_play_refuses_a_config_of_another_environment_and_executes_nothing(
    run: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    config: str,
    expected: str,
) -> None:
    monkeypatch.chdir(run)
    monkeypatch.syspath_prepend(run)
    (run / "executed.py").write_text("open('executed', 'w')")
    (run / ".hydra" / "config.yaml").write_text(config)
    assert expected in refusal(capsys, play, run)
    assert not (run / "executed").exists()


@pytest.mark.parametrize(("answer", "is_imported"), [("y\n", True), ("\n", False), ("", False)])
def test_play_asks_before_it_imports_a_module(
    run: Path, monkeypatch: pytest.MonkeyPatch, answer: str, is_imported: bool
) -> None:
    terminal = io.StringIO(answer)
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    monkeypatch.chdir(run)
    monkeypatch.syspath_prepend(run)
    monkeypatch.delitem(sys.modules, "executed", raising=False)
    (run / "executed.py").write_text("open('executed', 'w')")
    (run / ".hydra" / "config.yaml").write_text("env: {id: 'executed:Env-v0'}")
    assert play.main([str(run)]) == 2
    assert (run / "executed").exists() is is_imported


def test_play_trusts_on_request_and_plays_what_is_good(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert play.main([str(run), "--episodes", "2", "--trust", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["returns"]) == 2


@pytest.mark.parametrize(
    "words", [["--episodes", "0"], ["--episodes", "100001"], ["--seed", "1" * 30], ["--seed", "-1"]]
)
def test_play_bounds_its_numbers(
    run: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    with pytest.raises(SystemExit):
        play.main([str(run), *words])
    assert "must be from" in capsys.readouterr().err


ROW = '{"iteration": 1, "global_step": 8, "charts/episodic_return_last100": 5.0}\n'


def recorded(folder: Path, summary: str = '{"env": "E"}', metrics: str = ROW) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "summary.json").write_text(summary)
    (folder / "metrics.jsonl").write_text(metrics)
    return folder


@pytest.mark.parametrize("kind", [kind for kind in REPLACE if kind != "empty"])
@pytest.mark.parametrize("name", ["summary.json", "metrics.jsonl"])
def test_a_report_skips_what_is_no_file_of_ours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, kind: str
) -> None:
    recorded(tmp_path / "good")
    replace(recorded(tmp_path / "bad") / name, kind)
    if name == "metrics.jsonl" and kind in ("deep", "binary"):
        with (tmp_path / "bad" / name).open("ab") as file:
            file.write(b"\n")
    assert report.main([str(tmp_path), "-o", str(tmp_path / "x.svg")]) == 0
    shown = capsys.readouterr().err
    # Without a summary the run has died; without metrics it was refused.
    if kind != "missing" and (name, kind) != ("summary.json", "loop"):
        assert shown.startswith("ppo_lab.report: skipped ")
        assert shown.count("\n") == 1
    assert "E: 1 seed per setting" in (tmp_path / "x.svg").read_text()


@pytest.mark.parametrize(
    ("summary", "metrics"),
    [
        ("{}", ROW),
        ('{"env": ["x"], "overrides": 3}', ROW),
        ('{"env": "$\\\\frac{", "overrides": ["a=$\\\\x", "b=\\u001b[31m"]}', ROW),
        ('{"env": "E"}', '{"iteration": true}\n'),
        ('{"env": "E"}', "{}\n"),
        ('{"env": "E"}', ROW.replace("5.0", '"five"')),
        ('{"env": "E"}', ROW.replace("5.0", "[5]")),
    ],
)
def test_a_report_survives_other_content(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], summary: str, metrics: str
) -> None:
    recorded(tmp_path / "good", '{"env": "E", "overrides": ["a=1"]}')
    recorded(tmp_path / "odd", summary, metrics)
    assert report.main([str(tmp_path), "-o", str(tmp_path / "x.svg")]) == 0
    assert "\x1b" not in (tmp_path / "x.svg").read_text() + capsys.readouterr().err


@pytest.mark.parametrize("output", ["x.xyz", "x", "no/x.png", "folder.png", "fifo.png"])
def test_a_report_refuses_an_output_in_its_own_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], output: str
) -> None:
    recorded(tmp_path / "good")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "fifo.png")
    line = refusal(capsys, report, tmp_path / "good", "-o", tmp_path / output)
    assert f"-o {tmp_path / output}: must" in line


def test_browse_refuses_a_folder_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert "no W&B runs in or above /nope" in refusal(capsys, browse, "/nope")


def test_browse_survives_a_loop_of_links(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "loop").symlink_to("loop")
    refusal(capsys, browse, tmp_path / "loop")


@pytest.mark.parametrize("command", [play, report, browse])
def test_help_is_plain_text(capsys: pytest.CaptureFixture[str], command: Any) -> None:
    with pytest.raises(SystemExit):
        command.main(["--help"])
    assert "``" not in capsys.readouterr().out
