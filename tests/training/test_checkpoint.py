"""Checkpoints: written completely or not at all, verified to the last bit, the newest two kept."""

import json
import os
import random

import pytest
import torch

from ppo_lab.training import checkpoint
from ppo_lab.training.checkpoint import (
    LaneState,
    describe_run,
    load_checkpoint,
    remove_checkpoints,
    save_checkpoint,
)
from tests.helpers.trainers import config


def state_at(iteration):
    tensors = {
        "weights": torch.arange(200.0) + iteration,
        "count": torch.tensor(2**62 + 1),
        "history": torch.empty(0, dtype=torch.float64),
    }
    # A generator's state may have 128 bits; an environment may have a limit of infinity.
    env = {"bits": 2**127 + 1, "limit": float("inf"), "third": 1 / 3}
    return LaneState(tensors, {"iteration": iteration, "env": env})


def save(folder, iteration):
    return save_checkpoint(folder, state_at(iteration), {"iteration": iteration, "metrics": 17})


def names_in(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def check_state(state, iteration):
    expected = state_at(iteration)
    assert state.numbers == expected.numbers
    assert state.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert torch.equal(state.tensors[name], tensor)
        assert state.tensors[name].dtype == tensor.dtype


def test_the_newest_is_read_as_it_was_written_and_the_two_newest_are_kept(tmp_path):
    assert load_checkpoint(tmp_path) is None
    for iteration in (7, 8, 10):  # in numbers, not as text: "10" < "8"
        folder = save(tmp_path, iteration)
    found = load_checkpoint(tmp_path)
    check_state(found.state, 10)
    assert (found.folder, found.skipped) == (folder, ())
    assert (found.manifest["metrics"], found.manifest["format"]) == (17, 1)
    assert names_in(tmp_path) == ["10", "8"]
    save(tmp_path, 10)  # once more: replaced
    assert names_in(tmp_path) == ["10", "8"]
    remove_checkpoints(tmp_path)
    assert names_in(tmp_path) == []


def test_a_run_that_went_back_removes_what_came_after(tmp_path):
    for iteration in (7, 9):
        save(tmp_path, iteration)
    save(tmp_path, 8)
    assert names_in(tmp_path) == ["7", "8"]


def test_every_truncation_and_every_flipped_bit_is_noticed_and_the_older_one_read(tmp_path):
    save(tmp_path, 1)
    folder = save(tmp_path, 2)
    drawn = random.Random(12)
    for number in range(240):
        path = sorted(folder.iterdir())[number % 3]
        content = path.read_bytes()
        at = drawn.randrange(len(content))
        bit = content[at] ^ (1 << drawn.randrange(8))
        path.write_bytes(
            content[:at] + bytes([bit]) * (number % 2) + content[at + 1 :] * (number % 2)
        )
        found = load_checkpoint(tmp_path)
        assert found is not None
        assert (found.folder.name, len(found.skipped)) == ("1", 1), (path.name, at)
        assert found.skipped[0].startswith("checkpoint 2: ")
        path.write_bytes(content)
    check_state(load_checkpoint(tmp_path).state, 2)


def forge(folder, name, content):
    """Replace a file, and make the manifest say that it was so from the beginning."""
    (folder / name).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    del manifest["sha256"]
    manifest["files"][name] = checkpoint._describe_file(folder / name)
    (folder / "manifest.json").write_bytes(checkpoint._sealed(manifest))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("state.json", b"[" * 100_000),
        ("state.json", b"[1]"),
        ("state.json", b"9" * 5000),
        ("state.json", b"\xff"),
        ("state.safetensors", b"\x80\x04."),  # a pickle's beginning
        ("state.safetensors", (1 << 40).to_bytes(8, "little") + b"{}"),
    ],
)
def test_a_file_that_was_made_up_is_passed_over_with_the_reason(tmp_path, name, content):
    forge(save(tmp_path, 1), name, content)
    assert load_checkpoint(tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"[]", b'{"format": 2}', b'{"format": 1}', b"{" * 10_000])
def test_a_manifest_of_another_kind_is_passed_over(tmp_path, content, caplog):
    (save(tmp_path, 1) / "manifest.json").write_bytes(content)
    assert load_checkpoint(tmp_path) is None
    assert "checkpoint 1: " in caplog.text


@pytest.mark.parametrize("name", ["state.safetensors", "state.json", "manifest.json"])
def test_links_pipes_and_missing_files_are_never_opened(tmp_path, name):
    save(tmp_path, 1)
    path = save(tmp_path, 2) / name
    secret = tmp_path / "secret"
    path.rename(secret)
    for make in (lambda: None, lambda: os.mkfifo(path), lambda: path.symlink_to(secret)):
        make()
        assert load_checkpoint(tmp_path).folder.name == "1"
        path.unlink(missing_ok=True)


def test_sizes_are_bounded(tmp_path, monkeypatch):
    save(tmp_path, 1)
    monkeypatch.setitem(checkpoint._LARGEST, "state.json", 10)
    assert load_checkpoint(tmp_path) is None


@pytest.mark.parametrize("step", ["save_file", "_describe_file", "_flush"])
def test_a_checkpoint_that_could_not_be_written_leaves_the_one_before(tmp_path, monkeypatch, step):
    save(tmp_path, 1)

    def fail(*_):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, step, fail)
        with pytest.raises(OSError, match="no space"):
            save(tmp_path, 2)
    assert names_in(tmp_path) == ["1"]
    check_state(load_checkpoint(tmp_path).state, 1)


def test_what_a_killed_writer_left_is_passed_over_and_removed(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "checkpoints" / ".2.0123456789abcdef").mkdir()
    assert load_checkpoint(tmp_path).folder.name == "1"
    save(tmp_path, 3)
    assert names_in(tmp_path) == ["1", "3"]


def test_files_are_flushed_before_the_folder_gets_its_name(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(checkpoint, "_flush", lambda path: flushed.append((path, path.exists())))
    folder = save(tmp_path, 1)
    names = {path.name for path, _ in flushed[:3]}
    assert names == {path.name for path in folder.iterdir()}
    assert flushed[0][0].parent == flushed[3][0] != folder
    assert flushed[4] == (tmp_path / "checkpoints", True)


def test_a_manifest_says_where_the_run_is_and_what_its_numbers_depend_on():
    base = config("num_envs=4", "num_steps=16")
    state = LaneState({}, {"iteration": 3, "is_compiled": False, "env_mode": "exact"})
    manifest = describe_run(base, state, metrics_bytes=1234)
    assert (manifest["iteration"], manifest["env_steps"]) == (3, 3 * 64)
    assert (manifest["metrics_bytes"], manifest["env_mode"]) == (1234, "exact")
    assert {"torch", "python"} <= manifest["versions"].keys()
    other = describe_run(config("num_envs=4", "num_steps=16", "gamma=0.98"), state)
    assert len(manifest["config_sha256"]) == 64
    assert manifest["config_sha256"] != other["config_sha256"]
