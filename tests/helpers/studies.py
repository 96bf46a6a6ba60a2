"""A quick study as a person starts it, and what it left."""

from __future__ import annotations

import optuna

from ppo_lab.config.compose import check_jobs, register
from ppo_lab.runner.result import Result
from ppo_lab.studies.definition.plan import Plan, make_plan
from tests.helpers import commands

__all__ = ["QUICK", "left_by", "plan_of", "quick", "started", "trials_of"]

QUICK = (
    "study=default", "epsilon=interval(0.05,0.5)", "study.name=quick", "study.num_workers=2",
    "network=tiny", "total_steps=2048", "tracking=local",
)  # fmt: skip


def quick(*overrides: str) -> list[str]:
    """Return the quick study's overrides, each replaced by one of ``overrides`` for its key."""
    keys = {override.partition("=")[0] for override in overrides}
    return [*(text for text in QUICK if text.partition("=")[0] not in keys), *overrides]


def started(folder, *overrides, **environment):
    """Start the quick study in ``folder``; the process leads a session of its own."""
    folder.mkdir(exist_ok=True)
    environment = {"OMP_NUM_THREADS": "1", **environment}
    return commands.start(folder, *quick(*overrides), is_merged=True, **environment)


def left_by(process, timeout_s=240):
    """Wait for a study and return what it showed; it must have ended well."""
    shown, _ = process.communicate(timeout=timeout_s)
    assert process.returncode == 0, shown
    return shown


def trials_of(folder, storage=None, study="quick"):
    """Return a study's trials, of the quick study's own storage, and leave no connection open."""
    url = storage or f"sqlite:///{folder / 'outputs' / 'studies' / 'quick' / 'study.db'}"
    opened = optuna.storages.RDBStorage(str(url))
    try:
        return optuna.load_study(study_name=study, storage=opened).trials
    finally:
        opened.remove_session()
        opened.engine.dispose()


def plan_of(*overrides) -> Plan:
    """The quick study's plan, as the command line would make it."""
    plans = []
    register()
    check_jobs(
        quick(*overrides),
        is_multirun=False,
        config_dir=None,
        config_name=None,
        check_study=lambda command, loader: plans.append(make_plan(command, loader)),
    )
    (plan,) = plans
    return plan


def summary(seed, final_return, status="finished", reason=None, **measured):
    return {
        "seed": seed,
        "status": status,
        "reason": reason,
        "final_return": final_return,
        "folder": f"seed_{seed}",
        **measured,
    }


def finished(number, *returns):
    summaries = [summary(seed, value) for seed, value in enumerate(returns, 1)]
    return Result(number, "finished", None, summaries)
