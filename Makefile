# Every target sets up what it needs. `PYTHON=python3.12 make setup`, after `make clean`, uses another interpreter;
# `PIP_EXTRA_INDEX_URL=... make setup` takes PyTorch's CPU build (docs/troubleshooting.md).
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
# Downloads wait in .venv: a /tmp in memory may be too small for them.
PIP := TMPDIR="$(CURDIR)/$(VENV)" $(RUN) -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: setup setup-dev demo train test faults lint bench clean

setup: $(VENV)/.ready            ## a virtual environment with the packages of the scripts
setup-dev: $(VENV)/.ready-dev    ## also the packages of tests, lint and benchmarks

$(VENV)/.ready: requirements.txt constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("error: Python 3.11 or newer is needed, this is " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(if $(wildcard $@),,--clear) $(VENV)
	@echo "installing PyTorch and the rest: some minutes and 6 GB the first time"
	$(PIP) --requirement requirements.txt
	touch $@

$(VENV)/.ready-dev: $(VENV)/.ready requirements-dev.txt
	$(PIP) --requirement requirements-dev.txt
	touch $@

demo: setup                      ## train on scikit-learn's digits, evaluate, name the report
	$(RUN) train_vit_cifar10.py --preset demo --overwrite
	$(RUN) evaluate_vit.py --checkpoint checkpoints/demo/best_model.pth

train: setup                     ## the real run: ViT-Tiny on CIFAR-10, many hours
	$(RUN) train_vit_cifar10.py

# The files of the longest tests have few of them: in pytest-xdist's own order they would come last, on one core.
test: setup-dev                  ## all tests
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

faults: setup-dev                ## the long fault tests, 200 kills; writes results/faults.md
	FAULT_KILLS=200 FAULT_TABLE=results/faults.md $(RUN) -m pytest -n 2 tests/faults

lint: setup-dev                  ## style, format, types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright

bench: setup-dev                 ## speed: training steps and augmentation against libraries, cost by size
	$(RUN) benchmarks/throughput.py
	$(RUN) benchmarks/cost.py
	$(RUN) benchmarks/augment.py
	$(RUN) benchmarks/muon.py

clean:                           ## the virtual environment and the caches; runs and data stay
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './data/*' -prune -exec rm -rf {} +
