"""Tables of text runs, from what runs leave in their folders."""

import json

from benchmarks.runs import find_runs
from benchmarks.texts import reward_table, solved_table, survivor_table
from ppo_lab.tracking.local import METRICS_FILE, SUMMARY_FILE


def write_run(folder, seed, lr, shares, exact=0.0):
    """Leave a run whose grammatical share was ``shares``, one an iteration."""
    folder.mkdir(parents=True)
    overrides = ["env=text", f"lr={lr}", f"seed={seed}"]
    (folder / SUMMARY_FILE).write_text(json.dumps({"overrides": overrides, "seed": seed}))
    rows = []
    for number, share in enumerate(shares, 1):
        metrics = {"grammatical_frac": share, "reward_mean": 0.1 * number, "distinct_frac": 1.0}
        metrics |= {"length_mean": 7.0, "kl": 0.5, "exact_frac": exact * number}
        axes = {"iteration": number, "global_step": 100 * number, "time/elapsed_s": 2.0 * number}
        rows.append(json.dumps(axes | {f"text/{name}": v for name, v in metrics.items()}))
    (folder / METRICS_FILE).write_text("\n".join(rows) + "\n")


def last_row(text):
    return [cell.strip() for cell in text.splitlines()[-1].strip("|").split("|")]


def test_a_setting_survives_with_the_seeds_that_still_write_sentences(tmp_path):
    write_run(tmp_path / "0", 1, 0.1, [1.0] * 3 + [0.6] * 5)
    write_run(tmp_path / "1", 2, 0.1, [1.0] * 8 + [0.0] * 5)
    write_run(tmp_path / "2", 1, 0.01, [0.9] * 8)
    (tmp_path / "3").mkdir()  # of a run that has not ended
    runs = find_runs([tmp_path])
    assert [(run.setting, run.seed) for run in runs] == [
        ("lr=0.01", 1),
        ("lr=0.1", 1),
        ("lr=0.1", 2),
    ]
    assert last_row(survivor_table(runs))[:3] == ["lr=0.1", "1 of 2", "0.60 0.00"]


def test_rewards_are_of_the_first_and_the_last_iterations(tmp_path):
    write_run(tmp_path / "0", 4, 0.1, [1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0])
    cells = last_row(reward_table(find_runs([tmp_path]), "grammatical_frac"))
    # Of ten rewards 0.1, 0.2, … the last five; of the shares too, and five in a row are 0.
    assert cells == ["seed 4", "0.10", "0.80", "0.80", "0.00", "1.00", "7.00", "0.50", "1,000"]


def test_a_goal_is_reached_when_the_mean_of_five_iterations_is(tmp_path):
    write_run(tmp_path / "0", 1, 0.1, [1.0] * 10, exact=0.1)  # 0.1, 0.2, …
    cells = last_row(solved_table(find_runs([tmp_path]), 0.5))
    assert cells == ["all alike", "0.10", "0.800", "700", "20"]
