"""Every shipped configuration composes and builds; every kind of mistake gets one message before any work."""

from __future__ import annotations

import pytest
import torch
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from soul_cli.cli import explain_composition as explain
from soul_cli.core.types import UserError
from soul_cli.experiment.config import CONFIGS, compose, plain
from soul_cli.objective.methods import METHODS
from soul_cli.optim.build import OPTIMS, parameter_groups


def names(group: str) -> list[str]:
    return sorted(str(p.relative_to(CONFIGS / group).with_suffix("")) for p in (CONFIGS / group).rglob("*.yaml"))


@pytest.mark.parametrize("method", names("method"))
@pytest.mark.parametrize("optim", names("optim"))
def test_every_method_with_every_optimizer(method: str, optim: str) -> None:
    config = compose([f"method={method}", f"optim={optim}"])
    assert (config.method.name, config.optim.name) == (method, optim)
    model = torch.nn.Linear(3, 2)
    assert config.optim.build(parameter_groups(model, config.optim.weight_decay)).param_groups


def test_groups_and_files_agree() -> None:
    assert set(names("method")) == set(METHODS)
    assert set(names("optim")) == set(OPTIMS)


@pytest.mark.parametrize("model", [m for m in names("model") if m != "hub"])
def test_every_model(model: str) -> None:
    assert compose([f"model={model}"]).model.template


@pytest.mark.parametrize("experiment", [e for e in names("experiment") if e.startswith("paper/")])
def test_every_row_of_the_paper(experiment: str) -> None:
    copyright = "copyright" in experiment
    config = compose([f"experiment={experiment}", *(["task.forget_books=[book.txt]"] if copyright else [])])
    assert config.task.source == ("Book" if copyright else "locuslab/TOFU")


@pytest.mark.parametrize("task", ["tofu", "copyright"])
def test_rows_of_one_table_differ_in_method_and_optimizer_alone(task: str) -> None:
    rows = [e for e in names("experiment") if e.startswith(f"paper/{task}_")]
    books = ["task.forget_books=[book.txt]"] if task == "copyright" else []
    made = {row: compose([f"experiment={row}", *books]) for row in rows}
    assert len(rows) == 9
    for row, config in made.items():
        first = made[f"paper/{task}_graddiff_fo"]
        assert (config.task, config.model, config.eval) == (first.task, first.model, first.eval)
        if config.method.trains:
            assert config.train == first.train
            assert config.optim.weight_decay == 0.1
        text = (CONFIGS / "experiment" / f"{row}.yaml").read_text(encoding="utf-8")
        assert "Differs from the" in text or "No training: nothing differs" in text


@pytest.mark.parametrize("tuned", names("tuned"))
def test_every_tuned_file_belongs_to_a_choice(tuned: str) -> None:
    task, model, rest = tuned.split("_", 2)
    method, optim = rest.split("_", 1)
    config = compose([f"task={task}", f"model={model}", f"method={method}", f"optim={optim}"])
    assert config.optim.name == optim


def test_identity_ignores_where_results_lie() -> None:
    a, b = compose(["output_dir=a", "force=true"]), compose(["output_dir=b", "save_model=true"])
    assert a.identity() == b.identity() != compose(["seed=1"]).identity()


@pytest.mark.parametrize("method", ["none", "input_based", "iu"])
def test_identity_ignores_an_optimizer_without_effect(method: str) -> None:
    a, b = (compose([f"method={method}", f"optim={optim}"]) for optim in ("adamw", "soul"))
    assert a.identity() == b.identity()
    assert "optim" not in a.plain()


def test_plain_has_no_objects() -> None:
    assert plain(compose(["optim=soul"]).optim)["hessian_data"] == "both"


def test_one_value_stands_for_a_list_of_one() -> None:
    task = compose(
        ["task=copyright", "task.forget_books=oz.txt", "task.retain_books=hub:a/b", "task.prompt_words=20"]
    ).task
    assert (task.forget_books, task.retain_books, task.prompt_words) == (["oz.txt"], ["hub:a/b"], [20])  # type: ignore[union-attr]
    assert compose(["task.forget_names=A. Author"]).task.forget_names == ["A. Author"]  # type: ignore[union-attr]
    assert compose([]).task.forget_names is None  # type: ignore[union-attr]


