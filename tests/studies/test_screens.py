"""Known numbers of a study on everything that shows them, where less is better."""

import csv
import io
import json

import pytest
import yaml

from ppo_lab.studies.results import wandb
from ppo_lab.studies.scheduler import Ending
from ppo_lab.workers.base import Exited
from tests.helpers.engine import FormulaPool, ended
from tests.helpers.studies import plan_of

MINIMISED = (
    "study.direction=minimize", "study.num_trials=4", "study.num_seeds=2", "study.num_reports=1",
    "study/pruner=none", "study.enqueue=[{epsilon:0.1},{epsilon:0.3},{epsilon:0.4}]",
    "study.confirm={top:1,seeds:2}", "tracking.terminal=plain",
)  # fmt: skip


def loss(config, share):
    """Return 100 epsilon + seed; 0.4 does not fit."""
    return "out_of_memory" if config.epsilon == 0.4 else 100.0 * config.epsilon + config.seed


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The study's plan, what it printed, and what W&B was given."""
    folder, sent = tmp_path_factory.mktemp("screens"), []

    class Sink:
        def __init__(self, _):
            pass

        def start(self, info):
            sent.append(info)

        def finish(self, summary, exit_code):
            sent.append((summary, exit_code))

    with pytest.MonkeyPatch.context() as patch:
        out, err = io.StringIO(), io.StringIO()
        patch.chdir(folder)
        patch.setattr("sys.stdout", out)
        patch.setattr("sys.stderr", err)
        patch.setenv("COLUMNS", "120")
        patch.setattr(wandb, "SafeSink", Sink)
        plan = plan_of(*MINIMISED)
        assert ended(plan, FormulaPool(loss, max_running=1)) == (Ending.complete, 0)
        yield plan, out.getvalue(), err.getvalue(), sent


# Trials 0 to 3 have epsilon 0.2, 0.1, 0.3 and 0.4; seeds 1 and 2, so means of 21.5, 11.5 and 31.5.
# Seeds differ by 1: sd 0.707, standard error 0.5, t(0.975, 1 dof) = 12.706: half width 6.35.


def test_the_lines_name_the_best_so_far(shown):
    _, _, err, _ = shown
    search = err.partition("complete: 4/4 trials  3 kept  1 pruned")[0]
    ends = [line for line in search.splitlines() if " in 0:0" in line]
    assert [line.partition("  in ")[0] for line in ends] == [
        "#0 kept  21.5 ± 6.4 (95 %)  epsilon=0.2",
        "#1 kept  11.5 ± 6.4 (95 %)  epsilon=0.1",
        "#2 kept  31.5 ± 6.4 (95 %)  epsilon=0.3",
        "#3 OOM  epsilon=0.4",
    ]
    assert ["best so far" in line for line in ends] == [True, True, False, False]
    assert "[3/4 trials  3 kept" in ends[2]


def test_the_panel_shows_the_smallest_and_counts_by_outcome(shown):
    _, out, _, _ = shown
    assert "study quick: 4 of 4 trials" in out
    assert "search  11.5 ± 6.4 (95 %) final_return over 2 seeds, trial #1" in out
    assert "trials  3 kept, 1 OOM" in out


def test_the_gain_of_less_is_positive(shown):
    # Fresh seeds 3 and 4: 13.5, and 23.5 of the defaults. Variances of 0.5 over two seeds: standard
    # error 0.7071, 2 dof, t(0.975) = 4.3027: 10 ± 3.04.
    plan, out, _, _ = shown
    row = next(line for line in out.splitlines() if "[+" in line)
    assert row.strip("│ ").split() == [
        "#1", "11.5", "13.5", "±", "6.4", "(95", "%)", "+10", "[+6.96,", "+13]", "epsilon=0.1",
    ]  # fmt: skip
    assert "Winner: trial #1, better than the defaults at 95% confidence." in out
    confirmed = json.loads((plan.folder / "confirm.json").read_text())
    assert confirmed["seeds"] == [3, 4]
    assert confirmed["default"]["values"] == pytest.approx([23.0, 24.0])
    winner = confirmed["winner"]
    assert (winner["trial"], winner["found"], winner["value"]) == pytest.approx((1, 11.5, 13.5))
    assert winner["gain"] == pytest.approx({"mean": 10, "low": 6.9576, "high": 13.0424}, abs=1e-4)


def test_the_files_hold_the_same(shown):
    plan, *_ = shown
    with (plan.folder / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["outcome"] for row in rows] == ["kept", "kept", "kept", "OOM"]
    assert [row["final_return"] for row in rows] == ["21.5", "11.5", "31.5", ""]
    assert [row["num_seeds"] for row in rows] == ["2"] * 4
    assert float(rows[1]["final_return_half_width"]) == pytest.approx(6.353, abs=1e-3)
    text = (plan.folder / "best.yaml").read_text()
    title = "# Trial 1 of study quick: final_return 13.5 ± 6.4 (95 %) over 2 fresh seeds."
    assert text.startswith(f"{title}\n")
    assert yaml.safe_load(text)["epsilon"] == 0.1
    space = yaml.safe_load((plan.folder / "space.yaml").read_text())
    assert space["objectives"] == {"final_return": "minimize"}


def test_wandb_is_given_the_same(shown):
    *_, (info, (summary, exit_code)) = shown
    assert (info.name, info.job_type, exit_code) == ("quick", "study", 0)
    assert summary["trials_by_outcome"] == {"kept": 3, "OOM": 1}
    assert summary["best"] == {"trial": 1, "value": 11.5, "epsilon": 0.1}
    winner = summary["winner"]
    assert (winner["trial"], winner["value"], winner["epsilon"]) == (1, 13.5, 0.1)
    assert winner["gain"]["mean"] == pytest.approx(10.0)


def test_a_front_of_more_and_less_has_no_trial_that_another_beats(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")
    plan = plan_of(
        "epsilon=0.2", "num_envs=choice(4,8,16)", "study.objective=[final_return,env_steps_per_s]",
        "study.direction=[maximize,minimize]", "study.enqueue=[{num_envs:4},{num_envs:16}]",
        "study.num_trials=3", "study/pruner=none", "tracking.terminal=none",
    )  # fmt: skip
    returns = {4: 10.0, 8: 30.0, 16: 20.0}  # speed is 1,000 a copy, so 16 is beaten by 8
    ended(plan, FormulaPool(lambda config, _: returns[config.num_envs]))
    out = capsys.readouterr().out
    lines = [line.strip("│ ").split() for line in out.splitlines()]
    assert ["trial", "final_return", "↑", "env_steps_per_s", "↓", "parameters"] in lines
    front = [line for line in lines if line and line[0].startswith("#")]
    assert front == [["#0", "30.0", "8,000", "num_envs=8"], ["#1", "10.0", "4,000", "num_envs=4"]]
    title = (plan.folder / "best.yaml").read_text().splitlines()[0]
    assert title == "# Trial 0 of study quick: final_return 30.0, env_steps_per_s 8,000."


def test_a_result_counts_whatever_the_exit_status_of_its_process(tmp_path, monkeypatch):
    class ExitsBadly(FormulaPool):
        def wait(self, timeout_s):
            events = super().wait(timeout_s)
            return [Exited(e.number, 1) if isinstance(e, Exited) else e for e in events]

    monkeypatch.chdir(tmp_path)
    plan = plan_of("study.num_trials=2", "tracking.terminal=none")
    pool = ExitsBadly()
    assert ended(plan, pool) == (Ending.complete, 0)
    assert len(pool.tasks) == 2  # neither was run again
