# Every target sets up what it needs in .venv; nothing else is touched.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup demo test test-all check golden bench zoo clean

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "locdistill needs Python >= 3.11; run: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

demo: $(READY)
	$(BIN)/locdistill demo

test: $(READY)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

test-all: $(READY)
	$(BIN)/python -m tests.full_run

golden: $(READY)
	$(BIN)/python -m pytest -m golden

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy -p benchmarks

bench: $(READY)
	$(BIN)/python benchmarks/breakdown.py
	$(BIN)/python -m benchmarks.step
	$(BIN)/python -m benchmarks.rotated

zoo: $(READY)
	$(BIN)/python -m benchmarks.zoo

clean:
	rm -rf .venv build runs .pytest_cache .mypy_cache .ruff_cache
