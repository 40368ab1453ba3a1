# tilecache-daemon: `make help` lists what there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install run demo test lint format stubs wheel clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

install: $(INSTALLED) ## install into .venv

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

run: $(INSTALLED) ## start the daemon on its own PostgreSQL
	$(BIN)/tilecache serve

demo: $(INSTALLED) ## import real imagery, read it back, compare, draw the coverage
	$(BIN)/python -m tests.acceptance.demo

test: $(INSTALLED) ## run all tests on a real PostgreSQL ($$DB_URL, else an embedded one)
	$(BIN)/python -m pytest

.PHONY: test-csharp
test-csharp: $(INSTALLED) ## build the C# client and run its tests against a daemon
	@if command -v dotnet >/dev/null; then \
	  TILECACHE_BIN=$(abspath $(BIN))/tilecache dotnet test protos/csharp/TileCache.Client.sln; \
	else echo "skipped: there is no dotnet on PATH (it takes the .NET SDK 10)"; fi

lint: $(INSTALLED) ## ruff, types, import contract, proto checks
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python protos/generate.py --check

format: $(INSTALLED) ## mend style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

stubs: $(INSTALLED) ## write the Python stubs from the .proto
	$(BIN)/python protos/generate.py

wheel: $(INSTALLED) ## build the wheel into dist/
	$(BIN)/python -m build --wheel

clean: ## remove what was built and installed
	rm -rf $(VENV) build dist
