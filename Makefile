# Start with `make demo` or `make test`; each installs what it needs into $(VENV).
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
LATEST_PYTHON ?= python3.13
BROWSER ?= chromium
WORKDIR ?= runs/demo
FLOWERS_WORKDIR ?= runs/flowers
TUNED_WORKDIR ?= runs/flowers_tuned
VIEWS ?= 32
# An empty PYTHONDONTWRITEBYTECODE: the processes that tests start do not compile the modules of the package again.
# A worker that a test kills is not replaced: that test fails, where pytest would wait for ever for the rest of its file.
PYTEST = PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --max-worker-restart=0 \
  --durations=25
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS)

.PHONY: demo test test-latest slow exhaustive lint docs docs-images docs-notebook wheel flowers flowers-tuned clean

demo: $(VENV)/demo.installed
	$(BIN)/flaxtl train --config=demo --workdir=$(WORKDIR)

test: $(VENV)/dev.installed
	$(PYTEST) -m "not slow and not exhaustive"

# The fast tests with the latest release of every dependency, which constraints.txt cannot have: jax 0.11 and later need
# Python 3.12 or 3.13. Another one: make test-latest LATEST_PYTHON=python3.12
test-latest:
	$(MAKE) test PYTHON=$(LATEST_PYTHON) VENV=$(VENV)-latest CONSTRAINTS=constraints-latest.txt

# What takes longer, with the compiler's optimizations as users have them.
slow: $(VENV)/dev.installed
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(PYTEST) -m "slow and not exhaustive"

# All networks at full size, thousands of mutants, limits of load: hours. One group: make exhaustive GROUP=networks
exhaustive: $(VENV)/dev.installed
	JAX_DISABLE_MOST_OPTIMIZATIONS=0 $(PYTEST) -m exhaustive $(if $(GROUP),--group=$(GROUP))

lint: $(VENV)/dev.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The documentation as a site that works offline: build/site/index.html. Without --quiet, because a strict
# build does not fail on warnings that it hides. The variable hides a notice of the theme.
docs: $(VENV)/docs.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# The images of the documentation, from a run of the demo; the browser takes the one of the report.
docs-images: demo
	$(BIN)/python tools/docs_images.py --workdir=$(WORKDIR) --output=docs/images/demo --samples --browser=$(BROWSER)

# The outputs of the notebook in the documentation: minutes.
docs-notebook: $(VENV)/dev.installed
	$(BIN)/python tools/run_notebook.py

# Wheel and source archive in dist/. The wheel is installed in a new environment and trains in an empty folder.
wheel: $(VENV)/package.installed
	rm -rf dist build/lib
	$(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/*
	$(BIN)/python tools/check_wheel.py dist/*.whl

# The images in classes and the weights of `flowers` and `flowers-tuned`; without them both are downloaded.
FLOWERS_PACKAGES = $(if $(DATA),$(VENV)/demo.installed,$(VENV)/tfds.installed)
FLOWERS_INPUTS = $(if $(DATA),--config.data.source=folder:$(DATA)) $(if $(WEIGHTS),--config.weights.path=$(WEIGHTS))

# The lecture in full: three phases, 450 epochs. DATA=DIR and WEIGHTS=FILE (Keras' VGG16) are used instead of downloads.
# VIEWS=0 augments anew in every step, as the lecture does; that needs an accelerator, or a day. With views, the frozen layers
# compute in bfloat16, as in the runs that docs/tutorial.md reports.
flowers: $(FLOWERS_PACKAGES)
	@echo "$(if $(filter 0,$(VIEWS)),A day,About three hours and 11 GB of disk) on two CPU cores. If it is stopped, the same command continues it."
	$(BIN)/flaxtl train --config=flowers_vgg16 --workdir=$(FLOWERS_WORKDIR) $(FLOWERS_INPUTS) \
	  --config.feature_cache.views=$(VIEWS) $(if $(filter-out 0,$(VIEWS)),--config.feature_cache.compute_dtype=bfloat16)

# The same network and images with today's methods: see configs/flowers_tuned.py. DATA and WEIGHTS as above.
flowers-tuned: $(FLOWERS_PACKAGES)
	@echo "About 25 minutes and 3 GB of disk on two CPU cores. If it is stopped, the same command continues it."
	$(BIN)/flaxtl train --config=flowers_tuned --workdir=$(TUNED_WORKDIR) $(FLOWERS_INPUTS)

clean:
	rm -rf $(VENV) build dist *.egg-info

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "flaxtl needs Python 3.11 to 3.13; choose one with make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/demo.installed: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(INSTALL) --editable .
	@touch $@

$(VENV)/%.installed: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(INSTALL) --editable ".[$*]"
	@touch $@
