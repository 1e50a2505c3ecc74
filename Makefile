# `make demo` and `make test` need nothing but Python 3.11 or later and make: each builds the virtual environment first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test linux-test linux-bench soak check lint types bench fuzz wheel clean help

help: ## what can be done here
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Partita needs Python 3.11 or later; name one with: make PYTHON=/path/to/python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY) ## boot two children, give them disks, show their traffic
	$(BIN)/partita run 03-disk -vv --trace-filter 'layer=state|control|device'

# One more than there are processors: some tests wait for other programs.
WORKERS ?= $(shell expr $$(nproc) + 1)

# Compiled files are kept even where Python is told otherwise: else each of a hundred processes compiles all it imports.
test: $(READY) ## the fast test suite, on all processors
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -q --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

LINUX_TESTS ?= tests/linux_guest

linux-test: $(READY) ## real Linux kernels as guests, on KVM or in an emulated machine: minutes
	$(BIN)/python -m tests.linux_guest $(LINUX_TESTS)

linux-bench: $(READY) ## a real kernel here and in QEMU, side by side
	$(BIN)/python -m benchmarks.linux

soak: $(READY) ## ten thousand sockets, a thousand devices in and out, a real kernel hammered, a hundred killed
	$(BIN)/python -m pytest -q -m slow tests/end_to_end/test_soak.py
	PARTITA_HAMMER_SECONDS=120 PARTITA_KILLS=100 PARTITA_BURN_SECONDS=60 PARTITA_LINUX_SECONDS=2400 $(BIN)/python -m tests.linux_guest tests/linux_guest/test_storage.py tests/linux_guest/test_lifecycle.py tests/linux_guest/test_cpu_control.py

check: lint types ## everything that reads code without running it

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

bench: $(READY) ## speed, as ratios against what one would use instead
	$(BIN)/python -m benchmarks

fuzz: $(READY) ## long random campaigns against every decoder and state machine
	$(BIN)/python -m pytest -q -m slow tests
	$(BIN)/python -m pytest -q tests/hostile --hypothesis-profile=long

wheel: $(READY) ## build the wheel and run an example from it, outside the checkout
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .

clean: ## remove everything that was built
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
