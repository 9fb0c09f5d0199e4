# Everything runs in .venv, which `make setup` builds from the pinned requirements and rebuilds only when they change.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python

.PHONY: help setup demo test lint format lock clean
help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(VENV)/ready  ## make .venv and install the pinned requirements

$(VENV)/ready: requirements-training.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v >= (3, 10) else f"Python 3.10 or newer is needed, {sys.executable} is {v[0]}.{v[1]}; run: make $(MAKECMDGOALS) PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-training.txt -r requirements-dev.txt
	@touch $@

demo: setup  ## run the whole pipeline on the embedded demo model
	$(PY) demo/run.py

test: setup lint  ## lint, then run every test
	$(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile

lint: setup  ## check style with ruff
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: setup  ## let ruff rewrite what it can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

# uv rather than pip-compile: one file then serves every Python from 3.10 on, and every platform, by markers.
LOCK = $(PY) -m uv pip compile --quiet --universal --python-version 3.10 --custom-compile-command "make lock"
lock: setup  ## pin the requirements anew
	$(PY) -m pip install --quiet uv
	$(LOCK) --upgrade -o requirements-training.txt requirements-training.in
	$(LOCK) --upgrade -o requirements-dev.txt requirements-dev.in
	$(LOCK) --upgrade -o requirements-cuda.txt requirements-cuda.in

clean:  ## remove .venv, caches and what the demo made
	rm -rf $(VENV) .pytest_cache .ruff_cache runs/demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
