#!/usr/bin/env bash
# The main job on a fresh machine: environment, models, unlearning, evaluation.  Can be run again.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
soul-unlearn task=tofu method=npo optim=soul "$@"
