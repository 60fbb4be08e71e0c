# `make demo` and `make test` do everything on a fresh machine: create .venv, install, run.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Idle OpenMP threads sleep instead of spinning: 2-3x faster for two threads on a shared machine.
export OMP_WAIT_POLICY ?= PASSIVE
export HF_HUB_OFFLINE ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
WORKERS ?= 2

.PHONY: help setup demo test test-full lint typecheck format clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F':.*## ' '{printf "  %-10s %s\n", $$1, $$2}'

setup: $(STAMP)  ## create .venv and install lowbit with its development tools

$(STAMP): pyproject.toml constraints.txt
	@echo "== setup: installing into $(VENV) at the versions of constraints.txt (some minutes, a few GB for torch)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $(STAMP)

demo: setup  ## train a teacher and low-bit students on real data, print the table
	@echo "== demo: a teacher on handwritten digits, made ternary without training (ptq) and by four methods, two seeds each"
	@WANDB_MODE=offline $(BIN)/lowbit sweep demo --jobs 2
	@$(BIN)/lowbit table demo

test: setup  ## fast tests: offline, CPU
	@echo "== test: pytest, offline, $(WORKERS) workers"
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

test-full: setup  ## every test, long ones included
	@echo "== test-full: pytest with the slow tests"
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile -m ""

lint: setup  ## ruff and the import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports

typecheck: setup  ## mypy --strict on src, benchmarks and scripts
	@$(BIN)/mypy

format: setup  ## rewrite the code in the project's format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

clean:  ## remove the virtual environment, caches and outputs
	rm -rf $(VENV) outputs dist build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
