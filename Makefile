# Two commands: `make demo` and `make test`. Both build .venv first where it is missing or out of date.
#
#   make setup SETUP=cpu|gpu     choose the environment instead of looking for a GPU
#   make setup PYTHON=/path/to/python3.11

SETUP  ?= auto
PYTHON ?= python3.11 python3

# Relative on purpose: make cannot handle a target whose path has a space, and the checkout's may have one.
VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed

# An environment of the other kind is out of date, whatever its age.
ifneq ($(SETUP),auto)
ifneq ($(SETUP),$(shell cat $(STAMP) 2>/dev/null))
OTHER_KIND := other-kind
endif
endif

.PHONY: help demo test setup clean other-kind

help:
	@echo 'make demo    train with ShiQ on BFCL and print the table (no GPU, no account)'
	@echo 'make test    ruff, mypy, pytest'
	@echo 'make setup   only the environment, in $(VENV)'
	@echo 'make clean   remove the environment and the tools caches'

demo: $(STAMP)
	$(BIN)/shiq-bench run --algo shiq --task bfcl --resume

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pytest -n 2 --dist loadfile

setup: $(STAMP)

$(STAMP): pyproject.toml constraints/cpu.txt constraints/gpu.txt tools/setup_env.py $(OTHER_KIND)
	@for python in $(PYTHON); do \
		if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			exec "$$python" tools/setup_env.py --venv $(VENV) --kind $(SETUP); \
		fi; \
	done; \
	echo 'setup: Python 3.11 or newer was not found (tried: $(PYTHON)); name one with PYTHON=/path/to/python3' >&2; \
	exit 1

other-kind:

clean:
	rm -rf $(VENV) *.egg-info .pytest_cache .mypy_cache .ruff_cache
