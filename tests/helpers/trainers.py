"""What several tests of the core share: configs as a user would get them, and recorded rollouts."""

from __future__ import annotations

import dataclasses
import functools

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra

from ppo_lab.config.compose import Composer, load, register
from ppo_lab.config.run import Config
from ppo_lab.ppo.adam import LaneOptimizer
from ppo_lab.ppo.diagnostics import UpdateDiagnostics
from ppo_lab.ppo.rollout import RolloutRows, lane_rows
from ppo_lab.training.scores import History
from ppo_lab.training.trainer import Trainer
from ppo_lab.utils.paths import CONF_DIR

CPU = torch.device("cpu")
# compile=auto would call the C++ compiler for a stack whose runs are planned long.
QUICK = ("network=tiny", "tracking=local", "device=cpu", "compile=never")
# 20 gradient steps per update: long enough for errors to add up, too short for chaos.
TWENTY_STEPS = ("num_epochs=5", "num_minibatches=4")
PENDULUM = ("env=pendulum", "num_steps=64", "num_envs=4", *TWENTY_STEPS)

register()
torch.set_num_threads(1)  # as the runner does for networks of this size


@functools.cache
def default_composer() -> Composer:
    """The composer of a command without words; it keeps what it has read."""
    with initialize_config_dir(config_dir=str(CONF_DIR), version_base="1.3"):
        command = compose("config", return_hydra_config=True)
        return Composer(GlobalHydra.instance().config_loader(), command)


@functools.cache
def config(*overrides: str) -> Config:
    """Return the config of ``python -m ppo_lab OVERRIDES``, on the CPU with a tiny network.

    Composed like a job of a grid: the files of each choice of groups are read once.
    """
    return load(default_composer().run([*QUICK, *overrides]))


def lanes_of(base: Config, *changes: dict) -> list[Config]:
    """Return ``base`` once per dictionary of changed keys, each checked anew."""
    return [dataclasses.replace(base, **change) for change in changes]


def train_to_end(trainer: Trainer) -> list[History]:
    """Train until every lane has ended, as the runner does, and return the lanes' histories."""
    while trainer.retire_ended():
        trainer.iterate()
    trainer.meters.close()
    return [trainer.history(lane) for lane in range(len(trainer.configs))]


def record_rows(trainer: Trainer) -> RolloutRows:
    """Collect one real rollout and return it as the update wants it."""
    rollout = trainer.collect()
    return lane_rows(rollout, trainer.advantages(rollout))


def lane_of(rows: RolloutRows, lane: int) -> RolloutRows:
    """Return one lane's rows as a stack of one."""
    return rows.map(lambda column: column[lane : lane + 1].clone())


def weights(trainer: Trainer, lane: int = 0) -> torch.Tensor:
    """Return a copy of all of a lane's parameters as one vector."""
    return torch.cat([p.detach()[lane].flatten().cpu() for p in trainer.model.parameters()])


def state_of(optimizer: LaneOptimizer) -> list[torch.Tensor]:
    """Return the tensors of an optimizer's state."""
    return [tensor for tensor, _ in optimizer.state_parts()]


def numbers_of(diagnostics: UpdateDiagnostics) -> list[torch.Tensor]:
    """Return the diagnostics that were taken, (L,) each."""
    return [value for value in diagnostics if value is not None]


def largest_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the largest absolute difference; NaN anywhere makes it NaN, which fails any bound."""
    return float((a - b).abs().max())


def spy_on(trainer: Trainer) -> GradientSpy:
    """Have ``trainer``'s update hand its gradients to the spy returned, and move nothing."""
    spy = trainer.optimizer = GradientSpy(trainer.model.parameters())
    return spy


def limit_steps(trainer: Trainer, num_steps: int) -> None:
    """Have an update end after its first ``num_steps`` gradient steps."""
    trainer.plan = dataclasses.replace(trainer.plan, num_dry_steps=num_steps)


class GradientSpy(LaneOptimizer):
    """Keeps what every step is given and moves nothing."""

    def __init__(self, parameters):
        self.parameters = list(parameters)
        self.gradients: list[list[torch.Tensor]] = []  # [step][parameter] (L, …)

    def step(self, *, lr, max_grad_norm, active=None):
        self.gradients.append([p.grad.clone() for p in self.parameters])
        return torch.zeros_like(lr)

    def state_parts(self):
        return iter(())
