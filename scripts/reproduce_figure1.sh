#!/usr/bin/env bash
# Figure 1 on the embedded benchmark, metrics by epoch, three seeds: results/figure1_tofu_embedded*
# --paper: the rows of the paper, LLaMA2-7B, for a cluster.  What follows goes to soul-unlearn, as seed=0 method=npo
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
sweep=figure1 out=results/figure1_tofu_embedded
if [ "${1:-}" = --paper ]; then sweep=figure1_paper out=results/figure1_tofu_paper; shift; fi
soul-unlearn sweep=$sweep output_dir=outputs/$sweep "$@"
soul-report outputs/$sweep --out $out
