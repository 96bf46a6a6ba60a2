"""Memory strategies: where each class of tensor is stored while PPO trains."""

from ppo_lab.memory.base import AutoMemory, MemoryStrategy, ParameterCost
from ppo_lab.memory.co_resident import CoResident, SharedTrunk
from ppo_lab.memory.critic_free import CriticFree
from ppo_lab.memory.offloaded_optimizer import OffloadedOptimizer
from ppo_lab.memory.parked import Parked

__all__ = [
    "STRATEGIES",
    "AutoMemory",
    "CoResident",
    "CriticFree",
    "MemoryStrategy",
    "OffloadedOptimizer",
    "ParameterCost",
    "Parked",
    "SharedTrunk",
]

# A new strategy is one line here, one module and one YAML.
STRATEGIES: dict[str, type[MemoryStrategy]] = {
    strategy.name: strategy
    for strategy in (CoResident, OffloadedOptimizer, Parked, SharedTrunk, CriticFree)
}
