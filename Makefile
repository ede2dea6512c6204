# `make demo` and `make test` need Python ≥ 3.11, make and git, and nothing else.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# The benchmarks' peers want other packages than we do.
PEERS  := .venv-bench
BENCH  := experiments/benchmarks

.PHONY: demo test lint install bench bench-gpu bench-peers bench-annealing clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("expected Python 3.11 or newer; got " + sys.version.split()[0] + ": name another with make PYTHON=…" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# A short walk, for a demo that ends within two minutes: eight chains with 300 temperatures gain 0.3 nats.
WALK := --ais.num_chains 4 --ais.num_temperatures 50 --ais.num_steps 5

# A VAE on 5000 real digits: learned, judged and drawn. The demo's run folder is its own to replace.
demo: $(STAMP)
	$(BIN)/pyro-vae fit --config experiments/demo.yaml --run runs/demo --overwrite
	$(BIN)/pyro-vae evaluate runs/demo --num-samples 5000 --ais $(WALK)
	$(BIN)/pyro-vae report runs/demo

# One thread: on shared machines two threads wait for each other longer than they work.
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# This package and its peers side by side: wants a quiet machine, and takes a while.
bench: $(STAMP) bench-peers
	$(BIN)/python $(BENCH)/bench.py
	$(BIN)/python $(BENCH)/evaluation_memory.py
	$(BIN)/python $(BENCH)/table.py

# What of it a GPU changes; refused where torch finds none, before anything large is installed.
bench-gpu: $(STAMP)
	@$(BIN)/python $(BENCH)/bench.py --device cuda --check
	$(MAKE) bench-peers
	$(PEERS)/bin/pip install --quiet --requirement $(BENCH)/requirements-gpu.txt
	$(BIN)/python $(BENCH)/bench.py --device cuda
	$(BIN)/python $(BENCH)/table.py

bench-peers: $(PEERS)/.installed

$(PEERS)/.installed: $(BENCH)/requirements.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/pip install --quiet --requirement $<
	touch $@

# Wants a trained run; how to make it stands in the file's head.
bench-annealing: $(STAMP)
	$(BIN)/python experiments/benchmarks/annealing.py runs/mnist_vae

clean:
	rm -rf $(VENV) $(PEERS) build *.egg-info
