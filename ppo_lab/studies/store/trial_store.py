"""The trials of a study in their storage; the only module that writes them.

A parent process claims a trial, reports its returns and stores its outcome. Every method may be
called again after the storage failed halfway through it, and then completes. Trials of a dead
parent are reclaimed under their own numbers.

COMPLETE, PRUNED and FAIL count towards ``num_trials``. FAIL is stored only after the last retry, or
for defaults outside the space. Running trials are reserved, so that all parents together never
start more than are missing.
"""

from __future__ import annotations

import re
import secrets
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import optuna
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from ppo_lab.runner.result import Result, read_result
from ppo_lab.studies.definition.parameter import Choice
from ppo_lab.studies.definition.plan import ATTRIBUTE, Plan
from ppo_lab.studies.definition.pruning import report
from ppo_lab.studies.definition.samplers import build_pruner, build_sampler
from ppo_lab.studies.definition.storage_url import masked
from ppo_lab.studies.store.database import Database
from ppo_lab.studies.store.lease import Lease, Owner
from ppo_lab.studies.store.outcome import OUTCOME, Counts, to_outcome
from ppo_lab.utils.errors import ConfigError
from ppo_lab.utils.provenance import versions

__all__ = ["CLAIMED", "Claim", "TrialStore", "run_id_stem"]

CLAIMED = "claimed"
"""User attribute of a trial: when its last attempt began, by the clock of its machine."""
_REPEAT = "repeat"
"""User attribute of a trial: how many trials before it have the same parameters."""
_STOP = "stop"
_TOKEN = "token"
"""Distinguishes a study from an earlier one of its name, where both are kept, as in W&B."""


@dataclass(frozen=True)
class Claim:
    """A trial owned by this parent for one attempt."""

    trial: Trial
    role: str
    """baseline, start or search."""
    params: Mapping[str, Choice]
    attempt: int
    """Counted from 1, over all parents."""
    repeat: int
    """Number of earlier trials with the same parameters; this one runs with other seeds."""
    reported_step: int
    """Last step reported by an earlier attempt, which was not pruned there."""
    result: Result | None
    """Final result of an earlier attempt whose parent died; the trial need not run again."""

    @property
    def number(self) -> int:
        """The trial's number in its study."""
        return self.trial.number


