# Two commands on a fresh machine: `make demo` and `make test`. Each does its own set-up in .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

OLDEST := .venv-oldest

.PHONY: help demo test coverage test-oldest lint types layers examples benchmarks clean

help:
	@echo "make demo | test | coverage | test-oldest | lint | types | layers | examples | benchmarks | clean"

# Only wheels are installed, so no compiler is needed.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, got " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	@$(PYTHON) -m venv $(VENV) || { echo "python3 -m venv failed; on Debian: apt-get install python3-venv"; rm -rf $(VENV); exit 1; }
	$(BIN)/pip install --quiet --only-binary :all: -c constraints.txt torch
	$(BIN)/pip install --quiet --prefer-binary -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(READY)
	$(BIN)/gradlogp demo --out demo

# Two workers of one thread each: more threads would wait for each other.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

# Which lines the tests run; apart, since it makes them slower.
coverage: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal --cov=gradlogp --cov-report=term

# The lowest versions that pyproject.toml states, with the tests that use what they are for. Their own warnings are no errors.
test-oldest: $(OLDEST)/.ready
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n 2 -o filterwarnings=default \
		tests/test_data.py tests/test_files.py tests/test_checkpoints.py tests/test_versions.py tests/test_shapes.py \
		tests/test_audit.py

$(OLDEST)/.ready: pyproject.toml constraints-oldest.txt
	@$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install --quiet --only-binary :all: -c constraints-oldest.txt torch
	$(OLDEST)/bin/pip install --quiet --prefer-binary -c constraints-oldest.txt -e . \
		pytest pytest-cov pytest-xdist beartype hypothesis pandas pyarrow
	@touch $@

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

layers: $(READY)
	$(BIN)/lint-imports

examples: $(READY)
	@mkdir -p examples/out
	@for f in examples/*.py; do echo "== $$f"; (cd examples/out && ../../$(BIN)/python ../../$$f) || exit 1; done

clean:
	rm -rf $(VENV) $(OLDEST)* demo examples/out .pytest_cache .mypy_cache .ruff_cache
