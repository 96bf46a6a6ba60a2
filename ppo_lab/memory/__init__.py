"""Memory strategies: where each class of tensor lives while PPO trains."""

from ppo_lab.memory.auto import AutoMemory
from ppo_lab.memory.base import MemoryStrategy, Workload
from ppo_lab.memory.co_resident import CoResident, SharedTrunk
from ppo_lab.memory.offloaded_optimizer import OffloadedOptimizer
from ppo_lab.memory.parked import Parked

__all__ = [
    "STRATEGIES",
    "AutoMemory",
    "CoResident",
    "MemoryStrategy",
    "OffloadedOptimizer",
    "Parked",
    "SharedTrunk",
    "Workload",
]

# A new strategy is one line here, one module and one YAML.
STRATEGIES: dict[str, type[MemoryStrategy]] = {
    strategy.name: strategy for strategy in (CoResident, OffloadedOptimizer, Parked, SharedTrunk)
}
