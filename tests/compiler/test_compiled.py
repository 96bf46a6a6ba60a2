"""Compiled programs do what the functions they are made from do, to rounding.

The C++ compiler takes half a minute for the programs of one kind of run, so one test asks it for
them. The others stop before it: they run the traced graphs, in which all that is ours has happened.
"""

import dataclasses

import pytest
import torch

from ppo_lab.compiler.compilation import MIN_COMPILED_STEPS, MIN_STACKED_STEPS, should_compile
from ppo_lab.compiler.compiled import CompiledFunction, CompilerError, CompileSpec, structure_of
from ppo_lab.compiler.decompositions import fast_tanh, narrow_baddbmm, narrow_bmm
from ppo_lab.compiler.iteration import advance_spec, compiled_advance
from ppo_lab.compiler.program_cache import ProgramCache, trace
from ppo_lab.config.choices import Compile
from ppo_lab.envs.base import Step
from ppo_lab.envs.running_stats import Normalizer
from ppo_lab.ppo.losses import ClipRange
from ppo_lab.ppo.rollout import lane_rows
from ppo_lab.training.trainer import Trainer
from ppo_lab.utils import torch_private
from ppo_lab.utils.errors import ConfigError
from tests.helpers.against_reference import check_lane_keys
from tests.helpers.compiled import (
    KINDS,
    SMALL,
    check_agreement,
    check_replacement,
    pair_of,
    weights_of,
)
from tests.helpers.trainers import config, largest_difference


