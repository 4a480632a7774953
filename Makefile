# Two commands do all the set-up: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= demo-output

.PHONY: demo test lint fuzz figures docs wheel-test clean

$(VENV)/.runtime: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, found " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(BIN)/pip install --quiet --editable '.[dev]'
	# The oracle of the text normalisers; with its dependencies it would bring a compiler.
	$(BIN)/pip install --quiet --no-deps 'openai-whisper>=20250625' || echo 'no openai-whisper: its normaliser tests will skip'
	touch $@

demo: $(VENV)/.runtime
	$(BIN)/wkt demo -o $(OUT) --force

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest -n auto --dist worksteal
	$(MAKE) wheel-test

# The property tests on examples drawn anew, which `make test` leaves out to be repeatable, and files of every kind
# mutated and read, for SECONDS with SEED.
SECONDS ?= 60
SEED ?= 0
fuzz: $(VENV)/.dev
	$(BIN)/python -m tests.fuzzing --seconds $(SECONDS) --seed $(SEED)
	$(BIN)/python -m pytest -n auto --hypothesis-profile fuzz $$(grep -rl --include='test_*.py' '^from hypothesis' tests)

# Write the command reference from the commands' own help.
docs: $(VENV)/.runtime
	$(BIN)/python -m whisperkit_tools.cli.reference > docs/cli.md

# Render docs/figures.md from the stored figures. NAMES measures these again first (`all` for every one, which takes
# hours), AUDIO names recordings for those that need some, CHECKPOINT a checkpoint.
figures: $(VENV)/.dev
	$(BIN)/python -m tests.benchmarks figures $(NAMES) $(if $(AUDIO),--audio $(AUDIO)) $(if $(CHECKPOINT),--checkpoint $(CHECKPOINT))

wheel-test: $(VENV)/.dev
	BIN=$(abspath $(BIN)) sh tests/wheel_smoke.sh

clean:
	rm -rf build dist demo-output .mypy_cache .ruff_cache .pytest_cache
