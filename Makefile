# The commands of this repository. Each installs what it needs into .venv first, which is done only
# once. To use another Python: make clean, then make chat PYTHON=python3.12.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One more than two cores, because a worker spends much of its time waiting for other processes.
JOBS ?= 3
SPREAD := -n $(JOBS) --dist loadfile --no-loadscope-reorder

# The environment is updated when one of these files changes.
KEY := $(shell cat pyproject.toml constraints.txt | cksum | cut -d' ' -f1)
RUN := $(VENV)/.stamp-run-$(KEY)
DEV := $(VENV)/.stamp-dev-$(KEY)
PIP := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt

LIGHT_VENV := .venv-light-$(notdir $(PYTHON))
LIGHT := $(LIGHT_VENV)/.stamp-$(KEY)
LIGHT_PACKAGES := anyio click httpx huggingface-hub hypothesis markdown-it-py msgspec numpy pillow \
  matplotlib platformdirs psutil pytest pytest-asyncio pytest-textual-snapshot pytest-xdist rich \
  safetensors sqlite-utils starlette textual textual-plotext tomli-w uvicorn

SCENES := build/scenes

.PHONY: help chat test test-slow test-light check fix bench train-scenes scenes clean

help:
	@echo "make chat          open the app"
	@echo "make test          the tests (make test-slow: with the slow ones)"
	@echo "make test-light    the tests that need no torch, on another Python (PYTHON=python3.13)"
	@echo "make check         lint, format, types, imports (make fix corrects what it can)"
	@echo "make bench         the benchmarks"
	@echo "make train-scenes  train the built-in model from scratch (hours, in the background)"
	@echo "make clean         remove the environment and the build files"

chat: $(RUN)
	@$(BIN)/mmchat

test: $(DEV)
	$(BIN)/python -m pytest $(SPREAD) -m "not slow" $(ARGS)

test-slow: $(DEV)
	$(BIN)/python -m pytest $(SPREAD) $(ARGS)

# The tests that need no torch, on another Python: make test-light PYTHON=python3.13
test-light: $(LIGHT)
	$(LIGHT_VENV)/bin/python -m pytest $(SPREAD) -m "not slow" \
	  tests/images tests/history tests/data tests/client tests/cli tests/tui \
	  tests/test_settings.py tests/test_sanitize.py $(ARGS)

check: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest tests/test_hygiene.py -k heavy

fix: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(DEV)
	@for file in tests/benchmarks/bench_*.py; do \
	  echo "== $$file"; $(BIN)/python -m tests.benchmarks.$$(basename $$file .py) || exit 1; \
	done

# In the background, so that closing the terminal does not end it. If it is stopped, the next start
# resumes it.
train-scenes: $(DEV)
	@mkdir -p $(SCENES)
	@flock --nonblock $(SCENES)/lock true || { \
	  echo "It is already running: tail -f $(SCENES)/train.log" >&2; exit 1; }
	@setsid nohup nice -n 10 flock --nonblock $(SCENES)/lock \
	  sh -c 'echo $$PPID > $(SCENES)/pid; exec $(MAKE) --no-print-directory scenes' \
	  >> $(SCENES)/train.log 2>&1 < /dev/null &
	@echo "It runs for hours, without this terminal. Watch it: tail -f $(SCENES)/train.log"
	@echo "Stop it: kill -- -\$$(cat $(SCENES)/pid)   Resume it: make train-scenes"

scenes: $(SCENES)/train/.drawn $(SCENES)/held-out/.drawn
	$(BIN)/python adapters/scenes/pretrain.py $(SCENES) --out $(SCENES)/run
	@echo "Try it: mmchat ask --model $(SCENES)/run/model …   Adopt it: cp $(SCENES)/run/model/* adapters/scenes/"

$(SCENES)/train/.drawn: | $(DEV)
	$(BIN)/python adapters/scenes/draw.py --out $(@D) --split train --seed 1 --scenes 48000 --workers $(JOBS)
	@touch $@

$(SCENES)/held-out/.drawn: | $(DEV)
	$(BIN)/python adapters/scenes/draw.py --out $(@D) --split held-out --seed 2 --scenes 1500
	@touch $@

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "mmchat needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is another version:" \
	    "choose one, for example make chat PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "The environment cannot be created: on Debian and Ubuntu install python3-venv." >&2; \
	  rm -rf $(VENV); exit 1; }

# torch first: the build that this machine's package index offers determines the other packages.
$(RUN): | $(VENV)/bin/python
	$(PIP) torch
	$(PIP) --editable .
	@rm -f $(VENV)/.stamp-run-* && touch $@

$(DEV): | $(RUN)
	$(PIP) --editable '.[dev]'
	@rm -f $(VENV)/.stamp-dev-* && touch $@

$(LIGHT):
	@test -x $(LIGHT_VENV)/bin/python || $(PYTHON) -m venv $(LIGHT_VENV)
	$(LIGHT_VENV)/bin/python -m pip install --disable-pip-version-check --constraint constraints.txt $(LIGHT_PACKAGES)
	$(LIGHT_VENV)/bin/python -m pip install --disable-pip-version-check --no-deps --editable .
	@rm -f $(LIGHT_VENV)/.stamp-* && touch $@

clean:
	@if [ -x $(BIN)/mmchat ]; then $(BIN)/mmchat engine stop; fi
	rm -rf $(VENV) .venv-light-* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
