PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# processes of one thread, one more than cores; a file runs in one of them, long files first (conftest.py)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt
export HF_HUB_OFFLINE := 1

.PHONY: demo app lab check test tests lint licences clean help

help:
	@echo "make demo       compare credit methods on the lab task (installs into .venv first)"
	@echo "make app        open the app on the bundled runs and yours (installs what it needs first)"
	@echo "make lab        open the notebooks in JupyterLab (installs what they need first)"
	@echo "make check      the fast tier of make test: lint, types, the core's tests"
	@echo "make test       lint and all tests (installs the development extras first)"
	@echo "make licences   list every installed package with its licence"
	@echo "make clean      remove .venv and caches; runs/ stays"

demo: $(VENV)/.installed
	$(BIN)/python -m fgrpo demo

app: $(VENV)/.installed-app
	$(BIN)/python -m app

lab: $(VENV)/.installed-lab
	$(BIN)/jupyter lab notebooks

check: $(VENV)/.installed-dev lint
	$(PYTEST) -q -m "not slow" tests/core tests/test_project.py

test: lint tests  # one after the other; beside each other with make -j2

tests: $(VENV)/.installed-dev
	$(PYTEST)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

licences: $(VENV)/.installed
	@$(BIN)/python .ci/licences.py

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed; name one with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e .
	@touch $@

$(VENV)/.installed-app: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[app]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-lab: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[labs]'
	$(BIN)/python -m ipykernel install --sys-prefix --display-name 'Python 3 (fgrpo)'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
