# Few words: demo · test · check (= lint types test) · format · recipes · bench · docs · screenshots
PYTHON ?= python3
JOBS ?= 2
BIN := .venv/bin

.PHONY: demo test check lint types format recipes bench docs screenshots lowest

demo: .venv/base
	$(BIN)/flattail train recipes/digits-lt --seeds 0-2 --jobs $(JOBS) --device cpu --out runs --resume
	@$(BIN)/flattail report runs/digits-lt --out runs/digits-lt.html --quiet

test: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

check: lint types test

lint: .venv/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/ready
	$(BIN)/mypy

format: .venv/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

recipes: .venv/ready
	$(BIN)/python recipes/table.py

bench: .venv/ready
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/table.py

docs: .venv/ready
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	@echo "site/index.html; with its search: $(PYTHON) -m http.server -d site"

screenshots: .venv/ready
	$(BIN)/python docs/figures/screenshots.py

lowest:  # the tests with the oldest versions that pyproject.toml allows: those that have wheels for Python 3.11
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "make PYTHON=python3.11 lowest"; exit 1; }
	test -x .lowest/bin/python || $(PYTHON) -m venv .lowest
	.lowest/bin/python -m pip install --quiet uv
	.lowest/bin/uv pip install --quiet --python .lowest/bin/python --resolution lowest-direct --editable '.[dev]'
	OMP_NUM_THREADS=1 .lowest/bin/python -m pytest -n 2 --dist loadfile

.venv/base: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "flattail needs Python 3.11 or newer: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "an environment in .venv, with torch: several minutes, and up to 7 GB"
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

.venv/ready: .venv/base
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@
