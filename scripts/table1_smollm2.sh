#!/usr/bin/env bash
# Table 1 on a real pretrained model and a part of the real TOFU data: results/table1_tofu_smollm2*
# usage: table1_smollm2.sh MODEL TOFU
#   MODEL  a folder with SmolLM2-135M-Instruct     TOFU  a copy of the TOFU data set in the hub's layout
# The two authors of forget01 (40 pairs), 10 of the retain set, 2 more held out; 60 questions of every other split; float32,
# for processors without bf16 products.  Nothing was searched: the peak rates are those of table2_smollm2.sh, a quarter with
# SOUL, the ratio of the embedded search.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
out=outputs/table1_smollm2
common="task=tofu task.source=$2 task.forget=forget01 task.retain_authors=10 task.holdout_authors=2 eval.limit=60
  model=smollm2_135m model.path=$1 model.finetune.train.accumulation=1 model.finetune.train.precision=no
  output_dir=$out train.epochs=5 train.batch_size=4 train.precision=no"
soul-unlearn -m $common method=none
soul-unlearn -m $common method=graddiff optim=adamw optim.lr=2e-5
soul-unlearn -m $common method=graddiff optim=soul optim.lr=5e-6
soul-unlearn -m $common method=po,npo optim=adamw optim.lr=1e-4
soul-unlearn -m $common method=po,npo optim=soul optim.lr=2.5e-5
soul-report $out --out results/table1_tofu_smollm2 --paper
