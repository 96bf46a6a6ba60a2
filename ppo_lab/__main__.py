"""Entry point of ``python -m ppo_lab``; see ``ppo_lab.cli``."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from ppo_lab import __version__
from ppo_lab.utils.paths import SWEEPS_DIR

__all__ = ["main"]


def main() -> None:
    """Run the command line; the fork server of trials starts while this process imports torch."""
    words = sys.argv[1:]
    if shows_alone(words):
        return
    if expects_study(words) or "hydra/launcher=stacked" in words:
        from ppo_lab.utils.forkserver import start_server

        without_wandb = {"tracking=local", "tracking=csv", "tracking=tensorboard"}
        start_server(is_tracked=without_wandb.isdisjoint(words))

    from ppo_lab.cli import main as run

    run()


def shows_alone(words: Sequence[str]) -> bool:
    """Show the version or the help if that is all that ``words`` ask for; return whether so.

    Imports neither Hydra nor torch. ``--help`` with overrides or files shows what they compose.
    """
    from ppo_lab.config.help import help_text, help_topics
    from ppo_lab.utils.errors import ConfigError

    if [*words] == ["--version"]:
        print(f"ppo_lab {__version__}")  # noqa: T201 - the command's output
        return True
    if (topics := help_topics(words)) is None:
        return False
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # such as | head
    try:
        print(help_text(topics))  # noqa: T201 - the command's output
    except ConfigError as error:
        print(f"ppo_lab: {error.value}: {error.allowed}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    return True


def expects_study(words: Sequence[str]) -> bool:
    """Guess from ``words`` whether the command is a study, before Hydra and torch are imported.

    A wrong guess only costs time.
    """
    for word in words:
        key, _, value = word.partition("=")
        if key == "study":
            return value != "null"
        if key == "sweep" and (file := SWEEPS_DIR / f"{value}.yaml").is_file():
            return "override /study:" in file.read_text()
    return False


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:  # while the imports ran: nothing has begun
        sys.exit(130)
