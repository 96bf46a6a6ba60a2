"""What runs trials: an executor has slots, takes tasks, and tells what becomes of them."""

from ppo_lab.workers.base import Event, Executor, Exited, Reported
from ppo_lab.workers.processes import ProcessExecutor

__all__ = ["Event", "Executor", "Exited", "ProcessExecutor", "Reported"]
