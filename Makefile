# tilecache-daemon: `make help` lists what there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# Tests wait for processes more than they compute. Files are run in their order: by default those with
# few tests come last, which are the longest, and a worker that has none left waits for the other.
WORKERS ?= 3

.DEFAULT_GOAL := help
.PHONY: help install run demo test lint format stubs wheel clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

install: $(INSTALLED) ## install into .venv

$(INSTALLED): pyproject.toml protos/python/pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable protos/python --editable '.[dev]'
	@touch $@

run: $(INSTALLED) ## start the daemon on its own PostgreSQL
	$(BIN)/tilecache serve

demo: $(INSTALLED) ## import real imagery, read it back, compare, draw the coverage
	$(BIN)/python -m tests.acceptance.demo

test: $(INSTALLED) ## run all tests on a real PostgreSQL ($$DB_URL, else an embedded one)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: test-random test-matrix
test-random: $(INSTALLED) ## run TESTS (all) in random order; SEED repeats one
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --random-order \
	  $(if $(SEED),--random-order-seed=$(SEED)) $(TESTS)

test-matrix: $(INSTALLED) ## run TESTS (all) on each version that docs/install.md names
	$(BIN)/python -m tests.matrix.run --workers $(WORKERS) $(addprefix --row=,$(ROWS)) $(TESTS)

.PHONY: bench
bench: $(INSTALLED) ## measure beside the peers: a table, build/bench.json, build/bench.png
	$(BIN)/python -m tests.benchmarks.bench

.PHONY: bench-scale
bench-scale: $(INSTALLED) ## measure what grows with the number of tiles (TILES=10000000): build/bench-scale.json
	$(BIN)/python -m tests.benchmarks.scale $(TILES)

.PHONY: soak
soak: $(INSTALLED) ## the faults, the bad bytes and the random histories for about an hour and a half
	TILECACHE_SOAK=1 TILECACHE_SOAK_S=1200 TILECACHE_FUZZ_EXAMPLES=2000 \
	  $(BIN)/python -m pytest tests/faults tests/fuzz tests/histories

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
	$(BIN)/vermin --quiet --violations --target=3.8- --exclude-regex '\.pyi$$' protos/python/tilecache
	$(BIN)/python protos/generate.py --check
	@$(MAKE) --no-print-directory contract

NODE := build/node
BUF := $(NODE)/node_modules/@bufbuild/buf-linux-*/bin/buf

.PHONY: contract contract-image
contract: ## buf: the proto rules, and nothing broken that was released
	@if command -v npm >/dev/null; then $(MAKE) --silent $(NODE)/package-lock.json \
	  && $(BUF) lint && $(BUF) breaking --against protos/contract.binpb; \
	else echo "skipped: there is no npm on PATH to install buf with"; fi

contract-image: $(NODE)/package-lock.json ## take the contract as it stands for the released one
	$(BUF) build --exclude-source-info --path protos/tilecache/v1 --output protos/contract.binpb

$(NODE)/package-lock.json: tests/node/package-lock.json
	@mkdir -p $(NODE)
	@cp tests/node/package.json tests/node/.npmrc $< $(NODE)
	@cd $(NODE) && npm ci --loglevel=error || { rm package-lock.json; exit 1; }
	@touch $@

format: $(INSTALLED) ## mend style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# The stubs are to run with older versions of protobuf and grpcio too, so an older protoc
# writes them. It has wheels for Python up to 3.12.
PROTOC_PYTHON ?= $(PYTHON)
PROTOC_VENV := build/protoc-venv

stubs: $(INSTALLED) $(PROTOC_VENV)/.installed ## write the Python stubs from the .proto
	$(BIN)/python protos/generate.py

$(PROTOC_VENV)/.installed:
	$(PROTOC_PYTHON) -m venv $(PROTOC_VENV)
	$(PROTOC_VENV)/bin/python -m pip install --quiet --disable-pip-version-check \
	  --only-binary grpcio-tools grpcio-tools==1.62.3
	@touch $@

wheel: $(INSTALLED) ## build the wheels of daemon and client into dist/
	$(BIN)/python -m build --wheel
	$(BIN)/python -m build --wheel --outdir dist protos/python

clean: ## remove what was built and installed
	rm -rf $(VENV) build dist
