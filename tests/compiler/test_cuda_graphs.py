"""CUDA graphs without a device: everything but the two calls that need one.

``HostCapturer`` stands in for CUDA: as there, Python runs once, memory is fixed, and results are
overwritten by the next replay.
"""

import dataclasses

import pytest
import torch

from ppo_lab.compiler.compilation import MIN_COMPILED_STEPS, should_compile
from ppo_lab.compiler.compiled import CompilerError, CompileSpec
from ppo_lab.compiler.cuda_graphs import Capture, capture_function
from ppo_lab.config.choices import Compile
from ppo_lab.config.run import Config
from ppo_lab.training.trainer import Trainer
from ppo_lab.utils.errors import ConfigError
from tests.helpers.compiled import (
    KINDS,
    SMALL,
    check_agreement,
    check_replacement,
    pair_of,
    weights_of,
)
from tests.helpers.host_capturer import HostCapturer
from tests.helpers.trainers import config, lanes_of, largest_difference


class CountingCapturer(HostCapturer):
    """Counts captures and replays."""

    def __init__(self):
        self.num_captured = self.num_replays = 0

    def capture(self, function, tensors):
        self.num_captured += 1
        capture = super().capture(function, tensors)

        def replay():
            self.num_replays += 1
            capture.replay()

        return Capture(replay, capture.outputs)


class GraphTrainer(Trainer):
    """A trainer on the CPU that captures graphs."""

    def __init__(self, configs):
        super().__init__(configs)
        self.capturer = self._compilation.capturer = CountingCapturer()


def pair(*overrides):
    return pair_of(*overrides, kind=GraphTrainer)


@pytest.mark.parametrize("kind", KINDS)
def test_a_rollout_and_twenty_gradient_steps_on_it_agree_when_captured(kind):
    check_agreement(*pair(*KINDS[kind]))


@pytest.mark.parametrize("kind", ["cartpole", "normalised gymnasium"])
def test_a_lane_that_is_replaced_is_trained_as_a_fresh_run_when_captured(kind):
    check_replacement(*pair(*KINDS[kind]))


def test_bfloat16_is_captured_as_it_runs(monkeypatch):
    # Only what the CPU's compiler cannot do is in the way.
    monkeypatch.setattr(Config, "compile_obstacle", None)
    graphed, plain = pair("dtype=bfloat16")
    for trainer in (graphed, plain):
        trainer.iterate()
    assert largest_difference(weights_of(graphed), weights_of(plain)) < 1e-6


def test_an_iteration_is_four_replays_whatever_its_steps():
    graphed, _ = pair()
    assert graphed.capturer.num_captured == 4
    for num_replays in (4, 8):
        graphed.iterate()
        assert graphed.capturer.num_replays == num_replays
    assert graphed.capturer.num_captured == 4


def test_a_rollout_longer_than_its_starts_is_captured_in_blocks(monkeypatch):
    monkeypatch.setattr("ppo_lab.envs.native._MAX_BLOCK_STEPS", 4)
    graphed, plain = pair()  # of 16 steps
    check_agreement(graphed, plain)
    before = graphed.capturer.num_replays
    graphed.collect()
    assert graphed.capturer.num_replays - before == 4 + 1  # and the values


def state_of(trainer):
    """Return copies of all that an iteration changes."""
    env = trainer.env
    tensors = [*trainer.optimizer.state_tensors, env._state, env._deadlines]
    return [tensor.clone() for tensor in tensors] + [trainer.collector._observations.clone()]


def test_capturing_changes_no_state():
    base = config(*SMALL)
    trainer = GraphTrainer(lanes_of(base, {"seed": 1}, {"seed": 2}))
    trainer.iterate()
    before = state_of(trainer)
    clock = trainer.env._clock
    trainer._compilation.compile(trainer._noise())
    assert trainer._compilation.is_compiled
    assert trainer.env._clock == clock
    for mine, its in zip(state_of(trainer), before, strict=True):
        assert torch.equal(mine, its)


def test_what_an_iteration_returned_is_not_overwritten_by_the_next():
    graphed, _ = pair()
    rollout = graphed.collect()
    kept = [tensor.clone() for tensor in rollout if tensor is not None]
    observations = graphed.collector._observations
    next_observations = observations.clone()
    graphed.iterate()
    for mine, its in zip(rollout, kept):
        assert torch.equal(mine, its)
    assert torch.equal(observations, next_observations)
    assert not torch.equal(graphed.collector._observations, next_observations)