class TrialStore:
    """An open study; see the module."""

    def __init__(self, plan: Plan, database: Database, lease: Lease) -> None:
        """Create or join the study of ``plan``; raise ``ConfigError`` if it is another or lost."""
        self.plan, self._database, self.lease = plan, database, lease
        self._held: set[int] = set()
        self._counted: dict[int, int] = {}  # attempts that a claim which failed halfway has counted
        with database.exclusive(plan.name):
            self._refuse_loss()
            self.study = self._open()
            if (stored := self.study.user_attrs.get(ATTRIBUTE)) is not None:
                plan.refuse_change(stored)
            worker = str(self.study.user_attrs.get("num_parents", 0))
            trials = self.study.get_trials(deepcopy=False)
            self.study.sampler = build_sampler(plan.study, plan.space, worker, len(trials))
            self._enqueue_starts(trials)
            if stored is None:
                self.study.set_user_attr("versions", versions())
                self.study.set_user_attr(_TOKEN, secrets.token_hex(8))
                self.study.set_user_attr(ATTRIBUTE, plan.fingerprint)  # last: marks it complete
            self.study.set_user_attr("num_parents", int(worker) + 1)
            self._run_id_stem = run_id_stem(self.study)
            if self.is_stopped():
                self.study.set_user_attr(_STOP, False)  # a new start resumes the study

    def _refuse_loss(self) -> None:
        """Raise ``ConfigError`` if the storage has lost this study, of which trials are here."""
        trials = self.plan.folder / "trials"
        if not trials.is_dir() or not any(trials.iterdir()):
            return
        if self.plan.name not in optuna.get_all_study_names(self._database.storage):
            allowed = (
                f"is not in its storage {masked(self.plan.url)}, but {trials} holds its trials; "
                "bring the storage back, or choose another study.name"
            )
            raise ConfigError("study.name", self.plan.name, allowed)

    def _open(self) -> Study:
        plan, total_steps = self.plan, self.plan.config.total_steps
        confidence = plan.study.prune_confidence
        study = optuna.create_study(
            storage=self._database.storage,
            study_name=plan.name,
            directions=[StudyDirection[o.direction.upper()] for o in plan.objectives],
            pruner=build_pruner(plan.study.pruner, confidence=confidence, total_steps=total_steps),
            load_if_exists=True,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names([objective.key for objective in plan.objectives])
        return study

    def _enqueue_starts(self, trials: Sequence[FrozenTrial]) -> None:
        """Enqueue the starting points that ``trials`` lack; the baseline is the first trial."""
        has_baseline = any(trial.user_attrs.get("role") == "baseline" for trial in trials)
        enqueued = [trial.system_attrs.get("fixed_params") for trial in trials]
        for index, start in enumerate(self.plan.starts):
            if not (start in enqueued if index else has_baseline):
                role = "start" if index else "baseline"
                attrs = {"role": role, "is_inside": start is not None}
                self.study.enqueue_trial(start or {}, user_attrs=attrs)

    def is_stopped(self) -> bool:
        """Return whether the study was stopped since it was last started."""
        return bool(self.study.user_attrs.get(_STOP))

    def stop(self) -> None:
        """Stop the study on every machine: no more trials are claimed."""
        self.study.set_user_attr(_STOP, True)

    def counts(self) -> Counts:
        """Return the study's progress."""
        return Counts.of(self.study.get_trials(deepcopy=False), self.plan.study.num_trials)

    def claim(self) -> Claim | None:
        """Claim a trial for this parent: a dead parent's first, else a new one.

        None if as many have finished or are running as the study wants.
        """
        with self._database.exclusive(self.plan.name):
            claim = self._claim()
        if claim is not None:
            # Only once the lock is released: if that fails, the next claim finds this trial ours.
            self._held.add(claim.number)
            del self._counted[claim.number]
        return claim

    def _claim(self) -> Claim | None:
        trials = self.study.get_trials(deepcopy=False)
        counts = Counts.of(trials, self.plan.study.num_trials)
        num_left = counts.total - counts.finished - counts.running
        free = [t for t in trials if t.state is TrialState.RUNNING and self._is_free(t)]
        for _ in range(min(-num_left, len(free))):
            # One too many: the total was lowered, or a claim lost its lock halfway and another
            # parent claimed meanwhile. Enqueue it until the study wants more.
            surplus = free.pop()._trial_id
            self._database.storage.set_trial_state_values(surplus, TrialState.WAITING)
        if free:
            return self._take(Trial(self.study, free[0]._trial_id), trials)
        return self._take(self.study.ask(), trials) if num_left > 0 else None

    def _is_free(self, trial: FrozenTrial) -> bool:
        owner = Owner.read(trial.user_attrs.get("owner"))
        if owner is None:  # released, or its claim failed halfway
            return True
        if owner.id == self.lease.owner.id:
            return trial.number not in self._held  # our own claim failed halfway
        return self.lease.is_dead(owner)

    def _take(self, trial: Trial, trials: Sequence[FrozenTrial]) -> Claim:
        """Sample the missing parameters of ``trial`` and make this parent its owner."""
        attrs = trial.user_attrs
        params = self.plan.space.sample(trial) if attrs.get("is_inside", True) else {}
        if (repeat := attrs.get(_REPEAT)) is None:
            earlier = [t.user_attrs.get(_REPEAT) for t in trials if _has_run(t, trial, params)]
            repeat = max((number or 0 for number in earlier), default=-1) + 1
            trial.set_user_attr(_REPEAT, repeat)
        folder = attrs.get("folder") if attrs.get("owner") else None  # released: it has no result
        result = read_result(Path(folder)) if folder else None
        # Counted before the attempt starts, which may take its machine down.
        attempt = attrs.get("attempt", 0)
        if attempt != self._counted.get(trial.number):
            attempt += 1
        self._counted[trial.number] = attempt
        trial.set_user_attr("attempt", attempt)
        trial.set_user_attr(CLAIMED, datetime.now().isoformat())
        trial.set_user_attr("owner", self.lease.owner._asdict())
        return Claim(
            trial=trial,
            role=attrs.get("role", "search"),
            params=params,
            attempt=attempt,
            repeat=repeat,
            reported_step=self._database.storage.get_trial(trial._trial_id).last_step or 0,
            result=result if result is not None and result.is_final else None,
        )

    def run_id(self, claim: Claim) -> str:
        """Return the trackers' id of the attempt, without its seed."""
        again = f"-a{claim.attempt}" if claim.attempt > 1 else ""
        return f"{self._run_id_stem}-{claim.number:04}{again}"

    def note_folder(self, claim: Claim, folder: Path) -> None:
        """Store where an attempt will write its result, before it runs."""
        claim.trial.set_user_attr("folder", str(folder.resolve()))

    def is_ours(self, claim: Claim) -> bool:
        """Return whether this parent still owns the trial.

        In a shared database another parent may reclaim it after a whole lease without contact; on
        one machine only death releases it.
        """
        return not self._database.is_shared or self._is_held(self._stored(claim))

    def _stored(self, claim: Claim) -> FrozenTrial:
        return self._database.storage.get_trial(claim.trial._trial_id)

    def _is_held(self, trial: FrozenTrial) -> bool:
        return (trial.user_attrs.get("owner") or {}).get("id") == self.lease.owner.id

    def report(self, claim: Claim, step: int, returns: Sequence[float | None]) -> str | None:
        """Report returns to Optuna; return the reason to prune the trial, None to continue."""
        if step <= claim.reported_step:
            return None
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*already reported.*")  # a retried call
            reported = report(claim.trial, step, returns)
        if not reported or not claim.trial.should_prune():
            return None
        return f"behind other trials after {step:,} steps"

    def finish(self, claim: Claim, result: Result) -> FrozenTrial | None:
        """Store a trial's result, once; return the trial, None if another parent reclaimed it."""
        trial = claim.trial
        is_inside = trial.user_attrs.get("is_inside", True)
        state, violations, attribute = to_outcome(self.plan, result, is_inside=is_inside)
        with self._database.exclusive(self.plan.name):
            stored = self._stored(claim)
            if not self._is_held(stored):
                return None
            if stored.state.is_finished():  # by a call whose answer was lost
                return stored
            for name, violation in violations.items():
                if name not in trial.constraints:
                    trial.set_constraint(name, violation)
            trial.set_user_attr(OUTCOME, attribute)
            values = attribute["values"] if state is TrialState.COMPLETE else None
            self.study.tell(trial, values, state)
            return self._stored(claim)

    def count_crash(self, claim: Claim) -> int:
        """Count a crash of the trial and return how many it has had."""
        num_crashes: int = claim.trial.user_attrs.get("crashes", 0) + 1
        claim.trial.set_user_attr("crashes", num_crashes)
        return num_crashes

    def release(self, claim: Claim) -> None:
        """Release a trial, to be run by the next parent that claims it."""
        claim.trial.set_user_attr("owner", None)
        self._held.discard(claim.number)


def _has_run(other: FrozenTrial, trial: Trial, params: Mapping[str, Choice]) -> bool:
    """Return whether ``other`` was claimed before ``trial`` with the same ``params``."""
    is_claimed = _REPEAT in other.user_attrs or other.state.is_finished()  # of an older version
    return is_claimed and other.number != trial.number and other.params == params


def run_id_stem(study: Study) -> str:
    """Return the start of the ids of a study's runs: at most 37 characters, valid everywhere."""
    name = re.sub(r"[^A-Za-z0-9._=-]", "-", study.study_name)[:32].strip("-")
    return f"{name}-{study.user_attrs[_TOKEN]}"
