"""The documents name keys, choices and metrics that exist."""

import ast
import dataclasses
import functools
import re
from pathlib import Path

import pytest

from hydra_plugins.ppo_lab_launcher import StackedLauncher
from ppo_lab.config.run import Config
from ppo_lab.config.study import StudyConfig
from ppo_lab.memory import STRATEGIES
from ppo_lab.training.trainer import Trainer
from ppo_lab.utils.paths import CONF_DIR, SWEEPS_DIR
from tests.helpers.trainers import config
from tests.rooms import MODULES

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
REFERENCE = (ROOT / "docs" / "reference.md").read_text() + (ROOT / "README.md").read_text()
GROUPS = {name: CONF_DIR / name for name in ("env", "network", "memory", "tracking")}
GROUPS["sweep"] = SWEEPS_DIR


def rows_of(header):
    """Return the cells of each row of the table of the documents that starts with ``header``."""
    _, _, rest = REFERENCE.partition(header + "\n")
    table = rest.partition("\n\n")[0].splitlines()[1:]
    assert table
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table]


def words_of(cell):
    """Return what stands in backticks, split at spaces."""
    return [word for code in re.findall("`([^`]+)`", cell) for word in code.split()]


def has_field(kinds, key):
    """Return whether the dotted ``key`` names a field, from one of the dataclasses ``kinds``."""
    name, _, rest = key.partition(".")
    for kind in kinds:
        if name in {field.name for field in dataclasses.fields(kind)}:
            return not rest or has_field(_kinds_of(name), rest)
    return False


def _kinds_of(name):
    example = getattr(config(), name)
    return [type(example), *(STRATEGIES.values() if name == "memory" else [])]


MEMORY_HEADER = "| `memory=` | actor and critic | Adam's state | over PCIe |"
CHOICES = {cells[0]: words_of(cells[1]) for cells in rows_of("| key | choices |")}


@pytest.mark.parametrize("group", GROUPS)
def test_the_reference_names_every_choice_of_a_group(group):
    if group == "memory":
        named = {words_of(cells[0])[0] for cells in rows_of(MEMORY_HEADER)}
    else:
        named = {word for word in CHOICES[f"`{group}=`"] if word.isidentifier()}
    # sweeps/wandb.yaml is for W&B's own command.
    files = {path.stem for path in GROUPS[group].glob("*.yaml")} - {"wandb" * (group == "sweep")}
    assert named == files


def test_the_reference_names_keys_that_exist():
    words = [word for key in ("numbers", "memory") for word in CHOICES[key]]
    words += [word for row in CHOICES.values() for word in row if "=" in word]
    keys = [word.partition("=")[0] for word in words if not word.startswith("sweep")]
    assert len(keys) > 35
    assert not [key for key in keys if not has_field([Config], key)]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_options_of_studies_and_launchers_that_exist(document):
    text = document.read_text()
    studies = {field.name for field in dataclasses.fields(StudyConfig)}
    assert set(re.findall(r"\bstudy\.(?!db\b|py\b)([a-z_]+)", text)) <= studies
    options = set(StackedLauncher.__init__.__annotations__) - {"return"}
    assert set(re.findall(r"hydra\.launcher\.(\w+)", text)) <= options


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_files_that_exist(document):
    text = document.read_text()
    links = set(re.findall(r"\]\(([^)#:]+)\)", text))
    missing = {link for link in links if not (document.parent / link).exists()}
    paths = re.findall(r"`((?:ppo_lab|conf|sweeps|tests|benchmarks|docs)/[\w./]*)`", text)
    assert not missing | {p for p in paths if "NAME" not in p and not (ROOT / p).exists()}


@functools.cache
def logged():
    """Return the names of the metrics of two iterations of runs on a CPU, on steps and on texts."""
    names = set()
    texts = ("network=gpt_tiny", "num_envs=8", "env.pretrain_steps=0", "memory=critic_free")
    for overrides in (
        ("total_steps=256", "num_envs=4", "num_steps=32", "target_kl=0.1", "eval_every=1"),
        ("env=text", *texts),
        ("env=arithmetic", *texts),
    ):
        trainer = Trainer(
            [config(*overrides)],
            lambda lane, record: names.update(record.metrics, record.histograms),
        )
        for _ in range(2):
            trainer.iterate()
    return names


@functools.cache
def written():
    """Return patterns of all names in the source that look like a metric's."""
    patterns = set()
    for path in MODULES.values():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = [
                    re.escape(part.value) if isinstance(part, ast.Constant) else r"\w+"
                    for part in node.values
                ]
                patterns.add("".join(parts))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                patterns.add(re.escape(node.value))
    groups = ("perf/", "memory/", "pcie/")
    return [re.compile(p) for p in patterns if p.startswith(groups)]


def metrics_of(cell):
    """Yield the alternatives that each name of a row of the table of metrics can stand for."""
    group, before = "", ""
    for word in words_of(cell):
        if word.startswith("_"):  # a suffix, to be appended or put in the last one's place
            yield [f"{before}{word}", f"{before.rpartition('_')[0]}{word}"]
            continue
        group = word.partition("/")[0] if "/" in word else group
        before = word if "/" in word else f"{group}/{word}"
        yield [before]


def test_the_reference_names_metrics_that_exist():
    rows = [cells[0] for cells in rows_of("| metric | meaning |")]
    names = [alternatives for cell in rows for alternatives in metrics_of(cell)]
    assert len(names) > 60

    def exists(name):
        if name in logged():
            return True
        # What only CUDA or a profiled run has must at least be written somewhere.
        name = re.sub(r"<\w+>", "any", name)
        return any(pattern.fullmatch(name) for pattern in written())

    assert not [a for a in names if not any(map(exists, a))]
