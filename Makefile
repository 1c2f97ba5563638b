# Every command sets up what is missing first. Options go into ARGS: make compare ARGS="--quick".
# make bench without options measures everything and writes the figures into the documents.

PYTHON ?= python3
CONSTRAINTS ?= constraints.txt
ARGS ?=

ENVIRONMENT := .venv
RUN := $(ENVIRONMENT)/bin/python
# Neighbouring tests share compiled graphs, built wheels and audits, so each process takes a run of them.
IN_TWO := --numprocesses 2 --dist worksteal
READY := $(ENVIRONMENT)/.ready

.PHONY: compare setup test test-all test-large test-torch gpu test-gpu sanitize-gpu bench-gpu sweep-transformers sanitize integrations lint docs wheel headers bench report-card example-lm clean

compare: $(READY)
	$(RUN) -m training.compare $(ARGS)

setup: $(READY)

test: $(READY)
	$(RUN) -m pytest $(IN_TWO) -m "not large and not thorough" $(ARGS)

# Whole grids where `make test` runs a part: CONTRIBUTING.md says which.
test-all: $(READY)
	$(RUN) -m pytest $(IN_TWO) -m "not large" $(ARGS)

# More than 2^31 elements: 12 GiB of memory.
test-large: $(READY)
	$(RUN) -m pytest -m large tests/test_native.py $(ARGS)

# The tests with another torch: make test-torch VERSION=2.10.0. The library is the one in use here, since it is the same for all.
# Left out is what has nothing to do with torch: how the package is built (test_package), its site (test_docs),
# CONTRIBUTING.md (test_contributing), type checkers (test_typing), and the numbers in the documents (test_numbers).
# The versions that pip has to keep to are in a file of the environment's own, whatever pip's configuration says of torch.
TORCH_ENVIRONMENT = build/torch-$(VERSION)
TORCH_INSTALL = PIP_CONSTRAINT=$(TORCH_ENVIRONMENT)/constraints.txt $(TORCH_ENVIRONMENT)/bin/python -m pip install --quiet --disable-pip-version-check
TORCH_LEFT_OUT := $(addprefix tests/,test_package.py test_docs.py test_contributing.py test_typing.py test_numbers.py)
test-torch: $(READY)
	@test -n "$(VERSION)" || { echo "Name the version of torch: make test-torch VERSION=2.10.0" >&2; exit 2; }
	test -x $(TORCH_ENVIRONMENT)/bin/python || $(RUN) -m venv $(TORCH_ENVIRONMENT)
	{ echo "torch==$(VERSION)"; grep -v "^torch\(vision\)\?=" $(CONSTRAINTS) || true; } >$(TORCH_ENVIRONMENT)/constraints.txt
	$(TORCH_INSTALL) torch accelerate expecttest hypothesis jinja2 matplotlib mpmath numpy peft platformdirs \
	  pydantic pytest pytest-xdist rich setuptools tensorboard torchmetrics transformers tyro
	$(TORCH_INSTALL) torchvision || echo "No torchvision for torch $(VERSION): the tests that need it are skipped." >&2
	$(TORCH_ENVIRONMENT)/bin/python -m torchlosses.kernels
	$(TORCH_ENVIRONMENT)/bin/python -m pytest $(IN_TWO) -m "not large and not thorough" $(addprefix --ignore=,$(TORCH_LEFT_OUT)) $(ARGS)

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

# On a machine with a GPU: the cases of the suite there, with every access to its memory watched, and the table of times.
# `make gpu` is the first and the last of them, in that order. Where no package index is reached, with a Python that has
# torch, Triton, pytest, pytest-xdist, hypothesis and tyro: make gpu READY= RUN=python3.
GPU_THERE = $(RUN) -c "import torch, triton; torch.cuda.is_available() or exit('torch ' + torch.__version__ + ' sees no GPU'); print(torch.cuda.get_device_name(), '- torch', torch.__version__, '- Triton', triton.__version__)"
gpu:
	$(MAKE) test-gpu
	$(MAKE) bench-gpu

