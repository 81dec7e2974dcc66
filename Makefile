# `make` or `make help` lists the targets with the text after their ##.
PYTHON ?= python
PYTEST ?= $(PYTHON) -m pytest
.DEFAULT_GOAL := help
.PHONY: help install test test-slow test-oldest coverage lint format types pages pages-check docs docs-serve notebooks tables build wheel-test clean

help: ## Show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-13s %s\n", $$1, $$2}'

install: ## Install the package with everything that developers need, and the git hooks
	$(PYTHON) -m pip install -e ".[dev]"
	pre-commit install

test: ## Run the tests on all cores (a few minutes)
	$(PYTEST) -n auto --dist loadfile

test-slow: ## Run the slow tests: killed runs, launched processes, the wheel
	$(PYTEST) -m slow

test-oldest: ## Run the tests with the oldest torch, transformers and accelerate, in .venv-oldest
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install -e ".[test]" -c constraints-oldest.txt
	.venv-oldest/bin/python -m pytest -n auto --dist loadfile

coverage: ## Run the tests and report which lines and branches they reach (htmlcov/)
	$(PYTEST) -n auto --dist loadfile --cov --cov-report=term --cov-report=html

lint: ## Check style
	ruff check .
	ruff format --check .

format: ## Correct style
	ruff check --fix .
	ruff format .

types: ## Check types
	mypy sam_hf

pages: ## Write the tables of methods and arguments from the code
	$(PYTHON) docs/make_methods.py
	$(PYTHON) docs/make_arguments.py

pages-check: ## Fail if one of these tables differs from the code
	$(PYTHON) docs/make_methods.py --check
	$(PYTHON) docs/make_arguments.py --check

docs: pages-check ## Build the site into site/, with warnings as errors
	$(PYTHON) -m mkdocs build --strict

docs-serve: ## Show the site while you write
	$(PYTHON) -m mkdocs serve

notebooks: ## Execute the notebooks with tiny settings
	$(PYTEST) tests/site/test_notebooks.py

tables: ## Write the tables of results into README and docs from benchmarks/results
	$(PYTHON) benchmarks/tables.py

build: ## Build sdist and wheel into dist/
	$(PYTHON) -m build

wheel-test: ## Build both and test the wheel in an environment without the source
	$(PYTEST) -m slow tests/site/test_wheel.py

clean: ## Remove what was built
	rm -rf build dist site htmlcov .coverage .coverage.* *.egg-info .venv-oldest
