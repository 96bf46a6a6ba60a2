"""Summaries of trials that were stored: which are the best, and what tables show of them."""

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from ppo_lab.config.study import Aggregate
from ppo_lab.studies.definition.objective import parse_objectives
from ppo_lab.studies.results.trial_table import (
    best_trial,
    count_labels,
    finished_trials,
    rank_trials,
)

UNIT = FloatDistribution(0.0, 1.0)


def limited(study, value, violation):
    asked = study.ask({"x": UNIT})
    asked.set_constraint("vram", violation)
    asked.set_user_attr("outcome", {"status": "finished", "values": [value]})
    study.tell(asked, value)


@pytest.mark.parametrize(("direction", "order"), [("maximize", [2, 3, 0]), ("minimize", [0, 3, 2])])
def test_the_best_trials_are_complete_and_keep_the_limits(direction, order):
    study = optuna.create_study(direction=direction)
    limited(study, 1.0, -1.0)
    limited(study, 9.0 if direction == "maximize" else -9.0, 0.5)  # best, but over the limit
    limited(study, 3.0, 0.0)
    limited(study, 2.0, -1.0)
    pruned = {"outcome": {"status": "pruned"}}
    study.add_trial(create_trial(state=TrialState.PRUNED, params={"x": 0.5},
                                 distributions={"x": UNIT}, user_attrs=pruned))  # fmt: skip
    objectives = parse_objectives("final_return", direction, Aggregate.mean, 1)
    trials = finished_trials(study, objectives)
    assert [t.number for t in rank_trials(trials, objectives[0])] == order
    assert best_trial(trials, objectives).number == order[0]
    assert count_labels(trials) == {"kept": 3, "over limit": 1, "pruned": 1}
    assert trials[1].reason == "vram is broken"
