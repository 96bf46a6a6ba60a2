"""What W&B gets beside the rows: the config, the policy, and a study's figures and report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.commands import ppo_lab
from tests.helpers.wandb_processes import clean_environment, inspect, of_kind, summary_of

STUDY = """
import optuna
from ppo_lab.studies.results.study_result import importances, read_study
from ppo_lab.studies.results.wandb import track_study
from ppo_lab.studies.store.outcome import OUTCOME
from ppo_lab.studies.store.trial_store import _TOKEN
from tests.helpers.studies import plan_of

plan = plan_of(
    "tracking=wandb", "tracking.mode=offline", "study.num_seeds=1",
    "lr=tag(log, interval(1e-4, 1e-2))",
)
plan.folder.mkdir(parents=True)
(plan.folder / "report.html").write_text("<p>the report</p>")
study = optuna.create_study(direction="maximize", study_name="quick")
study.set_user_attr(_TOKEN, "0123")
floats = optuna.distributions.FloatDistribution
space = {"epsilon": floats(0.0, 1.0), "lr": floats(1e-4, 1e-2, log=True)}
for number in range(12):  # the return is epsilon; lr follows no order
    params = {"epsilon": number / 12, "lr": 1e-4 * (1 + 7 * number % 12)}
    study.add_trial(optuna.create_trial(
        params=params, distributions=space, value=params["epsilon"],
        user_attrs={OUTCOME: {"status": "finished", "seeds": []}},
    ))
track_study(read_study(plan, study, importances(plan, study), None), study)
"""


def runs_of(folder: Path) -> list[tuple[Path, list[dict]]]:
    """Return the offline runs below ``folder`` with their records, oldest first."""
    paths = sorted((folder / "outputs" / "wandb").glob("offline-run-*"))
    return [(path, inspect(path)) for path in paths]


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("grid")
    words = ("network=tiny", "total_steps=1024", "num_epochs=1", "lr=0.001,0.002")
    options = ("tracking.mode=offline", "tracking.log_model=true")
    done = ppo_lab(folder, *words, *options, "-m", **clean_environment(folder / "home"))
    assert done.returncode == 0, done.stderr
    return folder


def test_a_runs_name_and_config_say_what_varies_and_how_large_the_network_is(grid: Path) -> None:
    names = []
    for _, records in runs_of(grid):
        (started,) = of_kind(records, "run")
        names.append(started["display_name"])
        assert started["config"]["update"]["network"]["name"] == "tiny"
        (later,) = of_kind(records, "config")
        sizes = later["update"]["num_parameters"]
        # Two trunks of 4*64 + 64 + 64*64 + 64 = 4480, and heads of 2*64 + 2 and 64 + 1.
        assert sizes == {"actor": 4610, "critic": 4545, "total": 9155}
    stem = "CartPole-v1__co_resident__eps0.2__s1"
    assert sorted(names) == [f"{stem}__lr=0.001", f"{stem}__lr=0.002"]


def test_the_policy_is_an_artifact_whose_files_lie_as_in_the_runs_folder(grid: Path) -> None:
    for _, records in runs_of(grid):
        (artifact,) = of_kind(records, "artifact")
        assert artifact["type"] == "model"
        files = {file["path"]: file for file in artifact["manifest"]["contents"]}
        policy = {"checkpoint/model.safetensors", "checkpoint/policy.json"}
        assert set(files) == policy | {".hydra/config.yaml"}  # which play reads
        for file in files.values():  # copied to where `wandb sync` finds them
            assert Path(file["local_path"]).stat().st_size == int(file["size"])


def test_a_study_has_table_importances_parallel_coordinates_and_its_report(tmp_path: Path) -> None:
    done = ppo_lab(tmp_path, program=STUDY, **clean_environment(tmp_path / "home"))
    assert done.returncode == 0, done.stderr
    ((folder, records),) = runs_of(tmp_path)
    logged = {key for row in of_kind(records, "history") for key in row["item"]}
    kinds = {key.rpartition(".")[0] for key in logged if key.endswith("._type")}
    assert kinds >= {"trials", "study/importance_final_return_table"}
    (table,) = folder.rglob("trials_*.table.json")
    trials = json.loads(table.read_text())
    assert len(trials["data"]) == 12
    assert {"epsilon", "lr", "final_return"} <= set(trials["columns"])
    (figure,) = folder.rglob("*.plotly.json")
    lines = [line for line in json.loads(figure.read_text())["data"] if "customdata" in line]
    assert len(lines) == 12
    assert [name for name, _ in lines[0]["customdata"]] == ["final_return", "epsilon", "lr"]
    (bars,) = folder.rglob("importance_*.table.json")
    shares = dict(json.loads(bars.read_text())["data"])
    assert shares["epsilon"] > shares["lr"]  # the return is epsilon
    (report,) = [a for a in of_kind(records, "artifact") if a["type"] == "report"]
    assert [file["path"] for file in report["manifest"]["contents"]] == ["report.html"]
    (best,) = [value for key, value in summary_of(records).items() if key == "best"]
    assert best["trial"] == 11