MISTAKES = [
    (["task=copyright", "task.prompt_words=few"], ["task.prompt_words", "few"]),
    (["task=copyright", "task.forget_books=null"], ["task.forget_books"]),
    (["task.holdout_authors=-1"], ["task.holdout_authors=-1", "0 or more"]),
    (
        ["task.holdout_authors=3", "task.target_model=a/b"],
        ["task.holdout_authors=3", "task.target_model", "non-members"],
    ),
    (
        ["task.holdout_authors=3", "task.retain_model=a/b"],
        ["task.holdout_authors=3", "task.retain_model", "non-members"],
    ),
    (["model=hub"], ["model.path"]),
    (["optim.lr=fast"], ["optim.lr", "Float"]),
    (["optim.lr=-1"], ["optim.lr", "0 or more"]),
    (["optim=soul", "optim.rho=0.1"], ["optim.rho", "optim.unclipped_share", "exactly one"]),
    (["method=npo", "retain=none", "combine=alternating"], ["combine=alternating", "retain=none", "combine=sum"]),
    (["method=finetune", "retain=none"], ["method=finetune", "retain=none"]),
    (["method=finetune", "combine=alternating"], ["no forget term", "combine=sum"]),
    (["train.normalise=batch"], ["train.normalise", "token", "row"]),
    (["method=npo", "method.normalize=median"], ["method.normalize", "sum", "mean"]),
    (["method=npo", "method.beta=0"], ["method.beta"]),
    (["method=npo", "method.beta=.nan"], ["method.beta"]),
    (["method=po", "retain.weight=.inf"], ["retain.weight"]),
    (["method=iu", "method.solver=exact"], ["method.solver", "diagonal", "cg"]),
    (["method=iu", "method.damping=0"], ["method.damping", "above 0"]),
    (["method=iu", "method.cg_steps=0"], ["method.cg_steps", "1 or more"]),
    (["method=iu", "method.hessian_every=0"], ["method.hessian_every", "1 or more"]),
    (["method=iu", "method.validation_share=1"], ["method.validation_share", "between 0 and 1"]),
    (["method=iu", "method.first_scale=0"], ["method.first_scale", "above 0"]),
    (["method=iu", "method.last_scale=1e-9"], ["method.last_scale", "not above the last"]),
    (["method=iu", "method.scale_ratio=1"], ["method.scale_ratio", "above 1"]),
    (["method=iu", "method.tolerance=-1"], ["method.tolerance", "0 or more"]),
    (["method=iu", "parallel=fsdp"], ["parallel=fsdp", "method=iu", "parallel=ddp"]),
    (["train.epochs=0"], ["train.epochs", "1 or more"]),
    (["train.precision=fp8"], ["train.precision", "bf16"]),
    (["model.template=alpaca"], ["model.template", "llama2", "chat"]),
    (["seed=one"], ["seed", "whole number"]),
    (["force=1"], ["force", "true or false"]),
    (["eval.min_k=0"], ["eval.min_k"]),
]


@pytest.mark.parametrize(("overrides", "words"), MISTAKES, ids=[" ".join(m[0]) for m in MISTAKES])
def test_mistakes_are_named(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        compose(overrides)
    assert all(w in str(error.value) for w in words), str(error.value)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["method=nposs"], ["method/nposs", "graddiff", "npo"]),
        (["combine=nggru"], ["combine/nggru", "sum", "alternating"]),
        (["optim.lrr=1"], ["lrr"]),
        (["nothing=1"], ["nothing"]),
    ],
)
def test_unknown_choices_list_what_there_is(overrides: list[str], words: list[str]) -> None:
    with pytest.raises((HydraException, OmegaConfBaseException)) as error:
        compose(overrides)
    assert all(w in explain(error.value) for w in words), explain(error.value)
