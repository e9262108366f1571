#!/usr/bin/env bash
# What the package needs beside torch, transformers, accelerate, peft, pandas and pytest, as wheels for a machine without
# a network: Python 3.12 on x86-64 Linux; about 10 MB.
# usage: gpu_wheels.sh FOLDER
# There:  python3 -m pip install --no-index --no-deps --target SITE FOLDER/*.whl; export PYTHONPATH=SITE:REPOSITORY
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${1:?usage: gpu_wheels.sh FOLDER}
pip() { python3 -m pip "$@" --quiet --disable-pip-version-check --no-deps -c scripts/constraints.txt; }
mkdir -p "$out"
pip download --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 \
  --platform manylinux2014_x86_64 -d "$out" \
  hydra-core omegaconf nltk defusedxml datasets dill multiprocess pytorch-optimizer
pip wheel -w "$out" antlr4-python3-runtime rouge-score  # known to the registry as source alone
du -sh "$out"
