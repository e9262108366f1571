#!/usr/bin/env bash
# Table 1 on the embedded benchmark, three seeds: results/table1_tofu_embedded*
# --paper: the rows of the paper, LLaMA2-7B, for a cluster.  What follows goes to soul-unlearn, as seed=0,1,2,3,4
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
sweep=table1 out=results/table1_tofu_embedded
if [ "${1:-}" = --paper ]; then sweep=table1_paper out=results/table1_tofu_paper; shift; fi
soul-unlearn sweep=$sweep output_dir=outputs/$sweep "$@"
soul-report outputs/$sweep --out $out --paper
