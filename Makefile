# The same checks as .ci/run, one by one, in the environment that is active.

.PHONY: help setup format format-check lint types layers test docs wheel check

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

setup: ## install the package, editable, with everything that development needs
	python -m pip install -e '.[dev]'

format: ## rewrite the sources in the house format
	ruff format .
	ruff check --fix-only --quiet .

format-check: ## fail if `make format` would change a file
	ruff format --check .

lint: ## rules of pyproject.toml, each exception with its reason
	ruff check .

types: ## mypy, strict
	mypy

layers: ## no module imports from a layer above its own
	lint-imports

test: ## all tests, with coverage
	pytest --cov -n auto

docs: ## write docs/cli.md from the commands' own help
	python tools/write_cli_reference.py

wheel: ## build the wheel into dist/
	python -m build --wheel --outdir dist

check: format-check lint types layers test wheel ## all of the above
