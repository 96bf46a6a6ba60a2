"""The closed form of each strategy's memory: against hand counts and against the dry run."""

import pytest

from ppo_lab.forecast.categories import Category
from ppo_lab.forecast.closed_form import footprint
from ppo_lab.forecast.dry_run import dry_run
from ppo_lab.forecast.layer_memory import largest_copy
from tests.helpers.trainers import config

WIDE = ("env=pendulum", "num_envs=512", "num_steps=32", "num_minibatches=4", "num_epochs=4")
# Every strategy meets every option and every network size of at least 1 MiB; options that matter
# where activations are most of the memory meet a large batch.
COVERING = [
    ("memory=co_resident", "network=small"),
    ("memory=co_resident", "network=medium", *WIDE),
    ("memory=co_resident", "network=large", "dtype=bfloat16", *WIDE),
    ("memory=co_resident", "network=huge", "memory.checkpoint_activations=true", *WIDE),
    ("memory=offloaded_optimizer", "network=large"),
    ("memory=offloaded_optimizer", "network=huge", "memory.num_micro_batches=4"),
    ("memory=offloaded_optimizer", "network=medium", "memory.rollout_place=host", *WIDE),
    ("memory=parked", "network=medium", "memory.checkpoint_activations=true", *WIDE),
    ("memory=parked", "network=large", "memory.num_micro_batches=4"),
    ("memory=parked", "network=huge", "dtype=bfloat16"),
    ("memory=shared_trunk", "network=medium", *WIDE),
    ("memory=shared_trunk", "network=large", "memory.rollout_place=host", "dtype=bfloat16"),
    ("memory=shared_trunk", "network=huge", "memory.num_micro_batches=4", *WIDE),
    ("memory=shared_trunk", "network=tiny", *WIDE),
]


def form_of(*overrides):
    chosen = config(*overrides)
    return footprint(chosen, chosen.check_env())


@pytest.mark.parametrize("overrides", COVERING, ids=" ".join)
def test_the_formula_is_within_2_percent_of_the_dry_run(overrides):
    peak = dry_run(config(*overrides)).ledger.peak
    form = form_of(*overrides)
    assert form.total == pytest.approx(peak.total, rel=0.02)
    assert form.peak.name.split(":")[0] == peak.phase


def test_a_parameter_costs_what_each_strategy_says():
    # Two networks of 4 -> 4096 x 4 and a head: 4096 * (5 + 3 * 4097) each, heads of 2 and of 1.
    trunk, heads = 4096 * (5 + 3 * 4097), 4097 * (2 + 1)
    both = 2 * trunk + heads
    step = {
        name: next(
            moment
            for moment in form_of("network=large", f"memory={name}").moments
            if moment.name == "update: optimizer step"
        )
        for name in ("co_resident", "offloaded_optimizer", "parked", "shared_trunk")
    }
    of_parameters = {Category.weights, Category.gradients, Category.optimizer}
    held = {
        name: sum(term.num_bytes for term in moment.terms if term.category in of_parameters)
        for name, moment in step.items()
    }
    assert held["co_resident"] == 16 * both
    assert held["offloaded_optimizer"] == 8 * both
    assert held["parked"] == 4 * both + 12 * (trunk + 4097 * 2)  # the actor is the larger
    assert held["shared_trunk"] == 16 * (trunk + heads)


def test_the_summary_says_it_in_words():
    summaries = {
        name: form_of(f"memory={name}").summary
        for name in ("co_resident", "offloaded_optimizer", "parked", "shared_trunk")
    }
    assert summaries == {
        "co_resident": "16 B per parameter",
        "offloaded_optimizer": "8 B per parameter",
        "parked": "4 B per parameter + 12 B per parameter of the network in training",
        "shared_trunk": "16 B per parameter of trunk and heads",
    }


def test_activations_of_a_deep_network_follow_its_layers():
    # 256 rows, 3 x 1024, float32. The critic's backward pass begins: 3 outputs of each network, the
    # gradient of the last one and of what went into it.
    form = form_of("network=medium", "num_steps=1024", "num_epochs=1", "num_minibatches=1")
    (largest,) = (m for m in form.moments if m.name.startswith("update: backward"))
    kept = {term.name: term.num_bytes for term in largest.terms}
    assert kept["kept for backward"] == 4 * 8192 * (3 + 3) * 1024
    assert kept["in use"] == 4 * 8192 * 2 * 1024


def test_a_checkpointed_network_keeps_the_ends_of_segments_and_the_last_one_whole():
    # 12 layers in segments of 4: the actor keeps the outputs of 4 and 8, and layers 9 to 12. Most
    # is held as the critic's layers 1 to 4 are computed again, and its later ones' gradients exist.
    form = form_of(
        "network=huge", "memory.checkpoint_activations=true", "num_envs=512", "num_minibatches=4"
    )
    (largest,) = (m for m in form.moments if m.name.startswith("update: backward"))
    kept = {term.name: term.num_bytes for term in largest.terms}
    assert largest.name == "update: backward, critic's layer 4"
    rows = 512 * 128 // 4
    assert kept["kept for backward"] == 4 * rows * 8192 * (6 + 4)


def test_only_tensors_that_share_a_bucket_are_copied():
    assert largest_copy([1 << 23]) == 0
    assert largest_copy([10, 20, 1 << 23, 30]) == 30
    assert largest_copy([1 << 21, 1 << 21, 1]) == 1 << 22


def test_micro_batches_divide_activations_and_nothing_else():
    whole, parts = (
        form_of(
            "network=large", "num_envs=256", "num_minibatches=4", f"memory.num_micro_batches={n}"
        )
        for n in (1, 4)
    )
    assert parts.by_category()[Category.activations] < whole.by_category()[Category.activations]
    assert parts.by_category()[Category.rollout] == whole.by_category()[Category.rollout]
