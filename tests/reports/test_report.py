"""Grouping of runs, statistics, figures, the command, and what a page says of each run."""

import json
import re

import matplotlib as mpl
import numpy as np
import optuna
import pytest

from ppo_lab import report
from ppo_lab.reports.curves import curve_figures, ratio_figures
from ppo_lab.reports.figure import Grid
from ppo_lab.reports.groups import make_sections
from ppo_lab.reports.loading import Series, find_runs
from ppo_lab.reports.page import plotly_script
from ppo_lab.reports.report import figures_of, report_place, write_page
from ppo_lab.reports.statistics import estimate
from ppo_lab.reports.studies import study_chapter
from ppo_lab.tracking import read_metrics
from tests.helpers.report_runs import write_run


def never(line):
    pytest.fail(line)


def sections_of(folder):
    return make_sections(find_runs([folder], never))


def labels_of(folder):
    return [[group.label for group in section.groups] for section in sections_of(folder)]


def test_a_default_and_the_same_value_typed_are_one_setting(tmp_path):
    write_run(tmp_path / "0", epsilon=0.2, seed=1)
    write_run(tmp_path / "1", epsilon=0.2, seed=2, overrides=("epsilon=0.2",))
    write_run(tmp_path / "2", epsilon=None, seed=1, overrides=("epsilon=none",))
    write_run(tmp_path / "3", epsilon=10.0, seed=1)
    assert labels_of(tmp_path) == [["epsilon 0.2", "epsilon 10", "epsilon none"]]
    assert [len(group.runs) for group in sections_of(tmp_path)[0].groups] == [2, 1, 1]


def test_only_finished_runs_enter_means_and_others_are_marked(tmp_path):
    write_run(tmp_path / "0", seed=1, end=100.0)
    write_run(tmp_path / "1", seed=2, end=10.0, status="interrupted")
    write_run(tmp_path / "2", seed=3, end=20.0, status=None)  # its process was killed
    (section,) = sections_of(tmp_path)
    (group,) = section.groups
    assert group.returns == [100.0]
    assert [run.status for run in group.runs] == ["finished", "interrupted", "died"]
    figure = next(curve_figures(section))
    mean = next(trace for trace in figure.data if trace.get("meta") == "mean")
    assert mean["name"] == "all runs (1 of 3 finished)"
    assert mean["y"][-1] == 100.0
    thin = [trace for trace in figure.data if "meta" not in trace]
    assert [trace["line"].get("dash") for trace in thin] == [None, "dot", "dot"]
    assert "seed 2: interrupted" in thin[1]["name"]


def test_environments_are_sections_of_their_own(tmp_path):
    write_run(tmp_path / "0", env="CartPole-v1")
    write_run(tmp_path / "1", env="Pendulum-v1", end=-200.0)
    assert [section.env for section in sections_of(tmp_path)] == ["CartPole-v1", "Pendulum-v1"]
    assert labels_of(tmp_path) == [["all runs"], ["all runs"]]


def test_runs_of_a_confirmation_are_apart_from_those_of_the_search(tmp_path):
    write_run(tmp_path / "trials" / "0000" / "seed_1", seed=1)
    write_run(tmp_path / "confirm" / "5_seeds-ab12" / "trials" / "0000" / "seed_9", seed=9)
    titles = [section.title for section in sections_of(tmp_path)]
    assert titles == ["CartPole-v1", "CartPole-v1: confirmation with fresh seeds"]


def test_a_network_is_named_as_it_was_typed_or_by_its_layers(tmp_path):
    write_run(tmp_path / "0", hidden=(64, 64), overrides=("network=tiny",))
    write_run(tmp_path / "1", hidden=(32, 16), overrides=("network.hidden=[32,16]",))
    assert labels_of(tmp_path) == [["network 32-16", "network tiny"]]


def test_an_iqm_leaves_out_a_quarter_on_each_side_and_one_seed_has_no_interval():
    values = np.array([[-100.0], [1.0], [3.0], [100.0]])
    assert estimate(values, "IQM").value == [2.0]
    assert estimate(values, "mean").value == [1.0]
    low, high = estimate(values, "mean")[1:]
    assert -100 <= low[0] < 1 < high[0] <= 100
    assert np.isnan(estimate(np.array([[5.0]]), "mean").low).all()


