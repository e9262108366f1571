#!/usr/bin/env bash
# Lint, format, types, tests on two processes.  Can be run again; arguments go to pytest.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
export HF_HUB_OFFLINE=1
ruff check .
ruff format --check .
mypy
pytest -n 2 --dist worksteal "$@"  # neighbours share what their file makes