def test_an_option_that_only_a_new_lane_has_is_captured_again():
    graphed, plain = pair()
    for trainer in (graphed, plain):
        new = dataclasses.replace(trainer.configs[0], seed=5, value_epsilon=0.05)
        trainer.replace_lanes({0: new})
        trainer.iterate()
    assert graphed.capturer.num_captured == 5
    assert largest_difference(weights_of(graphed), weights_of(plain)) < 1e-6


def compiled(spec):
    return capture_function(spec, HostCapturer())


def count_up(state, step, log):
    """Add ``step`` to the state, copy it to ``log``, and return twice the new total."""
    (total,) = state
    total.add_(step)
    log.copy_(total)
    return total * 2.0


def test_a_program_changes_its_state_in_place_and_others_by_copies():
    total, step, log = torch.zeros(2), torch.ones(2), torch.full((2,), -1.0)
    program = compiled(CompileSpec("count", count_up, (step, log), state=[total]))
    assert total.tolist() == [0.0, 0.0]  # neither the warm-up nor the capture counts
    assert step.tolist() == [1.0, 1.0]
    assert log.tolist() == [-1.0, -1.0]
    first_log, second_log = torch.zeros(2), torch.zeros(2)
    first = program(torch.tensor([1.0, 10.0]), first_log)
    second = program(torch.tensor([2.0, 20.0]), second_log)
    assert total.tolist() == second_log.tolist() == [3.0, 30.0]
    assert first_log.tolist() == [1.0, 10.0]
    assert first.tolist() == [2.0, 20.0]  # not overwritten
    assert second.tolist() == [6.0, 60.0]
    assert step.tolist() == [1.0, 1.0]


def test_a_program_takes_any_strides_and_refuses_other_shapes_and_types():
    weight = torch.tensor(2.0)
    program = compiled(
        CompileSpec("double", lambda state, x: x * state[0], (torch.ones(2, 3),), state=[weight])
    )
    y = program(torch.arange(6.0).view(3, 2).mT)
    assert y.tolist() == [[0.0, 4.0, 8.0], [2.0, 6.0, 10.0]]
    with pytest.raises(ValueError, match=r"argument 0 is \(3, 2\)"):
        program(torch.ones(3, 2))
    with pytest.raises(ValueError, match=r"argument 0 is .* of torch.int64"):
        program(torch.ones(2, 3, dtype=torch.int64))
    weight.fill_(3.0)  # in place, as lanes are replaced
    y = program(torch.ones(2, 3))
    assert y.tolist() == [[3.0] * 3] * 2


def test_what_reads_a_number_back_cannot_be_captured():
    spec = CompileSpec("read", lambda _, x: x * float(x.sum()), (torch.ones(2),))
    with pytest.raises(CompilerError, match="could not capture read: RuntimeError: "):
        compiled(spec)


class FullCapturer(HostCapturer):
    """Runs out of memory, and fails once more when the capture is ended, as CUDA does."""

    def capture(self, function, tensors):
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        finally:
            raise RuntimeError("operation failed due to a previous error during capture")


def test_a_full_memory_while_capturing_stays_one():
    spec = CompileSpec("double", lambda _, x: x * 2.0, (torch.ones(2),))
    with pytest.raises(torch.OutOfMemoryError, match="CUDA out of memory"):
        capture_function(spec, FullCapturer())


@pytest.mark.usefixtures("fake_cuda")
@pytest.mark.parametrize("device", ["cuda", "auto"])
def test_on_cuda_auto_never_compiles_and_always_may_also_with_bfloat16(device):
    auto = dataclasses.replace(config("compile=auto"), device=device)
    assert not should_compile(auto, 1, MIN_COMPILED_STEPS)
    with_bfloat16 = dataclasses.replace(config("dtype=bfloat16"), device=device)
    always = dataclasses.replace(with_bfloat16, compile=Compile.always)
    assert should_compile(always, 1, 1)
    with pytest.raises(ConfigError, match="cannot be had with memory=parked"):
        dataclasses.replace(always, memory=config("memory=parked").memory)
