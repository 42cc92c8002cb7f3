# make demo          train on the bandit task and look at the posterior (about three minutes on 2 cores)
# make test          ruff, mypy, the order of the folders, and the tests, without the slow ones
# make test-lowest   the tests with the lowest versions that setup.cfg allows (needs Python 3.10 or 3.11)
# make docs          the documentation's site, in docs/_build/html; make docs-serve shows it at http://localhost:8000
# make tutorials     the notebooks of docs/tutorials, run anew (some minutes each)
# The first call makes .venv (.venv-lowest), later ones reuse it.

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
LOWEST := .venv-lowest/bin
LOWEST_STAMP := .venv-lowest/.installed
# The lowest that is allowed is 2.8.0, which on Linux brings gigabytes of CUDA
TORCH_LOWEST ?= 2.13.0
# A process for each core, each with one thread: small tensors only wait for more
ONE_THREAD := env OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
PARALLEL := -n 2 --dist worksteal

.PHONY: demo test test-slow test-lowest docs docs-serve tutorials bench format clean

demo: $(STAMP)
	$(BIN)/python examples/bandit_demo.py

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(ONE_THREAD) $(BIN)/python -m pytest $(PARALLEL)

test-slow: $(STAMP)
	$(BIN)/python -m pytest -m slow

test-lowest: $(LOWEST_STAMP)
	$(ONE_THREAD) $(LOWEST)/python -m pytest $(PARALLEL)

docs: $(STAMP)
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet docs docs/_build/html

docs-serve: docs
	$(BIN)/python -m http.server --directory docs/_build/html --bind 127.0.0.1 8000

tutorials: $(STAMP)
	$(ONE_THREAD) $(BIN)/python docs/tutorials/run.py docs/tutorials/*.ipynb

bench: $(STAMP)
	$(BIN)/python -m benchmarks.throughput

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-lowest build docs/_build *.egg-info

# Installed again whenever what is to be installed changes
$(STAMP): setup.cfg pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

$(LOWEST_STAMP): setup.cfg pyproject.toml constraints-lowest.txt
	test -x $(LOWEST)/python || $(PYTHON) -m venv .venv-lowest
	$(LOWEST)/python -m pip install --quiet --disable-pip-version-check -c constraints-lowest.txt \
		"torch==$(TORCH_LOWEST)" -e ".[test]"
	touch $@
