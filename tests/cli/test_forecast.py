"""``forecast=true`` and ``vram_budget_gib``, as a person types them, in an empty folder."""

import json

import pytest

from tests.helpers.commands import ppo_lab

SMALL = ("network=tiny", "num_envs=4", "num_steps=16", "num_epochs=1", "num_minibatches=1")


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """One forecast as JSON, of a device that is not there."""
    folder = tmp_path_factory.mktemp("forecast")
    done = ppo_lab(folder, *SMALL, "forecast=true", "forecast_format=json", "device=cuda")
    assert done.returncode == 0, done.stderr
    assert not list(folder.iterdir())  # nothing was trained, nothing was made
    return done.stdout


def test_json_is_alone_on_stdout_and_its_parts_add_up(printed):
    needed = json.loads(printed)
    device = needed["device"]
    assert sum(device["categories"].values()) == device["peak"]
    assert sum(share["bytes"] for share in device["shares"]) == device["peak"]
    assert device["peak"] == max(device["phases"].values()) == device["phases"][device["phase"]]
    assert needed["total"] == device["peak"] + sum(line["bytes"] for line in needed["beside"])
    # 64-64 on CartPole, by hand: 4*64+64 + 64*64+64, and 64*2+2 or 64+1 for the heads
    assert needed["num_parameters"] == {"actor": 4610, "critic": 4545}
    assert needed["bus"]["gradient_step"] == {"h2d_bytes": 0, "d2h_bytes": 0}


def test_one_configuration_is_a_table_that_reads_well_at_80_columns(tmp_path):
    done = ppo_lab(tmp_path, *SMALL, "forecast=true", "memory=offloaded_optimizer", COLUMNS="80")
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    for word in ("weights", "actor", "critic", "cuBLAS", "CUDA context", "the card needs", "PCIe"):
        assert word in done.stdout
    assert not list(tmp_path.iterdir())


def test_a_grid_is_one_table_with_a_line_per_job(tmp_path):
    strategies = "co_resident,parked,shared_trunk"
    done = ppo_lab(
        tmp_path, *SMALL, "forecast=true", f"memory={strategies}", "seed=1,2", "-m", COLUMNS="80"
    )
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    rows = {(line[1], line[2]): line[3:] for line in lines if line and line[0].isdigit()}
    names = strategies.split(",")
    assert set(rows) == {(name, seed) for name in names for seed in "12"}
    assert max(map(len, done.stdout.splitlines())) <= 80
    for name in names:
        assert rows[name, "1"] == rows[name, "2"]  # a seed changes no size
    assert not list(tmp_path.iterdir())


def test_a_run_over_its_budget_is_refused_before_anything_is_made(tmp_path):
    done = ppo_lab(tmp_path, *SMALL, "vram_budget_gib=0.1")
    assert done.returncode == 2
    first, *_, last = done.stderr.splitlines()
    # CUDA's own context alone is more than that.
    assert first.startswith("ppo_lab: needs 0.")
    assert "vram_budget_gib is 0.10" in first
    assert "vram_budget_gib=none" in last
    assert not done.stdout
    assert not list(tmp_path.iterdir())


def test_a_budget_that_is_large_enough_changes_nothing(tmp_path):
    done = ppo_lab(tmp_path, *SMALL, "vram_budget_gib=4", "total_steps=64", "memory=auto")
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "outputs" / "runs").iterdir()
    assert json.loads((run / "summary.json").read_text())["memory"]["strategy"] == "co_resident"


def test_fit_prints_the_largest_run_and_its_command_and_makes_nothing(tmp_path):
    small = [word for word in SMALL if not word.startswith("num_minibatches")]
    asked = (*small, "num_minibatches=64", "fit=true", "fit_over=num_minibatches")
    done = ppo_lab(tmp_path, *asked, "vram_budget_gib=1", COLUMNS="80")
    assert done.returncode == 0, done.stderr
    what, command = done.stdout.splitlines()[-2:]
    assert what.startswith("num_minibatches=1: 0.")
    assert what.endswith("GiB of 1.00 GiB; nothing larger may be asked for")
    words = " ".join(small)
    assert command == f"python -m ppo_lab {words} vram_budget_gib=1 num_minibatches=1"
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((), "ppo_lab: vram_budget_gib=auto: fit=true needs a budget: a number of GiB"),
        (("sweep=memory", "vram_budget_gib=1"), "ppo_lab: fit=true: is for runs, and grids"),
        (("vram_budget_gib=1", "fit_over=lanes"), "ppo_lab: fit_over=lanes: must be one of"),
    ],
)
def test_a_fit_that_cannot_be_had_is_one_line(tmp_path, words, line):
    done = ppo_lab(tmp_path, *SMALL, "fit=true", "device=cpu", *words)
    assert done.returncode == 2
    assert done.stderr.splitlines()[0].startswith(line), done.stderr
    assert not list(tmp_path.iterdir())