@pytest.fixture
def traced_only(monkeypatch):
    """Have compiled functions be the traced graphs."""

    def load(cache, specs):
        return [traced(spec) for spec in specs]

    def traced(spec):
        graph = trace(spec)
        result = structure_of(spec.call(*spec.copies()))
        return CompiledFunction(lambda args: list(graph(*spec.state, *args)), result)

    monkeypatch.setattr(ProgramCache, "load", load)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where all tests of this file compile: what programs share takes half a minute."""
    return tmp_path_factory.mktemp("programs")


def test_a_rollout_and_twenty_gradient_steps_on_it_agree_when_compiled(monkeypatch, folder):
    monkeypatch.setenv("PPO_LAB_CACHE", str(folder))
    compiled, plain = pair_of("num_steps=4")  # which is unrolled, and takes long to compile
    check_agreement(compiled, plain)
    names = {path.name.partition("-")[0] for path in folder.glob("*.pt2")}
    assert names >= {"after_update", "rollout_values", "gradient_step", "steps"}
    check_replacement(compiled, plain)
    check_lane_keys(compiled, atol=1e-5, options=False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("traced_only")
def test_a_rollout_and_twenty_gradient_steps_on_it_agree_when_traced(kind):
    compiled, plain = pair_of(*KINDS[kind])
    check_agreement(compiled, plain)
    if kind == "every option":
        check_lane_keys(compiled, atol=1e-5, options=True)


def state_of(trainer):
    """Return the statistics of a normalised environment, in one vector."""
    return torch.cat([value.flatten() for value in trainer.env.state_dict().values()])


@pytest.mark.usefixtures("traced_only")
def test_statistics_agree_through_the_ends_of_episodes_when_traced():
    compiled, plain = pair_of(*KINDS["normalised gymnasium"])  # 16 steps, episodes of 7
    for trainer in (compiled, plain):
        rollout = trainer.collect()
        assert rollout.truncated.sum() == 2 * 4 * 2
    assert len(state_of(plain)) == 2 * (2 * 3 + 1) + 2 * 3
    difference = (state_of(compiled) / state_of(plain) - 1.0).abs()
    assert difference.max() < 1e-5  # of actions that differ by rounding


def test_a_normaliser_advances_as_before_when_compiled(folder):
    # 2 lanes of 4 environments with 3 numbers each, of which 1 in 5 ends in a step.
    generator = torch.Generator().manual_seed(0)
    gamma = torch.tensor([0.99, 0.5])
    pair = [Normalizer.begin(2, 4, 3, gamma=gamma, device=torch.device("cpu")) for _ in range(2)]
    spec = advance_spec(pair[0], torch.zeros(2, 4, 3), torch.zeros(2, 4))
    (function,) = ProgramCache({"kind": "test"}, folder).load([spec])
    plain = pair[1]
    for _ in range(20):
        observations = torch.randn(2, 4, 3, generator=generator) * 30 + 5
        rewards = torch.randn(2, 4, generator=generator)
        terminated, truncated = torch.rand(2, 2, 4, generator=generator) < 0.1
        step = Step(observations, rewards, rewards, terminated, truncated, observations + 1)
        mine = compiled_advance(function, step)
        its = plain.advance(observations, rewards, terminated | truncated)
        for a, b in zip(mine, its):
            assert largest_difference(a, b) < 1e-6
        for a, b in zip(pair[0].tensors, plain.tensors):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert float(plain.tensors[2].min()) == pytest.approx(20 * 4 + 1e-4)


@pytest.mark.parametrize("kind", ["shared trunk", "gymnasium", "normalised gymnasium"])
@pytest.mark.usefixtures("traced_only")
def test_a_lane_that_is_replaced_is_trained_as_a_fresh_run_when_traced(kind):
    check_replacement(*pair_of(*KINDS[kind]))


@pytest.mark.usefixtures("traced_only")
def test_an_option_that_only_a_new_lane_has_gets_its_own_program():
    compiled, plain = pair_of()
    for trainer in (compiled, plain):
        new = dataclasses.replace(trainer.configs[0], seed=5, value_epsilon=0.05)
        trainer.replace_lanes({0: new})
        trainer.iterate()
    assert largest_difference(weights_of(compiled), weights_of(plain)) < 1e-6


@pytest.mark.usefixtures("traced_only")
def test_a_program_of_a_new_lane_that_cannot_be_compiled_is_done_without(monkeypatch, caplog):
    compiled, plain = pair_of()
    for trainer in (compiled, plain):
        new = dataclasses.replace(trainer.configs[0], seed=5, value_epsilon=0.05)
        trainer.replace_lanes({0: new})

    def load(cache, specs):
        raise CompilerError("could not compile gradient_step: the disk is full")

    monkeypatch.setattr(ProgramCache, "load", load)
    rollout, _ = (trainer.collect() for trainer in (compiled, plain))
    with pytest.raises(CompilerError, match="the disk is full"):
        compiled.update(lane_rows(rollout, plain.advantages(rollout)))
    compilation = compiled._compilation
    compilation._config = dataclasses.replace(compilation._config, compile=Compile.auto)
    for trainer in (compiled, plain):
        trainer.iterate()
    assert not compilation.is_compiled
    assert caplog.text.count("the disk is full; the run goes on uncompiled") == 1
    assert largest_difference(weights_of(compiled), weights_of(plain)) < 1e-6


@pytest.mark.parametrize(
    ("lanes", "least"), [(1, MIN_COMPILED_STEPS), (2, MIN_STACKED_STEPS), (8, MIN_STACKED_STEPS)]
)
def test_auto_compiles_by_lanes_and_planned_steps_alone(lanes, least):
    for steps in (least - 1, least):
        assert should_compile(config("compile=auto"), lanes, steps) == (steps == least)
        assert not should_compile(config("compile=never"), lanes, steps)
        assert should_compile(config("compile=always"), lanes, steps)
        assert not should_compile(config("compile=auto", "memory=parked"), lanes, steps)


@pytest.mark.parametrize(
    "overrides",
    [
        ("memory=parked",),
        ("memory=offloaded_optimizer",),
        ("memory.num_micro_batches=2",),
        ("memory.rollout_place=host",),
        ("dtype=bfloat16",),
    ],
    ids=lambda overrides: overrides[0],
)
def test_always_is_refused_where_nothing_can_be_compiled(overrides):
    with pytest.raises(ConfigError, match=overrides[0].split("=")[0]):
        config("compile=always", *overrides)


def test_without_a_compiler_auto_goes_on_and_always_fails(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("PPO_LAB_CACHE", str(tmp_path))

    def no_compiler(*args, **kwargs):
        raise RuntimeError("no C++ compiler\nsecond line")

    monkeypatch.setattr(torch_private, "aot_compile", no_compiler)
    quick = config(*SMALL)
    trainer = Trainer([quick])
    trainer.iterate()
    with pytest.raises(CompilerError, match=r"RuntimeError: no C[+][+] compiler$"):
        trainer.iterate()
    auto = dataclasses.replace(quick, compile=Compile.auto)
    trainer = Trainer([auto], compiles=True)
    for _ in range(2):
        trainer.iterate()
    assert trainer.iteration == 2
    assert "the run goes on uncompiled" in caplog.text
    assert not list(tmp_path.glob("*.pt2"))


def test_a_program_refuses_tensors_unlike_its_examples(folder):
    def double(state, x):
        x.mul_(2.0)
        return x + 1.0

    cache = ProgramCache({"kind": "test"}, folder)
    # The first of four, as the only lane of a stack: its stride over lanes does not matter.
    spec = CompileSpec("double", double, (torch.ones(4, 2, 3)[:1],))
    (function,) = cache.load([spec])
    x = torch.arange(6.0).view(1, 2, 3)
    y = function(x)
    assert x.tolist() == [[[0.0, 2.0, 4.0], [6.0, 8.0, 10.0]]]
    assert y.tolist() == [[[1.0, 3.0, 5.0], [7.0, 9.0, 11.0]]]
    assert spec.examples[0].tolist() == [[[1.0] * 3] * 2]
    with pytest.raises(ValueError, match="argument 0 is"):
        cache.load([spec])[0](torch.ones(1, 3, 2).mT)
    assert cache.key(spec) != ProgramCache({"kind": "other"}, folder).key(spec)


def test_a_key_depends_on_which_options_are_there_and_on_what_is_state(tmp_path):
    # Two optional arguments of one layout: only their places tell them apart.
    cache, x = ProgramCache({"kind": "test"}, tmp_path), torch.ones(2)

    def spec(*args, state=()):
        return CompileSpec("f", lambda state, *args: x, args, state)

    specs = [spec(x, (x, None)), spec(x, (None, x)), spec(x, x), spec(x, state=[x])]
    assert len({cache.key(each) for each in specs}) == 4
    assert cache.key(specs[0]) == cache.key(spec(x.clone(), (x, None)))


def test_a_compiled_function_takes_and_returns_nested_tensors():
    a, b = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    spec = CompileSpec("f", lambda *all_args: None, (ClipRange(a, b), None, [a]), state=[b])
    assert spec.call_flat(b, a, b, a) == []
    seen = []

    def run(tensors):
        seen.extend(tensors)
        return [a + 1.0, b]

    structure = structure_of((ClipRange(a, b), None))
    clip, nothing = CompiledFunction(run, structure)(ClipRange(a, b), None, [b])
    assert [tensor.tolist() for tensor in seen] == [[1.0, 2.0], [3.0, 4.0], [3.0, 4.0]]
    assert isinstance(clip, ClipRange)
    assert clip.low.tolist() == [2.0, 3.0]
    assert clip.high is b
    assert nothing is None


def test_what_replaces_an_operation_in_a_program_computes_the_same():
    x = torch.linspace(-12.0, 12.0, 100_001)
    assert largest_difference(fast_tanh(x), torch.tanh(x.double()).float()) < 4e-7
    small = torch.logspace(-8, -1, 1000)
    assert ((fast_tanh(small) - small.tanh()).abs() / small).max() < 3e-7
    assert torch.equal(fast_tanh(x.double()), x.double().tanh())
    torch.manual_seed(1)  # sums of 256 products may differ by 1e-5 in their last bits
    for inner, columns in [(64, 2), (64, 1), (1, 64), (256, 8)]:
        a, b = torch.randn(3, 40, inner), torch.randn(3, inner, columns)
        assert torch.allclose(narrow_bmm(a, b), a @ b, atol=3e-5)
        bias = torch.randn(3, 1, columns)
        assert torch.allclose(narrow_baddbmm(bias, a, b), a @ b + bias, atol=3e-5)
    wide = torch.randn(3, 40, 64), torch.randn(3, 64, 64)
    assert narrow_bmm(*wide) is NotImplemented
    assert narrow_baddbmm(torch.randn(3, 1, 64), *wide) is NotImplemented
