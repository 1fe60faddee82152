# Two commands are enough: `make demo` and `make test`. Each installs what it needs into $(VENV).
PYTHON ?= python3
VENV ?= .venv
WORKDIR ?= runs/demo
PARALLEL ?= --numprocesses=2 --dist=loadfile
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test slow lint docs flowers clean

demo: $(VENV)/demo.installed
	$(BIN)/flaxtl train --config=configs/demo.py --workdir=$(WORKDIR)

test: $(VENV)/dev.installed
	$(BIN)/python -m pytest -m "not slow" $(PARALLEL)

slow: $(VENV)/dev.installed
	$(BIN)/python -m pytest -m slow $(PARALLEL)

lint: $(VENV)/dev.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation, a site that asks nothing of the network: build/site/index.html. Not with
# --quiet: warnings that it hides do not end a strict build. The variable silences a notice of the theme's.
docs: $(VENV)/docs.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# The lecture in full: needs the network once (images and weights), and an accelerator or a day.
flowers: $(VENV)/tfds.installed
	$(BIN)/flaxtl train --config=configs/flowers_vgg16.py --workdir=runs/flowers

clean:
	rm -rf $(VENV) build *.egg-info

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "flaxtl needs Python 3.11 to 3.13; name one: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) --editable .
	@touch $@

$(VENV)/%.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(INSTALL) --editable ".[$*]"
	@touch $@
