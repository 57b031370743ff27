# `make demo` and `make test` need nothing but Python >= 3.11 and make; everything goes into .venv.

PYTHON ?= python3
CHAOS_SECONDS ?= 30
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: help demo test test-chaos fuzz lint format protos bench-digits bench-training bench-serving clean

help:
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "Python >= 3.11 is needed, $(PYTHON) is older: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(INSTALLED) ## fit, export, serve, assign and label scikit-learn's digits; pictures in demo/
	$(BIN)/python demo.py

# In order: files with few tests, which otherwise come last, are the slow ones, and one would be waited for.
test: $(INSTALLED) ## all tests; ARGS="-k batcher" picks some
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(ARGS)

test-chaos: $(INSTALLED) ## servers under load while something breaks; CHAOS_SECONDS=30 for each fault
	NVISA_CHAOS_SECONDS=$(CHAOS_SECONDS) $(BIN)/python -m pytest tests/chaos $(ARGS)

fuzz: $(INSTALLED) ## 100,000 requests that no honest client sends, against a real server; 2,000 of them are in make test
	NVISA_FUZZ_INPUTS=100000 $(BIN)/python -m pytest tests/fuzz $(ARGS)

lint: $(INSTALLED) ## style, types, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(INSTALLED) ## put the code into its style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

protos: $(INSTALLED) ## regenerate serving/pb from protos/
	$(BIN)/python protos/generate.py

bench-digits: $(INSTALLED) ## the default recipe with one part changed at a time, and peers, on digits, five seeds
	$(BIN)/python benchmarks/ablation.py digits

bench-training: $(INSTALLED) ## time of a training step beside its floor, a plain PyTorch loop and ClustPy's VaDE
	$(BIN)/python benchmarks/training_speed.py --peer-venv .venv-peers $(ARGS)

bench-serving: $(INSTALLED) ## our server beside its floors and other people's, README's table; 16 minutes, and the peers' installation
	$(BIN)/python benchmarks/serving_speed.py $(ARGS)
	$(BIN)/python benchmarks/tables.py

clean: ## remove what make made
	rm -rf $(VENV) .venv-peers demo build *.egg-info
