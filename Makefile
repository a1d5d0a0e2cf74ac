# Two commands need nothing but Python 3.11 and make: `make demo` and `make test`. Both print what they run. The first
# one installs into .venv; a later one does so again only after pyproject.toml or constraints.txt has changed.
PYTHON ?= python3
TORCH ?= torch==2.13.0
bin := .venv/bin
export NO_MKDOCS_2_WARNING := 1

.PHONY: demo test check docs docs-serve

demo: .venv/.installed
	$(bin)/python train.py model=unet var=sn_dpm

test: .venv/.installed
	$(bin)/python -m pytest

check: .venv/.installed
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy

docs: .venv/.installed-docs
	$(bin)/mkdocs build --strict

docs-serve: .venv/.installed-docs
	$(bin)/mkdocs serve

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(bin)/python -m pip install -c constraints.txt "$(TORCH)" -e ".[dev]"
	touch $@

.venv/.installed-docs: .venv/.installed
	$(bin)/python -m pip install -c constraints.txt "$(TORCH)" -e ".[docs]"
	touch $@
