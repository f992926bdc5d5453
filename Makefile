# Two commands are all a newcomer needs: `make demo` and `make test`.
# Every target can be run again at any time; what is there already is kept.

VENV   ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed

.PHONY: help venv demo test lint bench schedules-table arm-check reference constraints clean

help:
	@echo "make demo         a private note steers a cloud model's answer, on real weights"
	@echo "make test         the test suite"
	@echo "make lint         format, lint, types, and who may import whom"
	@echo "make bench        speed on this machine (docs/benchmarks.md)"
	@echo "make schedules-table RECORDINGS=DIR   docs/schedules.csv anew from recorded answers"
	@echo "make arm-check BUNDLE=DIR   the same tokens on emulated arm64 (needs qemu-user, debootstrap)"
	@echo "make reference    docs/cli.md anew from the code"
	@echo "make constraints  resolve every dependency anew into constraints.txt"
	@echo "make clean        forget the virtual environment and all that was made"

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make: Python 3.11 or newer is needed (got $$($(PYTHON) --version)). Say which with make PYTHON=..."; exit 3; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar on -c constraints.txt -e ".[dev]"
	@touch $@

demo: $(STAMP)
	@$(BIN)/costeer demo $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(STAMP)
	$(BIN)/python -m benchmarks $(ARGS)

schedules-table: $(STAMP)
	$(BIN)/python -m benchmarks.schedules $(RECORDINGS) --csv docs/schedules.csv

arm-check: $(STAMP)
	PYTHON=$(BIN)/python benchmarks/arm_check.sh $(BUNDLE)

reference: $(STAMP)
	$(BIN)/python docs/reference.py

# A throw-away environment, so that nothing installed by hand slips in.
constraints:
	rm -rf build/resolve && $(PYTHON) -m venv build/resolve
	build/resolve/bin/python -m pip install --disable-pip-version-check -e ".[dev,cluster]"
	{ echo "# The whole resolved set, so that tomorrow's install is today's (Python 3.11, Linux x86_64)."; \
	  echo "# Regenerate with: make constraints"; \
	  build/resolve/bin/python -m pip freeze --exclude-editable | sed 's/+cpu$$//'; } > constraints.txt.new
	mv constraints.txt.new constraints.txt
	rm -rf build/resolve

clean:
	rm -rf $(VENV) build dist *.egg-info demo-out .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache .grimp_cache
