# make demo | make test: each sets up all it needs first, inside .venv, without root.
#   make setup PYTHON=/path/to/python3.12   to choose the interpreter
#   make test ARGS="-k cem"                 to pass arguments on; ARGS="-n 0" runs in one process
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup demo test lint weights faults clean

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/setup.stamp
LOG := $(VENV)/setup.log
ARGS ?=

help:
	@echo "make demo    watch the shipped world model plan (about ten minutes, install included)"
	@echo "make test    run the test suite"
	@echo "make setup   only create .venv with the worldmodel program in it"
	@echo "make lint    ruff, pyright, import-linter"
	@echo "make weights train the shipped world model again, from simulation to checkpoint (an hour and more)"
	@echo "make faults  break everything around a moving simulated arm, and write docs/safety.md (ten minutes)"
	@echo "make clean   remove .venv and build products (runs/ and datasets/ are kept)"

setup: $(STAMP)
	@:

demo: setup
	@$(BIN)/worldmodel demo $(ARGS)

test: setup
	@$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

lint: setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright --pythonpath $(BIN)/python
	@$(BIN)/lint-imports

# How worldmodel/weights/default was made: RECIPE=cpu (two cores) or RECIPE=gpu. What is done is not done again.
RECIPE ?= cpu
weights: setup
	$(BIN)/worldmodel recipe +experiment=recipe_$(RECIPE) run=runs/weights-$(RECIPE) minutes=null
	cp runs/weights-$(RECIPE)/predictor/out/model/* worldmodel/weights/default/

# A table with failures is written too.
faults: setup
	$(BIN)/python -m benchmarks.faults $(ARGS) || failed=1; \
	$(BIN)/python docs/make_safety.py && exit $${failed:-0}

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The first python that is new enough; PYTHON=... overrules it.
PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$python" && break; done)

$(BIN)/pip:
	@if ! "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
		echo "setup: expected Python 3.11 or newer, got '$(PYTHON)'" \
			"($$("$(PYTHON)" --version 2>/dev/null || echo not found); python3 is" \
			"$$(python3 --version 2>/dev/null || echo not found))." >&2; \
		echo "setup: name one with: make setup PYTHON=/path/to/python3.12" >&2; exit 1; fi
	@echo "setup: creating $(VENV) with $$("$(PYTHON)" --version)"
	@rm -rf $(VENV)
	@if ! "$(PYTHON)" -m venv $(VENV); then \
		rm -rf $(VENV); \
		echo "setup: $(PYTHON) could not make a virtual environment. On Debian and Ubuntu: apt install python3-venv" >&2; \
		echo "setup: without root, name another interpreter: make setup PYTHON=/path/to/python3.12" >&2; exit 1; fi

# pip's own output goes to the log; of it, the large downloads and the failures are shown.
# The build runs without isolation so that setuptools too is the pinned one.
$(STAMP): pyproject.toml constraints.txt | $(BIN)/pip
	@rm -f $(STAMP)
	@echo "setup: installing the pinned dependencies into $(VENV) (a few minutes the first time; log: $(LOG))"
	@install() { $(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -c constraints.txt "$$@"; }; \
	if ! { install pip setuptools && install --no-build-isolation -e '.[dev]'; } 2>&1 | tee $(LOG) | sed -unE \
		-e 's/^ *Downloading (.*\/)?([^ /]+) \(([0-9.]{4,} ?MB|.* ?GB)\).*/setup:   downloading \2 (\3)/p' \
		-e 's/^Installing collected packages: .*,.*,.*/setup:   unpacking (the slowest part: torch is large)/p'; then \
		echo "setup: pip failed; the end of $(LOG):" >&2; tail -n 25 $(LOG) >&2; exit 1; fi
	@$(BIN)/python -c 'import torch; print("setup: done, torch", torch.__version__)'
	@touch $(STAMP)
