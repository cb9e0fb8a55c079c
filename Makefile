# Each target works alone on a fresh machine with Python and make: it makes its own .venv when there is none.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: verify test test-optimised test-slow lint notebooks readme bench clean

verify: .venv/installed
	$(BIN)/traindyn verify --scale laptop

test: .venv/installed
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# The same tests compiled as users' programs are, which takes twice as long: see tests/conftest.py.
test-optimised: .venv/installed
	XLA_FLAGS= JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-slow: .venv/installed
	$(BIN)/python -m pytest -m slow

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# Runs every notebook at the smoke scale from its script, and renders it beside.
notebooks: .venv/installed
	cd notebooks && ../$(BIN)/jupytext --to ipynb *.py && ../$(BIN)/jupyter execute --inplace *.ipynb

# The README's table of flows, and of claims from OUT=folder, where a `traindyn verify` has been.
readme: .venv/installed
	$(BIN)/python docs/readme.py $(OUT)

# A quarter of an hour, six minutes of it for `scan_snap.py` and `galore.py`.
bench: .venv/bench
	$(BIN)/python benchmarks/trajectories.py
	$(BIN)/python benchmarks/sweeps.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/composing.py
	$(BIN)/python benchmarks/grokking.py
	$(BIN)/python benchmarks/scan_snap.py
	$(BIN)/python benchmarks/galore.py
	$(BIN)/python benchmarks/compare.py

.venv/bench: .venv/installed
	$(BIN)/python -m pip install --quiet --editable '.[bench]' --constraint constraints.txt
	touch $@

.venv/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test,lint]' --constraint constraints.txt
	touch $@

clean:
	rm -rf .venv out dist
