"""The study's book: the one place that writes trials into the storage.

A trial is claimed, reported and told while this parent holds it; every method may be called again
after the storage failed in the middle of it, and then carries on. Trials whose parent has died are
taken up under their own number.

What counts towards ``num_trials``: COMPLETE, PRUNED, and FAIL, which is told only after the last
retry (and of a baseline outside the space). Running trials are reserved, so parents together never
start more than are missing.
"""

from __future__ import annotations

import re
import secrets
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import optuna
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, Trial, TrialState

from ppo_lab.studies.definition.parameter import Choice
from ppo_lab.studies.definition.plan import ATTRIBUTE, Plan, refuse_change
from ppo_lab.studies.definition.pruning import SeedMeans, report
from ppo_lab.studies.definition.samplers import build_pruner, build_sampler
from ppo_lab.studies.store.database import Database
from ppo_lab.studies.store.lease import Lease, Owner
from ppo_lab.studies.store.outcome import Counts, TrialOutcome, outcome_of, to_outcome
from ppo_lab.utils.provenance import versions
from ppo_lab.workers.base import TrialReport
from ppo_lab.workers.result import Result, read_result

__all__ = ["Claim", "TrialStore", "run_id_stem"]

_STOP = "stop"
_TOKEN = "token"
"""Tells a study from an earlier one of its name, where runs of both are kept, as in W&B."""


@dataclass(frozen=True)
class Claim:
    """A trial that this parent holds, for one attempt."""

    trial: Trial
    role: str
    """baseline, start or search."""
    params: Mapping[str, Choice]
    attempt: int
    """Counted from 1, over all parents."""
    num_crashes: int
    reported_step: int
    """How far an earlier attempt had reported; it was not pruned there."""
    result: Result | None
    """What an earlier attempt had left before its parent died; the trial need not run again."""

    @property
    def number(self) -> int:
        """The trial's number in its study."""
        return self.trial.number


