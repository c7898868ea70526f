# `make table1` and `make test` need Python 3.11 or later and nothing else: each makes a virtual
# environment if there is none, and installs what it lacks. Both install again when pyproject.toml changes.
#
#   make table1 ARGS="--models=fcn_vgg --limit=4"       flags of the launch
#   make test ARGS="tests/test_attack.py -x"            arguments of pytest
#   make test PYTHON=python3.12 VENV=.venv312           another interpreter, beside the first

PYTHON ?= python3
VENV ?= .venv
ARGS ?=

IN_VENV := $(VENV)/bin/python
INSTALL := $(IN_VENV) -m pip install --quiet --disable-pip-version-check

.PHONY: table1 test lint format
.NOTPARALLEL:  # two installs into one environment would disturb each other

table1: $(VENV)/.installed
	@$(IN_VENV) -m experiments.table1 $(ARGS)

test: $(VENV)/.installed-test
	@$(IN_VENV) -m pytest -n 2 --dist worksteal $(ARGS)

lint: $(VENV)/.installed-test
	@$(IN_VENV) -m ruff check .
	@$(IN_VENV) -m ruff format --check .
	@$(IN_VENV) -m mypy

format: $(VENV)/.installed-test
	@$(IN_VENV) -m ruff check --fix .
	@$(IN_VENV) -m ruff format .

# pip is the last thing that venv puts in place, so a creation cut short is taken up again.
$(VENV)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit("dag-jax needs Python 3.11 or later; this is %d.%d. Name another: make PYTHON=python3.11" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	@echo "Creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/pip
	@echo "Installing dag-jax into $(VENV) (once; about a minute)"
	@$(INSTALL) --editable .
	@touch $@

$(VENV)/.installed-test: pyproject.toml | $(VENV)/bin/pip
	@echo "Installing dag-jax and its test tools into $(VENV) (once; about a minute)"
	@$(INSTALL) --editable '.[test]'
	@touch $(VENV)/.installed $@