test-gpu: $(READY)
	$(GPU_THERE)
	$(RUN) -m torchlosses.kernels
	$(RUN) -m pytest -n0 tests/gpu $(ARGS)

sanitize-gpu: $(READY)
	$(GPU_THERE)
	for tool in memcheck racecheck initcheck; do \
	  PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $$tool --error-exitcode 1 \
	    $(RUN) -m pytest -n0 -q tests/gpu -k "alignment or elementwise" $(ARGS) || exit 1; \
	done

bench-gpu: $(READY)
	$(GPU_THERE)
	$(RUN) -m benchmarks.gpu $(ARGS)

# Every causal language model of Transformers, tiny, with lazy logits: the table of docs/language_models.md.
sweep-transformers: $(READY) $(ENVIRONMENT)/.transformers
	$(RUN) -m benchmarks.transformers_sweep $(ARGS)
	$(if $(strip $(ARGS)),,$(RUN) -m benchmarks.report)

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m pyright

# The site. From scratch, so that a warning about one page is seen whichever page has changed.
docs: $(READY)
	rm -rf build/docs
	$(RUN) -m sphinx --quiet --fail-on-warning --keep-going --builder html docs build/docs
	@echo "build/docs/index.html"

# The sdist, and from it the wheel, at the level of torch's own wheels.
PLATFORM ?= manylinux_2_28_$(shell uname -m)
wheel: $(READY) $(ENVIRONMENT)/.wheel
	rm -rf build/wheel
	TORCHLOSSES_BUILD=native $(RUN) -m build --no-isolation --outdir build/wheel
	mkdir -p dist
	cp build/wheel/*.tar.gz dist
	PATH="$(abspath $(ENVIRONMENT)/bin):$$PATH" $(RUN) -m auditwheel repair --plat $(PLATFORM) --only-plat --exclude libtorch_cpu.so --wheel-dir dist build/wheel/*.whl
	$(RUN) -m auditwheel show dist/*$(PLATFORM).whl

# Copy the headers of torch that the sources include, and what those include. Building needs them, and no torch.
HEADERS := third_party/torch/include
headers: $(READY)
	installed=$$($(RUN) -c "import os, torch; print(os.path.realpath(torch.__path__[0]))")/include && \
	rules=$$($(CXX) -M -std=c++17 -DTORCH_TARGET_VERSION=0x020a000000000000 -DINSTRUCTION_SET=baseline -Itorchlosses/kernels/csrc \
	  -isystem $$installed $$(find torchlosses/kernels/csrc -name "*.cpp")) && \
	rm -rf $(HEADERS) && mkdir -p $(HEADERS) && \
	echo "$$rules" | tr -s ' \\' '\n' | grep "^$$installed/" | sed "s|^$$installed/||" | sort -u | \
	  tar --create --directory $$installed --files-from - | tar --extract --no-same-owner --directory $(HEADERS)

bench: $(READY)
	$(RUN) -m benchmarks.run $(ARGS)
	$(if $(strip $(ARGS)),,$(RUN) -m benchmarks.curves)
	$(if $(strip $(ARGS)),,$(RUN) -m benchmarks.arguments)
	$(if $(strip $(ARGS)),,$(RUN) -m benchmarks.import_time)
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

$(READY): pyproject.toml setup.py $(CONSTRAINTS) $(shell find torchlosses/kernels/csrc third_party -type f)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed; name one with make PYTHON=...")'
	test -x $(RUN) || $(PYTHON) -m venv $(ENVIRONMENT)
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) "setuptools>=77" torch numpy
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint $(CONSTRAINTS) --no-build-isolation --editable ".[training,tensorboard,docs,transformers,dev]"
	$(RUN) -m torchlosses.kernels
	touch $@