class TrialStore:
    """An opened study; see the module."""

    def __init__(self, plan: Plan, database: Database, lease: Lease) -> None:
        """Create the study or join it, under the lock of all parents.

        Raises:
            ConfigError: it was begun with another space, base run or objective.
        """
        self._plan, self._database, self._lease = plan, database, lease
        self._held: set[int] = set()
        with database.exclusive(plan.name):
            self.study = self._open()
            is_new = ATTRIBUTE not in self.study.user_attrs
            if not is_new:
                stored = self.study.user_attrs[ATTRIBUTE]
                allow = plan.study.allow_change
                refuse_change(plan.name, stored, plan.fingerprint, allow=allow)
            worker = str(self.study.user_attrs.get("num_parents", 0))
            trials = self.study.get_trials(deepcopy=False)
            self.study.sampler = build_sampler(
                plan.study.sampler,
                space=plan.space,
                seed=plan.study.seed,
                worker=worker,
                num_trials=len(trials),
            )
            self._enqueue_starts(trials)
            if is_new:
                self.study.set_user_attr("versions", versions())
                self.study.set_user_attr(_TOKEN, secrets.token_hex(2))
                self.study.set_user_attr(ATTRIBUTE, plan.fingerprint)  # last: it is whole now
            self.study.set_user_attr("num_parents", int(worker) + 1)
            self._run_id_stem = run_id_stem(self.study)
            if self.is_stopped:
                self.study.set_user_attr(_STOP, False)  # a start goes on

    def _open(self) -> Study:
        plan = self._plan
        study = optuna.create_study(
            storage=self._database.storage,
            study_name=plan.name,
            directions=[StudyDirection[o.direction.upper()] for o in plan.objectives],
            pruner=build_pruner(
                plan.study.pruner,
                confidence=plan.study.prune_confidence,
                total_steps=plan.config.total_steps,
            ),
            load_if_exists=True,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study.set_metric_names([objective.key for objective in plan.objectives])
        return study

    def _enqueue_starts(self, there: Sequence[FrozenTrial]) -> None:
        """Queue the starting points that are not queued yet; the baseline is the first trial."""
        roles = {trial.user_attrs.get("role") for trial in there}
        queued = [trial.system_attrs.get("fixed_params") for trial in there]
        for index, start in enumerate(self._plan.starts):
            role = "baseline" if index == 0 else "start"
            is_there = role in roles if index == 0 else start.params in queued
            if not is_there:
                attrs = {"role": role, "is_inside": start.is_inside}
                self.study.enqueue_trial(start.params, user_attrs=attrs)

    @property
    def is_stopped(self) -> bool:
        """Whether somebody stopped the study since it was last started."""
        return bool(self.study.user_attrs.get(_STOP))

    def stop(self) -> None:
        """Stop the study on every machine: no trial is claimed any more."""
        self.study.set_user_attr(_STOP, True)

    def counts(self) -> Counts:
        """Return how far the study is."""
        return self._count(self.study.get_trials(deepcopy=False))

    def _count(self, trials: Sequence[FrozenTrial]) -> Counts:
        states = [trial.state for trial in trials]
        # A baseline outside the space is told as FAIL, and is as good as complete.
        num_outside = sum(_has_finished_outside(trial) for trial in trials)
        return Counts(
            complete=states.count(TrialState.COMPLETE) + num_outside,
            pruned=states.count(TrialState.PRUNED),
            failed=states.count(TrialState.FAIL) - num_outside,
            running=states.count(TrialState.RUNNING),
            total=self._plan.study.num_trials,
        )

    def claim(self) -> Claim | None:
        """Return a trial for this parent to run: a dead parent's first, else a new one.

        None where as many are finished or running as the study wants.
        """
        with self._database.exclusive(self._plan.name):
            claim = self._claim()
        if claim is not None:
            # Not before the lock is given back: where that fails we claim again, and find it ours.
            self._held.add(claim.number)
        return claim

    def _claim(self) -> Claim | None:
        trials = self.study.get_trials(deepcopy=False)
        counts = self._count(trials)
        num_left = counts.total - counts.finished - counts.running
        free = [t for t in trials if t.state is TrialState.RUNNING and self._is_free(t)]
        for _ in range(min(-num_left, len(free))):
            self._queue(free.pop())
        if free:
            return self._take(Trial(self.study, free[0]._trial_id))
        return self._take(self.study.ask()) if num_left > 0 else None

    def _queue(self, trial: FrozenTrial) -> None:
        """Let a trial wait until the study wants more than it has.

        There is one too many where a total was lowered, or where the connection that held the lock
        was lost in the middle of a claim and another parent claimed meanwhile.
        """
        self._database.storage.set_trial_state_values(trial._trial_id, TrialState.WAITING)

    def _is_free(self, trial: FrozenTrial) -> bool:
        owner = Owner.read(trial.user_attrs.get("owner"))
        if owner is None:  # given back, or left by a claim that the storage broke off
            return True
        if owner.id == self._lease.owner.id:
            return trial.number not in self._held  # our own claim broke off
        return self._lease.is_dead(owner)

    def _take(self, trial: Trial) -> Claim:
        """Write this parent into ``trial``, then sample what it has no values for yet."""
        attrs = trial.user_attrs
        is_inside = attrs.get("is_inside", True)
        params = self._plan.space.sample(trial) if is_inside else {}
        folder = attrs.get("folder")
        result = read_result(Path(folder)) if folder else None
        # An attempt is counted before it begins: one that takes its machine down counts too.
        attempt = attrs.get("attempt", 0) + 1
        trial.set_user_attr("attempt", attempt)
        trial.set_user_attr("owner", self._lease.owner._asdict())
        return Claim(
            trial=trial,
            role=attrs.get("role", "search"),
            params=params,
            attempt=attempt,
            num_crashes=attrs.get("crashes", 0),
            reported_step=self._database.storage.get_trial(trial._trial_id).last_step or 0,
            result=result if result is not None and result.is_final else None,
        )

    def run_id(self, claim: Claim) -> str:
        """Return what trackers know the attempt by, but for its seed."""
        again = f"-a{claim.attempt}" if claim.attempt > 1 else ""
        return f"{self._run_id_stem}-{claim.number:04}{again}"

    def note_folder(self, claim: Claim, folder: Path) -> None:
        """Store where an attempt leaves its result, before it runs."""
        claim.trial.set_user_attr("folder", str(folder.resolve()))

    def is_ours(self, claim: Claim) -> bool:
        """Return whether this parent still holds the trial, by the storage's own word.

        One that was cut off for a whole lease has lost its trials to others; a lock on this
        machine is lost by death alone.
        """
        return not self._database.is_shared or self._is_held(self._stored(claim))

    def _stored(self, claim: Claim) -> FrozenTrial:
        return self._database.storage.get_trial(claim.trial._trial_id)

    def _is_held(self, trial: FrozenTrial) -> bool:
        owner = Owner.read(trial.user_attrs.get("owner"))
        return owner is not None and owner.id == self._lease.owner.id

    def report(self, claim: Claim, mark: TrialReport) -> tuple[SeedMeans | None, str | None]:
        """Store a mark; return what it came to and the reason to stop the trial, if any."""
        if len(self._plan.objectives) > 1:
            return None, None  # Optuna reports and prunes with one objective only
        if mark.step <= claim.reported_step:
            return None, None
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*already reported.*")  # a call broke off
            reported = report(claim.trial, mark.step, mark.returns)
        if reported is None or not claim.trial.should_prune():
            return reported, None
        return reported, f"behind other trials after {mark.step:,} steps"

    def finish(self, claim: Claim, result: Result) -> TrialOutcome | None:
        """Tell a trial's outcome, once; None if another parent has taken the trial over."""
        is_inside = claim.trial.user_attrs.get("is_inside", True)
        told = to_outcome(self._plan, result, is_inside=is_inside)
        with self._database.exclusive(self._plan.name):
            stored = self._stored(claim)
            if not self._is_held(stored):
                return None
            if stored.state.is_finished():  # by a call whose answer was lost
                return told
            trial = claim.trial
            for name, violation in told.violations.items():
                if name not in trial.constraints:
                    trial.set_constraint(name, violation)
            trial.set_user_attr("outcome", outcome_of(self._plan, told, result))
            values = told.values if told.state is TrialState.COMPLETE else None
            self.study.tell(trial, values, told.state)
        return told

    def count_crash(self, claim: Claim) -> int:
        """Count a crash against the trial and return how many it has had."""
        claim.trial.set_user_attr("crashes", claim.num_crashes + 1)
        return claim.num_crashes + 1

    def release(self, claim: Claim) -> None:
        """Give a trial back, to be run by whoever claims it next."""
        claim.trial.set_user_attr("owner", None)
        self._held.discard(claim.number)


def run_id_stem(study: Study) -> str:
    """Return how the ids of a study's runs begin: at most 37 characters that any tracker takes."""
    name = re.sub(r"[^A-Za-z0-9._=-]", "-", study.study_name)[:32].strip("-")
    return f"{name}-{study.user_attrs[_TOKEN]}"


def _has_finished_outside(trial: FrozenTrial) -> bool:
    outcome = trial.user_attrs.get("outcome", {})
    return trial.state is TrialState.FAIL and outcome.get("status") == "finished"
