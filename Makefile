# `make demo`, `make test` and `make proof` build .venv first where it is missing or out of date.
#
#   make setup SETUP=cpu|gpu     choose the environment instead of looking for a GPU
#   make setup PYTHON=/path/to/python3.11

SETUP  ?= auto
PYTHON ?= python3.11 python3

# Relative on purpose: make cannot handle a target whose path has a space, and the checkout's may have one.
VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
# The file of a test mostly stays with one worker, which builds its fixtures once; who is idle takes from the other.
PYTEST := $(BIN)/pytest -n 2 --dist worksteal

# An environment of the other kind is out of date, whatever its age.
ifneq ($(SETUP),auto)
ifneq ($(SETUP),$(shell cat $(STAMP) 2>/dev/null))
OTHER_KIND := other-kind
endif
endif

# Setup leaves modules uncompiled: where Python may not keep what it compiles, every process compiles all of torch.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test proof setup clean other-kind

help:
	@echo 'make demo    train with ShiQ on BFCL and print the table (no GPU, no account)'
	@echo 'make test    ruff, mypy, pytest: under ten minutes on two cores'
	@echo 'make proof   the tests that take longer: sweeps that are killed, Ray, Slurm, simulations, every planted bug'
	@echo 'make setup   only the environment, in $(VENV)'
	@echo 'make clean   remove the environment and the tools caches'

demo: $(STAMP)
	$(BIN)/shiq-bench run --algo shiq --task bfcl --resume

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST)

proof: $(STAMP)
	$(PYTEST) -m proof

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
