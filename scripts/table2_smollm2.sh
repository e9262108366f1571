#!/usr/bin/env bash
# Table 2 on a real pretrained model: results/table2_copyright_smollm2*
# usage: table2_smollm2.sh MODEL BOOKS DATA
#   MODEL  a folder with SmolLM2-135M-Instruct     BOOKS  a folder with two books, oz01_*.txt and alice_*.txt
#   DATA   a folder with the documents of lm-eval's tasks (see soul_cli/evaluate/general.py)
# 40 passages of Oz are forgotten, 36 of Alice kept, 4 held out.  Nothing was searched: peak rates are 2e-5 for GA and
# GradDiff, 1e-4 for PO and NPO with AdamW, and a quarter of that with SOUL, the ratio of the embedded search.
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
pip install --quiet --disable-pip-version-check -c scripts/constraints.txt -e '.[lm-eval]'
out=outputs/table2_smollm2
common="task=copyright model=smollm2_135m model.path=$1 output_dir=$out task.max_chunks=40 task.eval_chunks=12
  task.forget_books=[$(echo "$2"/oz01_*.txt)] task.retain_books=[$(echo "$2"/alice_*.txt)]
  eval.lm_eval.tasks=[general] eval.lm_eval.data_dir=$3 eval.lm_eval.limit=${LIMIT:-2} eval.lm_eval.max_length=1024
  train.epochs=3 train.batch_size=4 train.precision=bf16"
soul-unlearn -m $common method=none,input_based
soul-unlearn -m $common method=ga optim=adamw optim.lr=2e-5
soul-unlearn -m $common method=ga optim=soul optim.lr=5e-6
soul-unlearn -m $common method=graddiff optim=adamw optim.lr=2e-5 retain.weight=5
soul-unlearn -m $common method=graddiff optim=soul optim.lr=5e-6 retain.weight=5
soul-unlearn -m $common method=po optim=adamw optim.lr=1e-4
soul-unlearn -m $common method=po optim=soul optim.lr=2.5e-5
soul-unlearn -m $common method=npo optim=adamw optim.lr=1e-4 retain.weight=5 method.beta=0.02
soul-unlearn -m $common method=npo optim=soul optim.lr=2.5e-5 retain.weight=5 method.beta=0.02
soul-report $out --out results/table2_copyright_smollm2 --paper
