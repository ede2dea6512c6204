# `make demo` and `make test` need only Python ≥ 3.11, make and git.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
BENCH  := experiments/benchmarks

.PHONY: demo test docs soak lint release-check install bench bench-quick bench-gpu bench-peers bench-annealing clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("expected Python 3.11 or newer; got " + sys.version.split()[0] + ": choose another with make PYTHON=…" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# Train a VAE on 5000 real digits, evaluate it and write a report. Replaces runs/demo.
demo: $(STAMP)
	$(BIN)/pyro-vae fit --config experiments/demo.yaml --run runs/demo --overwrite
	$(BIN)/pyro-vae evaluate runs/demo --num-samples 5000 --reliable
	$(BIN)/pyro-vae report runs/demo

# A process per core, one thread each: two threads of a loaded machine mostly wait for each other. Bytecode is
# written whatever the environment says: hundreds of tests start a process, which would compile the package.
test: $(STAMP)
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

# The site, in docs/_build/html. Tutorials run, two at a time; a warning is an error.
docs: $(VENV)/.installed-docs
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html
	@echo site: docs/_build/html/index.html

$(VENV)/.installed-docs: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[docs]'
	touch $@

# The long versions of tests/soak: kills and damaged files. Half an hour.
soak: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python tests/soak/soak.py --kills 200 --output tests/soak/results/soak.json
	OMP_NUM_THREADS=1 $(BIN)/python tests/soak/fuzz.py --inputs 500 --output tests/soak/results/fuzz.json

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# Build the wheel; install it with the lowest and the highest allowed versions; run commands and tests.
release-check: $(STAMP)
	$(BIN)/python .ci/release_check.py

# Benchmark this package beside its peers, and write the table of docs. Needs a quiet machine and half an hour.
bench: bench-peers
	$(BIN)/python $(BENCH)/bench.py
	$(BIN)/python $(BENCH)/table.py

# The rows that have targets in three rounds, in five minutes; written to runs/bench-quick.
bench-quick: bench-peers
	$(BIN)/python $(BENCH)/bench.py --quick

# The benchmarks that a GPU changes. Refused without a GPU, before anything large is installed.
bench-gpu: $(STAMP)
	@$(BIN)/python $(BENCH)/bench.py --device cuda --check
	$(MAKE) bench-peers
	$(BIN)/pip install --quiet --constraint constraints.txt 'jax[cuda13]'
	$(BIN)/python $(BENCH)/bench.py --device cuda
	$(BIN)/python $(BENCH)/table.py

bench-peers: $(VENV)/.installed-bench

$(VENV)/.installed-bench: $(STAMP)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[bench]'
	touch $@

# Needs a trained run; annealing.py says how to make it.
bench-annealing: $(STAMP)
	$(BIN)/python $(BENCH)/annealing.py runs/mnist_vae

clean:
	rm -rf $(VENV) build docs/_build docs/generated *.egg-info
