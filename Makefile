# Two commands for a stranger: `make quickstart` runs the main job, `make test` runs the tests.
.DEFAULT_GOAL := help
.PHONY: help setup quickstart gate test test-slow gpu lint clean

# The first of these that is a working Python 3.11 to 3.13.
PYTHON ?= $(shell for p in python3.12 python3.13 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& echo $$p && break; done)
BIN := .venv/bin
STAMP := .venv/.ready
# For a machine that is lent without a network: where there is no .venv, a Python that has torch.
GPU_PYTHON = $(or $(wildcard $(BIN)/python),$(shell for p in python3 $(PYTHON); do \
	$$p -c 'import importlib.util as u; exit(not (u.find_spec("torch") and u.find_spec("peft")))' \
	2>/dev/null && echo $$p && break; done))
OUT ?= runs/gpu
# A test that hangs ends its worker, with the stacks of all threads.
HUNG := -o faulthandler_timeout=300 -o faulthandler_exit_on_timeout=true

help: ## List the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(STAMP) ## Make .venv with everything in it

$(STAMP): pyproject.toml constraints.txt tools/check_rendering.py
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 to 3.13 found; install one, or run make PYTHON=/path/to/python"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python tools/check_rendering.py
	touch $(STAMP)

quickstart: setup ## Adapt a small spatial VLA to a new simulated robot, from demonstrations to report
	$(BIN)/spatialvla-ft quickstart

gate: setup ## The quickstart, failing where the success rates are not as hoped for
	$(BIN)/spatialvla-ft quickstart --gate

test: setup ## Run the tests
	$(BIN)/python -m pytest -n 2 -m "not slow and not gpu and not network" $(HUNG)

test-slow: setup ## Run the tests that take minutes, e.g. 200 expert episodes of every task
	$(BIN)/python -m pytest -n 2 -m "slow"

gpu: ## Measure and test what needs a GPU, in nine minutes at most; OUT=runs/gpu
	@test -n "$(GPU_PYTHON)" || $(MAKE) setup
	@$(or $(GPU_PYTHON),$(BIN)/python) -m spatialvla_ft_cli bench gpu --out "$(OUT)/gpu.json"

lint: setup ## Check style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean: ## Remove .venv and what the quickstart made
	rm -rf .venv runs quickstart_report