def test_a_bootstrap_interval_is_that_of_all_resamples():
    # Of two seeds there are three means: 0 and 10 with probability 1/4, 5 with 1/2.
    (value,), (low,), (high,) = estimate(np.array([[0.0], [10.0]]), "mean")
    assert (value, low, high) == (5.0, 0.0, 10.0)


def test_a_point_of_a_curve_is_the_mean_of_the_rows_around_it():
    grid = Grid(first=0.0, width=10.0, count=4)
    series = Series(np.array([0.0, 8.0, 12.0, 20.0]), np.array([1.0, 2.0, 4.0, 5.0]))
    # 8 and 12 are next to the point 10; the run ends at 20, so 30 is outside.
    assert grid.values(series).tolist()[:3] == [1.0, 3.0, 5.0]
    assert np.isnan(grid.values(series)[3])


def test_the_ratios_heat_map_has_shares_and_both_limits(tmp_path):
    write_run(tmp_path / "0", epsilon=0.2)
    (figure,) = ratio_figures(sections_of(tmp_path)[0])
    heat, above, below = figure.data
    shares = 10.0 ** np.array(heat["z"], dtype=float)
    # Bins 7 to 9 of 16 hold 40, 50 and 10 of 100 ratios; the first and last row are empty.
    assert np.nan_to_num(shares[:, 0]) == pytest.approx([0.0, 0.4, 0.5, 0.1, 0.0], abs=1e-4)
    assert (set(above["y"]), set(below["y"])) == ({1.2}, {0.8})


def test_memory_bus_and_front_are_drawn_where_they_were_measured(tmp_path):
    for number, (epsilon, gib) in enumerate([(0.1, 1.0), (0.2, 2.0)]):
        parts = {"weights": gib / 2, "optimizer": gib / 2, "logits": 0.0}
        memory = {"forecast": {"categories_gib": parts}, "ledger": {"categories_gib": parts}}
        memory["measured"] = {"allocated_gib": gib}
        more = {"memory": memory, "pcie": {"h2d_bytes": 1e6, "d2h_bytes": 2e6}}
        write_run(tmp_path / str(number), epsilon=epsilon, end=100.0 * gib, summary=more)
    (section,) = sections_of(tmp_path)
    figures = {figure.name.partition("-")[0]: figure for figure in figures_of(section)}
    assert set(figures) == {
        "returns", "clip", "kl", "entropy", "final", "ratio", "memory", "time", "pcie", "front",
    }  # fmt: skip
    weights = figures["memory"].data[0]
    kinds = ["forecast", "counted", "measured"]
    assert weights["y"] == [f"epsilon {eps}<br>{kind}" for eps in (0.1, 0.2) for kind in kinds]
    assert weights["x"] == [0.5, 0.5, None, 1.0, 1.0, None]
    assert {trace["name"] for trace in figures["time"].data} == {"rollout", "update"}


def test_a_page_escapes_texts_and_links_to_folders(tmp_path):
    evil = "</script><img src=x onerror=alert(1)>"
    write_run(tmp_path / "a b#c", summary={"reason": evil, "status": "failed"}, env=evil)
    write_page([tmp_path], tmp_path / "page.html", never)
    text = (tmp_path / "page.html").read_text()
    assert evil not in text
    assert "&lt;img src=x onerror=alert(1)&gt;" in text
    assert 'href="a%20b%23c"' in text
    assert len(text) < 6_000_000
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text)[1]
    assert {figure["name"][:7] for figure in json.loads(data)["figures"]} >= {"returns"}


def test_plotlys_script_cannot_end_early():
    assert "</script" not in plotly_script()


def test_a_page_that_cannot_be_made_costs_one_line(tmp_path, monkeypatch):
    write_run(tmp_path / "0")
    monkeypatch.chdir(tmp_path)
    assert report_place(tmp_path) == "report.html"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert report_place(tmp_path) == "none: the page needs plotly: pip install plotly"


