"""The files that a study leaves in its folder, each written atomically at every end."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose
from omegaconf import DictConfig, OmegaConf

from ppo_lab.config.composer import without_hydra
from ppo_lab.grids.results import RESULTS_FILE, write_csv, write_results
from ppo_lab.runner.stored import stored_summary
from ppo_lab.studies.definition.parameter import Choice
from ppo_lab.studies.definition.plan import Plan
from ppo_lab.studies.definition.storage_url import masked
from ppo_lab.studies.results.confirmation import CONFIRM_FILE
from ppo_lab.studies.results.study_result import StudyResult
from ppo_lab.studies.results.trial_table import TrialSummary, trial_table
from ppo_lab.utils.json_files import atomic_write, to_jsonable, write_json
from ppo_lab.utils.paths import CONF_DIR

__all__ = ["BEST_FILE", "output_files", "run_command", "run_summaries", "space_of"]

BEST_FILE = "best.yaml"
_GROUPS = ("env", "network", "memory", "tracking")


def output_files(result: StudyResult) -> dict[str, Callable[[], None]]:
    """Return what writes each file, by name; results.csv has a row for each run.

    ``confirm.json`` is deleted unless there is a confirmation. ``best.yaml`` is the confirmation's
    winner, else the search's best trial: of several objectives, the best in the first.
    """
    plan, confirmed, space = result.plan, result.confirmed, result.plan.folder / "space.yaml"
    trials = trial_table(plan, result.trials)
    files: dict[str, Callable[[], None]] = {
        "trials.csv": lambda: write_csv(plan.folder / "trials.csv", trials),
        RESULTS_FILE: lambda: write_results(plan.folder, run_summaries(result)),
        "space.yaml": lambda: atomic_write(space, OmegaConf.to_yaml(space_of(plan)).encode()),
        "importance.json": lambda: write_json(plan.folder / "importance.json", result.importances),
        CONFIRM_FILE: lambda: (plan.folder / CONFIRM_FILE).unlink(missing_ok=True),
    }
    if confirmed is not None:
        files[CONFIRM_FILE] = lambda: confirmed.write(plan)
    if confirmed is not None and (winner := confirmed.winner) is not None:
        name = "The defaults" if winner is confirmed.default else f"Trial {winner.number}"
        over, best = f" over {len(confirmed.seeds)} fresh seeds", winner.fresh
    elif found := result.best or next(iter(result.front), None):
        name, num_seeds = f"Trial {found.number}", len(found.seeds)
        over, best = f" over {num_seeds} seeds" if num_seeds > 1 else "", found
    else:
        return files
    title = f"{name} {_scores(plan, best)}{over}."
    return files | {BEST_FILE: lambda: _write_best(plan, best.params, title)}


def run_summaries(result: StudyResult) -> list[dict[str, Any]]:
    """Return the summary of each seed of each trial that has finished, as far as it is here."""
    return [
        {"seed": seed.get("seed")} | stored_summary(Path(seed["folder"]))
        for trial in result.trials
        for seed in trial.seeds
        if seed.get("folder")
    ]


def _scores(plan: Plan, trial: TrialSummary) -> str:
    scores = [f"{objective.key} {score}" for objective, score in zip(plan.objectives, trial.scores)]
    return f"of study {plan.name}: {', '.join(scores)}"


def run_command(folder: Path) -> str:
    """Return the command that runs the best config in ``folder``."""
    return f"python -m ppo_lab --config-dir {shlex.quote(str(folder))} --config-name best"


def _write_best(plan: Plan, params: Mapping[str, Choice], title: str) -> None:
    """Write the config of ``params`` as ``best.yaml`` under the comment ``title``.

    Hydra runs it by ``--config-dir FOLDER --config-name best``. It holds the run's choice of each
    group and the values that differ from them, so that it is short and does not need the sweep that
    found it; options that are not ours are copied beside it. Hydra must be initialised.
    """
    job = plan.base.composer.job([*plan.base.fixed, *plan.space.overrides(params)])
    runtime, paths = job.hydra.runtime, job.hydra.overrides.hydra
    paths = [text for text in paths if text.startswith("hydra.searchpath")]
    groups = {group: runtime.choices[group] for group in _GROUPS if group in runtime.choices}
    chosen = [{f"override {group}": name} for group, name in groups.items()]
    plain = compose("config", [*paths, *(f"{group}={name}" for group, name in groups.items())])
    content = {"defaults": ["config", "_self_", *chosen]}
    content |= _differences(_values(without_hydra(job)), _values(plain))
    text = f"# {title}\n# {run_command(plan.folder)}\n{OmegaConf.to_yaml(content)}"
    _keep_own_options(groups, [s.path for s in runtime.config_sources if s.schema == "file"], plan)
    atomic_write(plan.folder / BEST_FILE, text.encode())


def _keep_own_options(groups: Mapping[str, str], sources: Sequence[str], plan: Plan) -> None:
    """Copy options of ``groups`` that are not ours into the study's folder, as Hydra finds them."""
    for group, name in groups.items():
        option = Path(group, f"{name}.yaml")
        source = next((path for path in sources if Path(path, option).is_file()), str(CONF_DIR))
        if source != str(CONF_DIR) and ".." not in option.parts and not option.is_absolute():
            (plan.folder / option).parent.mkdir(parents=True, exist_ok=True)
            atomic_write(plan.folder / option, Path(source, option).read_bytes())


def _values(run: DictConfig) -> dict[str, Any]:
    """Return the values of a composed run; those that are missing are ``???``."""
    values: Any = OmegaConf.to_container(run, resolve=True, enum_to_str=True)
    return {key: value for key, value in values.items() if key != "study"}


def _differences(ours: Mapping[str, Any], plain: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of ``ours`` that ``plain`` lacks or that differ from it."""
    found: dict[str, Any] = {}
    for key, value in ours.items():
        other = plain.get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            if below := _differences(value, other):
                found[key] = below
        elif value != other or key not in plain:
            found[key] = value
    return found


def space_of(plan: Plan) -> dict[str, Any]:
    """Return what was searched and how, as JSON types."""
    study = plan.study
    content = {
        "name": plan.name,
        "storage": masked(plan.url),
        "objectives": {objective.key: objective.direction for objective in plan.objectives},
        "aggregate": study.aggregate,
        "constraints": [constraint.text for constraint in plan.constraints],
        "num_trials": study.num_trials,
        "num_seeds": study.num_seeds,
        "space": plan.space.texts(),
        "conditions": study.conditions,
        "enqueue": study.enqueue,
        "sampler": study.sampler,
        "pruner": study.pruner,
        "overrides": list(plan.overrides),
        "fingerprint": plan.fingerprint["sha256"],
    }
    values: dict[str, Any] = to_jsonable(content)
    return values
