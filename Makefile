# Every command sets up what is missing first. Options go into ARGS: make compare ARGS="--quick".

PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
ARGS ?=

ENVIRONMENT := .venv
RUN := $(ENVIRONMENT)/bin/python
READY := $(ENVIRONMENT)/.ready

.PHONY: compare test lint bench example-lm clean

compare: $(READY)
	$(RUN) -m training.compare $(ARGS)

test: $(READY)
	$(RUN) -m pytest --numprocesses 2 $(ARGS)

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright

bench: $(READY)
	$(RUN) -m benchmarks.losses $(ARGS)

example-lm: $(READY)
	$(RUN) -m examples.language_model $(ARGS)

clean:
	rm -rf $(ENVIRONMENT) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis

$(READY): pyproject.toml setup.py $(CONSTRAINTS) $(wildcard torchlosses/kernels/csrc/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed; name one with make PYTHON=...")'
	test -x $(RUN) || $(PYTHON) -m venv $(ENVIRONMENT)
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) "setuptools>=77" torch numpy
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) --no-build-isolation --editable ".[training,tensorboard,dev]"
	$(RUN) -m torchlosses.kernels
	touch $@
