# make train   fine-tune on the bundled reviews     make test   run the tests
# make lint    ruff and mypy                        make docs   renew docs/config.md after editing config.py
# make lock    renew the locks after editing requirements*.in
PYTHON ?= python3
BIN := .venv/bin

.PHONY: train test lint docs lock

train: .venv/installed
	$(BIN)/python train.py --config configs/reviews.yaml

test: .venv/installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/installed
	$(BIN)/python -m docs.config_reference > .venv/config.md && mv .venv/config.md docs/config.md

# The locks are complete, so pip need not resolve anything: --no-deps keeps out what the embedded encoder's package
# declares but the project does not use (PyTorch).
.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { echo "hubtune needs Python 3.11, 3.12 or 3.13: make PYTHON=/path/to/python3.12"; exit 1; }
	@echo "Setting up .venv: TensorFlow and what goes with it, about 2 minutes and 3.7 GB, once"
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements.txt
	@if command -v nvidia-smi >/dev/null; then \
		echo "Adding the CUDA libraries for the NVIDIA GPU"; \
		$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements-gpu.txt; \
	fi
	@touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
	@echo "Adding the tools for tests and lint"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -r requirements-dev.txt
	@touch $@

lock: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes requirements.in -o requirements.txt
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes requirements-dev.in -o requirements-dev.txt
	$(BIN)/uv pip compile --quiet --python-version 3.11 --python-platform linux --no-annotate requirements-gpu.in -o .venv/gpu.txt
	{ grep "^#" requirements-gpu.in; grep "^nvidia" .venv/gpu.txt; } > requirements-gpu.txt
