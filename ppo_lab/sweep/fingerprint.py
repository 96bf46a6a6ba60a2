"""Whether a study still is the one it was: what its trials have in common, kept beside them.

Trials compare only under one search space, one objective and one base run. Those are stored in the
study; how many trials there are, where they run and how they are sampled and pruned may change.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ppo_lab.config.run import Config
from ppo_lab.errors import ConfigError
from ppo_lab.files import plain
from ppo_lab.sweep.objective import Constraint, Objective
from ppo_lab.sweep.space import Space

__all__ = ["ATTRIBUTE", "differences", "fingerprint", "refuse_change"]

ATTRIBUTE = "fingerprint"
"""User attribute of the study."""

# Where and how a run is computed and shown, not what it computes.
_FREE = {
    "tracking", "name", "device", "num_threads", "forecast", "forecast_format", "profile",
    "vram_budget_gib", "vram_limit_gib",
}  # fmt: skip
_MOST_LINES = 12


def fingerprint(
    base: Config,
    space: Space,
    objectives: Sequence[Objective],
    constraints: Sequence[Constraint],
    *,
    num_seeds: int,
    marks: Sequence[int],
) -> dict[str, Any]:
    """Return what the trials of a study have in common, as JSON can hold it."""
    run = {key: value for key, value in base.as_dict().items() if key not in _FREE}
    parts: dict[str, Any] = plain(
        {
            "space": space.texts(),
            "when": {
                parameter.key: [
                    f"{condition.key}={','.join(map(str, condition.values))}"
                    for condition in parameter.conditions
                ]
                for parameter in space.parameters
                if parameter.conditions
            },
            "objectives": [f"{objective.direction} {objective.key}" for objective in objectives],
            "aggregate": objectives[0].aggregate,
            "constraints": [constraint.text for constraint in constraints],
            "num_seeds": num_seeds,
            "marks": list(marks),
            "run": run,
        }
    )
    parts = json.loads(json.dumps(parts, default=str))  # as a storage will give it back
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
    return {"sha256": digest[:16]} | parts


def differences(stored: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Return a line for each setting that changed: ``space.epsilon: old -> new``."""
    old, new = dict(_flat(stored)), dict(_flat(current))
    return [
        f"{key}: {old.get(key, '(none)')} -> {new.get(key, '(none)')}"
        for key in [*old, *(key for key in new if key not in old)]
        if key != "sha256" and old.get(key, "(none)") != new.get(key, "(none)")
    ]


def refuse_change(
    study: str, stored: Mapping[str, Any], current: Mapping[str, Any], *, allow: bool
) -> None:
    """Refuse to go on with a study whose trials would not compare with those it has.

    Raises:
        ConfigError: something changed, and ``allow`` is not set; the message lists what.
    """
    if allow or stored.get("sha256") == current["sha256"]:
        return
    lines = differences(stored, current)
    shown = "".join(f"\n  {line}" for line in lines[:_MOST_LINES])
    rest = f"\n  and {len(lines) - _MOST_LINES} more" if len(lines) > _MOST_LINES else ""
    allowed = (
        "began otherwise; go back to its settings, take another study.name, "
        f"or compare unlike trials with study.allow_change=true:{shown}{rest}"
    )
    raise ConfigError("study.name", study, allowed)


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value) if not isinstance(value, str) else value
