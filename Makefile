# Everything runs in .venv, which `make setup` builds from the pinned requirements and rebuilds only when they change.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
PYTEST := $(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile
PACKAGES := utils families preparation training generation evaluation benchmarking speech service notebooks

.PHONY: help setup experiment demo demo-voice test test-fast test-slow gpu-check mac-check lint format lock check-install clean
help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/ready  ## make .venv and install the pinned requirements

# The .in files say what is needed, the .txt files which version. So a torch that brings no CUDA libraries, such as the CPU
# build of another index, gets none.
$(VENV)/ready: requirements-training.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 14) else "Python 3.11 to 3.14 is needed, %s is %d.%d; run: make $(MAKECMDGOALS) PYTHON=python3.12" % (sys.executable, v[0], v[1]))'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check $(addprefix -c ,$^) $(addprefix -r ,$(^:.txt=.in))
	@touch $@

experiment:  ## make a folder for an experiment of your own: NAME=my_shoes, and DIR=place if not experiments/my_shoes
	$(if $(NAME),,$(error it needs a name: make experiment NAME=my_shoes))
	@$(or $(wildcard $(PY)),$(PYTHON)) new_experiment/create.py --name "$$NAME" $${DIR:+--output_dir "$$DIR"}

demo: setup  ## run the whole pipeline on the embedded demo model
	$(PY) demo/run.py

demo-voice: setup  ## teach the embedded voice a speaker that it has never heard, and judge it
	$(PY) demo/adapt_voice.py

test: setup lint  ## lint, then run every test but the very slow ones
	$(PYTEST) -m "not very_slow"

test-fast: setup  ## the tests without the marker slow: under 90 s on 2 cores
	$(PYTEST) -m "not slow and not very_slow"

test-slow: setup  ## the very slow tests, which `make test` leaves out
	$(PYTEST) -m very_slow

gpu-check: setup  ## check and measure an NVIDIA GPU (FLAGS="--baseline ../diffusers"); docs/gpu_check.md
	$(PY) tests/gpu/check.py $(FLAGS)

mac-check: setup  ## check and measure a Mac's GPU; docs/mac.md
	$(shell command -v caffeinate && echo -i) $(PY) tests/gpu/check.py --device mps $(FLAGS)

lint: setup  ## check style with ruff and types with mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy $(PACKAGES)

format: setup  ## let ruff rewrite what it can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

# uv rather than pip-compile: one file then serves every supported Python and every platform, by markers.
# Pinned versions are kept; `make lock UPGRADE=--upgrade` takes the newest ones.
# What comes on top of requirements-training.txt leaves torch and its CUDA libraries to it.
LOCK = $(PY) -m uv pip compile --quiet --universal --python-version 3.11 --custom-compile-command "make lock" $(UPGRADE)
lock: setup  ## pin the requirements from the .in files
	$(LOCK) -o requirements-training.txt requirements-training.in
	for name in cloud cuda serve dev; do echo torch | $(LOCK) --excludes - -o requirements-$$name.txt requirements-$$name.in || exit; done

check-install: lock  ## install the pinned packages with uv, pip-tools and pip (before a release)
	git diff --exit-code --stat -- 'requirements-*.txt'
	$(PY) tests/check_install.py

clean:  ## remove .venv, caches and what the demo made
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache runs/demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
