#!/usr/bin/env bash
# Table 2 on the embedded benchmark, three seeds: results/table2_copyright_embedded*
# --paper: the rows of the paper, LLaMA2-7B, for a cluster.  What follows goes to soul-unlearn, as seed=0,1,2,3,4
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
sweep=table2 out=results/table2_copyright_embedded
if [ "${1:-}" = --paper ]; then sweep=table2_paper out=results/table2_copyright_paper; shift; fi
soul-unlearn sweep=$sweep output_dir=outputs/$sweep "$@"
soul-report outputs/$sweep --out $out --paper
