# `make run` and `make test` work from a clean checkout: they create .venv and install what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROMPT ?= If the argument is
PYTEST_FLAGS ?= -n auto
PYTHONS_FLAGS ?=

.DEFAULT_GOAL := help
.PHONY: help run test test-pythons coverage lint fix bench clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/python:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), f"Python 3.10 or newer is needed, this is {sys.version}"'
	$(PYTHON) -m venv --clear $(VENV)

$(VENV)/.installed-runtime: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[runtime]'
	@touch $@

$(VENV)/.installed-dev: $(BIN)/python pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.installed-runtime

run: $(VENV)/.installed-runtime ## generate text with the embedded model, hooked by runtime.plugins.demo
	$(BIN)/python -m runtime generate "$(PROMPT)" --plugin runtime.plugins.demo

test: $(VENV)/.installed-dev ## run the test suite
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

test-pythons: ## run the tests of hookery on every CPython that the machine has
	$(PYTHON) tests/run_on_every_python.py $(PYTHONS_FLAGS)

coverage: $(VENV)/.installed-dev ## run the tests of hookery and fail under 95 % of its branches
	$(BIN)/python -m pytest $(PYTEST_FLAGS) tests/hookery --cov --cov-report=term-missing:skip-covered \
		--cov-fail-under=95 -k "not another_main_program and not multiprocessing_is_not_imported"

lint: $(VENV)/.installed-dev ## ruff (lint and format check) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --strict hookery

fix: $(VENV)/.installed-dev ## what lint can mend by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.installed-dev ## run the benchmarks
	$(BIN)/python benchmarks/hook_overhead.py
	$(BIN)/python benchmarks/apply.py
	$(BIN)/python benchmarks/child_processes.py
	$(BIN)/python benchmarks/generate.py
	$(BIN)/python benchmarks/kv_pools.py

clean: ## remove the environment and the caches
	rm -rf .coverage .coverage.* $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
