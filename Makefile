# Every command sets up what is missing first. Options go into ARGS: make compare ARGS="--quick".
# make bench without options measures everything and writes the figures into the documents.

PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
ARGS ?=

ENVIRONMENT := .venv
RUN := $(ENVIRONMENT)/bin/python
READY := $(ENVIRONMENT)/.ready

.PHONY: compare test test-large sanitize integrations lint bench report-card example-lm clean

compare: $(READY)
	$(RUN) -m training.compare $(ARGS)

test: $(READY)
	$(RUN) -m pytest --numprocesses 2 -m "not large" $(ARGS)

# More than 2^31 elements: 12 GiB of memory.
test-large: $(READY)
	$(RUN) -m pytest -m large tests/test_native.py $(ARGS)

# The tests of the compiled operators, with every access to memory and every undefined operation watched.
SANITIZED := build/sanitize/library
SANITIZERS := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g -O1
sanitize: $(READY)
	CXXFLAGS="$(SANITIZERS)" TORCHLOSSES_BUILD=native $(RUN) setup.py --quiet build --build-base build/sanitize/temporary --build-lib $(SANITIZED)
	for instruction_set in avx512 avx2 baseline; do \
	  TORCHLOSSES_INSTRUCTION_SET=$$instruction_set PYTHONPATH=$(SANITIZED):. \
	  LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	  ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 UBSAN_OPTIONS=print_stacktrace=1:halt_on_error=1 \
	  $(ENVIRONMENT)/bin/pytest -o pythonpath= -p no:cacheprovider -q -k "not fork and not InstructionSets" -m "not large" \
	    tests/test_native.py tests/test_inplace_backward.py tests/test_gradient_along.py $(ARGS) || exit 1; \
	done

# The losses in Lightning, Accelerate and skorch. Without this, `make test` says which of them it skips.
integrations: $(READY) $(ENVIRONMENT)/.integrations
	$(RUN) -c "import accelerate, lightning, skorch"
	$(RUN) -m pytest tests/integrations $(ARGS)

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright

bench: $(READY)
	$(RUN) -m benchmarks.run $(ARGS)
	$(if $(strip $(ARGS)),,$(RUN) -m benchmarks.report)

example-lm: $(READY)
	$(RUN) -m examples.language_model $(ARGS)

# The conformance kit over our losses, PyTorch's and other libraries': docs/report-card.md and docs/report-card.json.
report-card: $(READY) $(ENVIRONMENT)/.report-card
	$(RUN) -m benchmarks.report_card $(ARGS)

clean:
	rm -rf $(ENVIRONMENT) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis

$(ENVIRONMENT)/.%: $(READY)
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) --no-build-isolation --editable ".[$*]"
	touch $@

$(READY): pyproject.toml setup.py $(CONSTRAINTS) $(wildcard torchlosses/kernels/csrc/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed; name one with make PYTHON=...")'
	test -x $(RUN) || $(PYTHON) -m venv $(ENVIRONMENT)
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) "setuptools>=77" torch numpy
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) --no-build-isolation --editable ".[training,tensorboard,dev]"
	$(RUN) -m torchlosses.kernels
	touch $@