def test_the_command_writes_a_page_and_its_pictures(tmp_path, capsys):
    write_run(tmp_path / "0", seed=1)
    write_run(tmp_path / "1", seed=2)
    assert report.main([str(tmp_path)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == str(tmp_path / "report.html")
    pictures = {path.name for path in (tmp_path / "report").iterdir()}
    assert {"returns-CartPole-v1.png", "final-CartPole-v1.png"} <= pictures
    assert len(pictures) == 7
    assert shown[1].endswith("7 PNG files")


@pytest.mark.parametrize(
    ("returns", "shown"), [((0.25, 0.75), "0.500 ± 0.250"), ((480, 500), "490.0 ± 10.0")]
)
def test_a_legend_has_digits_for_returns_of_any_size(returns, shown, tmp_path, monkeypatch):
    monkeypatch.setitem(mpl.rcParams, "svg.fonttype", "none")  # text stays text
    for seed, end in enumerate(returns):
        write_run(tmp_path / str(seed), seed=seed, end=end)
    assert report.main([str(tmp_path), "-o", str(tmp_path / "plot.svg")]) == 0
    text = (tmp_path / "plot.svg").read_text()
    assert f"all runs: {shown}" in text
    assert "CartPole-v1: 2 seeds per setting" in text


def test_metrics_are_read_in_even_steps_that_end_with_the_last(tmp_path):
    write_run(tmp_path / "0", num_rows=10)
    rows = read_metrics(tmp_path / "0" / "metrics.jsonl", most=4)
    assert [row["iteration"] for row in rows] == [1, 4, 7, 10]


def write_study(folder):
    """Write a study of 12 trials: one of them pruned, one diverged, with reports."""
    storage = optuna.storages.RDBStorage(f"sqlite:///{folder / 'study.db'}")
    study = optuna.create_study(storage=storage, study_name="s", direction="maximize")
    space = {
        "epsilon": optuna.distributions.FloatDistribution(0.01, 1.0, log=True),
        "network": optuna.distributions.CategoricalDistribution(["tiny", "small"]),
    }
    complete, pruned = optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED
    for number in range(12):
        status = {3: "pruned", 4: "diverged"}.get(number, "finished")
        is_finished = status == "finished"
        params = {"epsilon": 0.05 * (number + 1), "network": ["tiny", "small"][number % 2]}
        seeds = [{"seed": 1, "final_return": 10.0 * number, "env_steps": 400}]
        outcome = {"status": status, "reason": None if is_finished else f"why {number}"}
        outcome |= {"values": [10.0 * number] if is_finished else None, "seeds": seeds}
        study.add_trial(optuna.create_trial(
            params=params, distributions=space, value=10.0 * number if is_finished else None,
            state=complete if is_finished else pruned,
            intermediate_values={100: 1.0, 200: 2.0}, user_attrs={"outcome": outcome},
        ))  # fmt: skip
    storage.remove_session()
    storage.engine.dispose()
    (folder / "space.yaml").write_text("name: s\nobjectives: {final_return: maximize}\n")
    shares = {"final_return": {"epsilon": 0.75, "network": 0.25}}
    (folder / "importance.json").write_text(json.dumps(shares))


def test_a_study_shows_history_importance_slices_and_what_was_pruned(tmp_path):
    write_study(tmp_path)
    chapter = study_chapter(tmp_path, None, never)
    assert chapter.facts == "12 trials: 10 kept, 1 diverged, 1 pruned; maximize final_return"
    figures = {figure.name.removesuffix("-s"): figure for figure in chapter.figures}
    assert set(figures) == {
        "history", "importance-final_return", "slice-epsilon", "slice-network", "parallel",
        "intermediate",
    }  # fmt: skip
    best = figures["history"].data[-1]
    assert (best["x"][-1], best["y"][-1]) == (11, 110.0)
    assert figures["importance-final_return"].data[0]["x"] == [0.75, 0.25]
    assert figures["slice-epsilon"].x["type"] == "log"
    assert figures["slice-network"].x["type"] == "category"
    # The parameters' lows and highs, 0.05 to 0.6 on a log axis, are 0 and 1.
    lines = [trace["y"][0] for trace in figures["parallel"].data]
    assert (min(lines), max(lines)) == (0.0, 1.0)
    stopped = [t for t in figures["intermediate"].data if t["name"] == "pruned"]
    assert "why 3" in stopped[0]["text"][-1]
    assert stopped[0]["marker"]["symbol"] == "x"
    (table,) = chapter.tables
    reasons = [row[-1] for row in table.rows if row[-1]]
    assert reasons == ["why 3", "why 4"]


def test_a_study_that_cannot_be_read_costs_its_chapter(tmp_path):
    (tmp_path / "space.yaml").write_text("name: s\nobjectives: {final_return: maximize}\n")
    (tmp_path / "study.db").write_text("no database")
    told = []
    assert study_chapter(tmp_path, None, told.append) is None
    assert told[0].startswith(f"skipped the study in {tmp_path}: ")
