# make demo    install, and learn a pixel task on this machine in minutes
# make test    install with test tools, and run all tests
# make lint    ruff and pyright
# make docs    the pages of docs/ as a site, in build/site
#
# PYTHON=python3.12       which Python makes the environment
# VENV=.venv              where it lives
# TORCH="torch==2.13.*"   which torch
# TORCH_INDEX=URL         where torch comes from: https://download.pytorch.org/whl/cpu spares a machine without a GPU
#                         some gigabytes of CUDA libraries
# WORKERS=4               test processes
# TESTS=tests/unit        what to test; PYTEST_ARGS="-m 'not slow'" how

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch>=2.10,<2.14
TORCH_INDEX ?=
WORKERS ?= $(shell $(PYTHON) -c "import os; n = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(); print(max(1, min(8, n)))")
TESTS ?= tests
PYTEST_ARGS ?=
DEMO_DIR ?= runs/demo-$(shell date +%Y%m%d-%H%M%S)

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: demo test lint docs install install-dev clean-venv
.DELETE_ON_ERROR:

demo: install
	$(BIN)/worldmodel train quickstart --run-dir $(DEMO_DIR)
	@echo
	@echo "The environment is in $(VENV): type 'source $(BIN)/activate' and then what stands above."

test: install-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS) $(TESTS)

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: install
	$(PIP) install --quiet "$(TORCH)" --editable ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

install: $(VENV)/.installed

install-dev: $(VENV)/.installed-dev

clean-venv:
	rm -rf $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(PIP) install --quiet "$(TORCH)" $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX))
	$(PIP) install --quiet "$(TORCH)" --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install --quiet "$(TORCH)" --editable ".[dev]"
	@touch $@

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "There is no $(PYTHON) here; name one: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
		{ echo "$(PYTHON) is older than 3.11; name a newer one: make PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt-get install -y python3-venv"; exit 1; }
