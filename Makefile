# make demo: videos from the models in the box.   make test: everything continuous integration runs.
# Both start from nothing but Python 3.11 or newer with pip and venv, and keep what they install in .venv.

VENV ?= .venv
BIN := $(VENV)/bin
WORKERS ?= 2
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)

.PHONY: help demo test check bench docs clean
.DELETE_ON_ERROR:

help:
	@echo "make demo    install into $(VENV) and write to out: demo.mp4, demo.gif and demo.png from a sentence,"
	@echo "             demo-image.mp4, demo-image.gif and demo-image-sheet.png from the picture demo-image.png"
	@echo "make test    run every test"
	@echo "make check   ruff and mypy"
	@echo "make bench   measure speed and memory"
	@echo "make docs    rebuild the API reference and the pictures in docs/"
	@echo "make clean   remove $(VENV), out and caches"

demo: $(VENV)/.installed
	@$(BIN)/kinema demo --out out
	@$(BIN)/kinema demo --image --out out

test: $(VENV)/.installed-for-tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

check: $(VENV)/.installed-for-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed-for-tests
	$(BIN)/python -m benchmarks

docs: $(VENV)/.installed-for-tests
	$(BIN)/python scripts/architecture_picture.py
	$(BIN)/python scripts/api_reference.py

docs/pictures/demo.gif: $(VENV)/.installed
	$(BIN)/python scripts/demo_picture.py --out $@

clean:
	rm -rf $(VENV) out build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "kinema needs Python 3.11 or newer; say where it is: make PYTHON=/path/to/python3" >&2; exit 1; }
	@echo "Making a virtual environment in $(VENV)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "$(PYTHON) cannot make virtual environments (on Debian: apt-get install python3-venv)" >&2; exit 1; }

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml constraints.txt scripts/install_torch.py
	@echo "Installing kinema and what it needs (a few hundred megabytes the first time)"
	@$(BIN)/python scripts/install_torch.py
	@$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-for-tests: $(VENV)/.installed
	@echo "Installing what the tests need"
	@$(PIP) install -c constraints.txt -e '.[test,dev]'
	@touch $@
