# Both commands work on a fresh clone with nothing but Python >= 3.11, pip and make.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
JOBS   ?= 2

.PHONY: help demo test test-slow lint types tests bench sanitize picture clean

help:
	@echo "make demo       install, train on scikit-learn's digits, print the front, write demo-run/report.html"
	@echo "make test       install, lint, types, tests"
	@echo "make test-slow  the slow tests too"
	@echo "make bench      the benchmarks, as ratios against rivals"
	@echo "make sanitize   the C++ kernels under address and undefined-behaviour sanitizers"
	@echo "make picture    redraw the README's picture from demo-run/"

$(BIN)/.demo: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pared needs Python 3.11 or newer, this is " + sys.version.split()[0] + "; set PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all]'
	@touch $@

$(BIN)/.dev: $(BIN)/.demo
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(BIN)/.demo
	rm -rf demo-run
	$(BIN)/pared fit digits --out demo-run

test: $(BIN)/.dev lint types tests

lint: $(BIN)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(BIN)/.dev
	$(BIN)/basedpyright

tests: $(BIN)/.dev
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

test-slow: $(BIN)/.dev
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m 'not gpu'

bench: $(BIN)/.dev
	$(BIN)/python benchmarks/shrinking_run.py
	$(BIN)/python benchmarks/surgery.py
	$(BIN)/python benchmarks/lp_step.py
	$(BIN)/python benchmarks/sparse_step.py --quick
	$(BIN)/python benchmarks/sparse_inference.py --quick
	$(BIN)/python benchmarks/class_rates.py --quick
	$(BIN)/python benchmarks/penalties.py --quick

# Blocks of 4 kB and threads for any task, so that small matrices take every branch; then as they are shipped.
SANITIZE := -std=c++17 -g -O1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all
sanitize:
	mkdir -p build
	$(CXX) $(SANITIZE) -DPARED_CACHE=4096 -DPARED_SHARE=1 -pthread tests/native/sanitize.cpp -o build/sanitize-small
	build/sanitize-small
	$(CXX) $(SANITIZE) -pthread tests/native/sanitize.cpp -o build/sanitize
	build/sanitize

picture: $(BIN)/.demo
	$(BIN)/python docs/picture.py demo-run docs/front.svg

clean:
	rm -rf $(VENV) demo-run .pytest_cache .ruff_cache
