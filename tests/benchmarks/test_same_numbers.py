"""Two checkouts are compared to the bit, and a change of one formula is found."""

import shutil
from pathlib import Path

import pytest

from benchmarks import same_numbers
from benchmarks.same_numbers import differences, main, numbers_of, run_case

ROOT = Path(__file__).parents[2]
DOCTORED = """

_exact = value_loss


def value_loss(*args, **options):
    return 1.001 * _exact(*args, **options)
"""


@pytest.fixture(scope="module")
def doctored(tmp_path_factory):
    """A copy of this checkout whose value loss is a thousandth too large."""
    copy = tmp_path_factory.mktemp("doctored")
    ignored = shutil.ignore_patterns("__pycache__", "_shipped")
    for folder in ("ppo_lab", "hydra_plugins", "conf", "sweeps"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignored)
    with (copy / "ppo_lab" / "ppo" / "losses.py").open("a") as file:
        file.write(DOCTORED)
    return copy


@pytest.fixture(scope="module")
def undoctored(tmp_path_factory):
    """What this checkout leaves; a run of it that both tests compare with."""
    return tmp_path_factory.mktemp("undoctored")


def test_a_checkout_equals_itself(undoctored, monkeypatch, capsys):
    def run(checkout, case, folder, overrides):
        run_case(checkout, case, folder, overrides)
        if folder.name == "old":
            shutil.copytree(folder, undoctored, dirs_exist_ok=True)

    monkeypatch.setattr(same_numbers, "run_case", run)
    main([str(ROOT), str(ROOT), "--cases", "run", "--total-steps", "1024"])
    assert capsys.readouterr().out.endswith(" values compared, 0 differ\n")


def test_a_changed_formula_is_found_and_its_numbers_are_named(
    doctored, undoctored, monkeypatch, capsys
):
    def run(checkout, case, folder, overrides):
        if checkout == ROOT:
            shutil.copytree(undoctored, folder, dirs_exist_ok=True)
        else:
            run_case(checkout, case, folder, overrides)

    monkeypatch.setattr(same_numbers, "run_case", run)
    with pytest.raises(SystemExit) as end:
        main([str(ROOT), str(doctored), "--cases", "run", "--total-steps", "1024"])
    assert end.value.code == 1
    assert "  metrics.jsonl, row 1, losses/value_loss\n" in capsys.readouterr().out


def test_rows_are_compared_to_the_sign_of_zero_and_without_what_is_measured(tmp_path):
    for name, row in (
        ("a", '{"iteration": 1, "x": 0.0, "time/rollout_s": 1.0, "charts/SPS": 10}'),
        ("b", '{"iteration": 1, "x": -0.0, "time/rollout_s": 2.0}'),
    ):
        folder = tmp_path / name / "outputs" / "runs" / f"2026-01-01_{name}"
        folder.mkdir(parents=True)
        (folder / "metrics.jsonl").write_text(row + "\n")
    a, b = (numbers_of(tmp_path / name) for name in "ab")
    assert a["metrics.jsonl, row 1, iteration"] == "1"
    assert differences(a, b) == ["metrics.jsonl, row 1, x"]


def test_a_number_that_only_one_of_them_has_is_a_difference():
    assert differences({"a": 1, "b": 2}, {"b": 2, "c": 3}) == ["a", "c"]
