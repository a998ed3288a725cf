# ExpertMesh: `make serve` starts the demo mesh, `make help` lists the rest.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup serve test test-long test-random faults mutants lint types bench-quick clean

# The first Python that is new enough; `make setup PYTHON=...` chooses another.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	2>/dev/null && echo $$python && break; done)
EXTRA ?=
CONFIG ?=
ARGS ?=
ROUNDS ?= 5
BENCH ?= $(basename $(notdir $(shell grep -l run_benchmark benchmarks/*.py)))
LONG := long or nodes or chaos
SLOWEST := --durations 20 --durations-min 5
BIN := .venv/bin

help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14
	@echo
	@echo 'make serve CONFIG=mesh.yaml ARGS="--port 9000"; make test ARGS="-k config"'

setup: ## Make .venv with everything needed (again only when pyproject.toml changed)
	@test -n '$(PYTHON)' || { echo 'error: no Python 3.11 to 3.13 found: install one, or name it: make setup PYTHON=...' >&2; exit 2; }
	@$(PYTHON) scripts/setup_env.py $(if $(EXTRA),--extra $(EXTRA))

serve: setup ## Start a mesh and serve it until Ctrl-C (CONFIG=, ARGS=)
	@exec $(BIN)/expertmesh serve $(CONFIG) $(ARGS)

test: setup ## Run the tests (ARGS= for pytest)
	@exec $(BIN)/python -m pytest -m 'not ($(LONG))' $(SLOWEST) $(ARGS)

test-long: setup ## Run what takes longer: all models, several nodes, killed parts
	@exec $(BIN)/python -m pytest -m '$(LONG)' $(SLOWEST) $(ARGS)

test-random: setup ## Run the property tests with ROUNDS new seeds, which are printed
	@for round in $$(seq $(ROUNDS)); do \
		$(BIN)/python -m pytest -m hypothesis --seed $$(od -An -N3 -tu4 /dev/urandom) $(ARGS) \
		|| exit 1; done

faults: setup ## Break the code in known ways and see that tests notice (ARGS= words of names)
	@exec $(BIN)/python scripts/faults.py $(ARGS)

mutants: setup ## Mutation tests of one part, which go on where they stopped (ARGS="wire")
	@exec $(BIN)/python scripts/mutants.py $(ARGS)

lint: setup ## Check style, formatting and the import rules
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports

types: setup ## Check types
	@$(BIN)/mypy

bench-quick: setup ## Run the benchmarks with --quick (BENCH=, ARGS=)
	@failed=0; for name in $(BENCH); do echo "== $$name"; \
		$(BIN)/python -m benchmarks.$$name --quick $(ARGS) || failed=1; done; exit $$failed

clean: ## Remove .venv, caches and what builds left
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
