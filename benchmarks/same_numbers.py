"""``python -m benchmarks.same_numbers OLD NEW``: compare the numbers of two checkouts bit for bit.

Runs each case (a plain run, a stack of eight lanes, a study) once per checkout, uncompiled and in
temporary folders. Compares bit for bit: every row of ``metrics.jsonl`` except measured keys, the
tensors of the saved policy, and the study's trials. Exits with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

__all__ = ["CASES", "differences", "main", "numbers_of", "run_case"]

_RUN = ["compile=never", "tracking=local", "network=tiny"]
CASES = {
    "run": [],
    "stack": [
        "epsilon=0.05,0.1,0.2,none", "seed=1,2",
        "hydra/launcher=stacked", "hydra.launcher.num_workers=1", "-m",
    ],
    "study": [
        "study=default", "study.name=same", "study.num_trials=8", "study.seed=1",
        "epsilon=interval(0.05,0.5)", "lr=tag(log,interval(1e-4,1e-2))", "study.{num_workers}=1",
    ],
}  # fmt: skip
"""Overrides of each case; ``{num_workers}`` is the key's name in the checkout."""
_MEASURED = (
    *("time/", "perf/", "charts/SPS", "memory/allocated", "memory/reserved", "memory/peak"),
    *("pcie/h2d_gb_per_s", "pcie/d2h_gb_per_s", "pcie/h2d_limit_frac", "pcie/d2h_limit_frac"),
)
_NUM_SHOWN = 5


def run_case(checkout: Path, case: str, folder: Path, overrides: Sequence[str] = ()) -> None:
    """Run ``case`` of ``checkout`` in ``folder``; ``SystemExit`` with its output if it fails."""
    path = os.pathsep.join(filter(None, [str(checkout), os.environ.get("PYTHONPATH")]))
    words = [word.format(num_workers=_num_workers_key(checkout)) for word in CASES[case]]
    done = subprocess.run(
        [sys.executable, "-m", "ppo_lab", *_RUN, *overrides, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{checkout}, {case}: exit status {done.returncode}\n{done.stdout}")


def _num_workers_key(checkout: Path) -> str:
    """Return the name of ``study.num_workers`` in ``checkout``, formerly ``num_slots``."""
    for path in ("ppo_lab/study_config.py", "ppo_lab/config/study.py"):
        if (checkout / path).is_file() and "    num_slots:" in (checkout / path).read_text():
            return "num_slots"
    return "num_workers"


def numbers_of(folder: Path) -> dict[str, object]:
    """Return every compared number below a case's ``folder``, by file and name.

    The names leave out the dated folders of runs and grids. Metrics come first: their first row
    that differs says more than a tensor at the end.
    """
    numbers: dict[str, object] = {}
    paths = folder.glob("outputs/*/*/**/*")
    for path in sorted(paths, key=lambda path: (path.name != "metrics.jsonl", path)):
        name = "/".join(path.relative_to(folder / "outputs").parts[2:])
        if path.name == "metrics.jsonl":
            read = _metrics(path)
        elif path.name == "model.safetensors":
            read = _tensors(path)
        elif path.name == "study.db":
            read = _trials(path)
        else:
            continue
        numbers |= {f"{name}, {key}": value for key, value in read}
    return numbers


def _metrics(path: Path) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(path.read_text().splitlines(), 1):
        for key, value in json.loads(line).items():
            if not key.startswith(_MEASURED):
                yield f"row {number}, {key}", json.dumps(value)  # 0.0 and -0.0 differ


def _tensors(path: Path) -> Iterator[tuple[str, object]]:
    import torch
    from safetensors.torch import load_file

    for key, tensor in load_file(path).items():
        as_bytes = tensor.flatten().contiguous().view(torch.uint8).numpy().tobytes()
        yield key, (tensor.dtype, tensor.shape, as_bytes)


def _trials(path: Path) -> Iterator[tuple[str, object]]:
    import optuna

    storage = optuna.storages.RDBStorage(f"sqlite:///{path}")
    for study in optuna.get_all_study_names(storage):
        for trial in optuna.load_study(study_name=study, storage=storage).trials:
            facts: dict[str, Any] = {
                "state": trial.state.name,
                "params": trial.params,
                "values": trial.values,
                "reports": trial.intermediate_values,
            }
            for key, value in facts.items():
                yield f"trial {trial.number}, {key}", repr(value)
    storage.engine.dispose()


def differences(old: dict[str, object], new: dict[str, object]) -> list[str]:
    """Return the names of the numbers that differ, or that one of the two lacks."""
    return [name for name in {**old, **new} if old.get(name) != new.get(name)]


def compare(case: str, checkouts: Sequence[Path], overrides: Sequence[str]) -> bool:
    """Run ``case`` in both checkouts, print the outcome, and return whether all numbers agree."""
    with tempfile.TemporaryDirectory() as name, ThreadPoolExecutor() as pool:
        folders = [Path(name, side) for side in ("old", "new")]
        for folder in folders:
            folder.mkdir()
        jobs = [
            pool.submit(run_case, checkout, case, folder, overrides)
            for checkout, folder in zip(checkouts, folders)
        ]
        for job in jobs:
            job.result()
        old, new = map(numbers_of, folders)
    different = differences(old, new)
    print(f"{case}: {len(old)} values compared, {len(different)} differ")
    for key in different[:_NUM_SHOWN]:
        print(f"  {key}")
    return bool(old) and not different


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkouts", nargs=2, type=Path, metavar="CHECKOUT")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--total-steps", type=int, default=16_384, help="of every run")
    options = parser.parse_args(argv)
    checkouts = [path.resolve() for path in options.checkouts]
    overrides = [f"total_steps={options.total_steps}"]
    agree = [compare(case, checkouts, overrides) for case in options.cases]
    if not all(agree):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
