# `make` lists the targets.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup run test claims gpu check lint types fix coverage clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## /\1\t/' | expand -t 12

# torch first and alone: a plain resolve would fetch gigabytes of CUDA onto a machine without it.
# On a machine with an NVIDIA card, install the torch build you want into .venv before `make run`;
# 2.11 to 2.13 is kept.
TORCH_VERSION := $(BIN)/python -c 'from importlib.metadata import version; print(version("torch"))'

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(TORCH_VERSION) >/dev/null 2>&1 || \
		$(BIN)/pip install -qq --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	sed "s/^torch==.*/torch==$$($(TORCH_VERSION))/" constraints.txt > .venv/constraints.txt
	$(BIN)/pip install -qq --disable-pip-version-check -c .venv/constraints.txt -e '.[dev]'
	touch $@

setup: .venv/installed ## create .venv and install the tested versions

run: .venv/installed ## train the default run (CartPole) and show where the results are
	$(BIN)/python -m ppo_lab

test: .venv/installed ## run the whole test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile

claims: .venv/installed ## measure what is claimed of PPO (docs/ppo.md); resumes
	$(BIN)/python -m benchmarks.claims

gpu: .venv/installed ## GPU tests, memory, offloading, speed, under 9 minutes; a trial without CUDA
	PYTHON=$(BIN)/python .ci/gpu

lint: .venv/installed ## ruff: lint and format check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/installed ## mypy --strict
	$(BIN)/mypy

check: lint types test ## lint, types and tests: must pass before a change lands

fix: .venv/installed ## apply ruff's fixes and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

coverage: .venv/installed ## the test suite with coverage, at least 90 %
	$(BIN)/python -m pytest -n 2 --dist loadfile --cov --cov-report=term-missing:skip-covered

clean: ## remove .venv and caches; outputs/ stays
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .coverage
