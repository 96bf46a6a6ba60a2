"""What a stacked grid says of jobs that cannot share a stack."""

from ppo_lab.grids.stacked import _unstackable
from tests.helpers.studies import plan_of


def test_a_strategy_of_one_lane_is_told():
    assert _unstackable(plan_of().config) == ""
    assert _unstackable(plan_of("memory=offloaded_optimizer").config) == (
        "memory=offloaded_optimizer trains 1 lane: its jobs run one at a time in each worker"
    )
