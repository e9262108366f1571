"""Every shipped configuration composes and builds; every kind of mistake gets one message before any work."""

from __future__ import annotations

import os
import pwd
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from soul_cli.core.types import UserError
from soul_cli.experiment.config import CONFIGS, _check_folders, compose, plain
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
        if config.optimizes:
            assert config.train == first.train
            assert config.optim.weight_decay == 0.1
        text = (CONFIGS / "experiment" / f"{row}.yaml").read_text(encoding="utf-8")
        assert "iffers from the" in text or "No training: nothing differs" in text


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
    (["train.checkpoint_steps=25"], ["called train.checkpoint_minutes now"]),
    (["model.finetune.train.checkpoint_steps=25"], ["called model.finetune.train.checkpoint_minutes now"]),
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
    (["method=npo", "retain=none", "combine=gru"], ["combine=gru", "retain=none", "combine=sum"]),
    (["method=npo", "retain.weight=0", "combine=ngdiff"], ["combine=ngdiff", "retain.weight=0", "combine=sum"]),
    (["method=finetune", "combine=munba"], ["no forget term", "combine=sum"]),
    (["method=finetune", "perturb=sam"], ["perturb=sam", "no forget term", "perturb=none"]),
    (["combine=gru", "combine.gamma=0"], ["combine.gamma=0", "above 0"]),
    (["combine=gru", "combine.gamma=1.5"], ["combine.gamma=1.5", "at most 1"]),
    (["combine=separate", "combine.retain_steps=0"], ["combine.retain_steps=0", "1 or more"]),
    (["combine=dual", "combine.step=-1"], ["combine.step=-1", "0 or more"]),
    (["combine=dual", "combine.bound=-0.1"], ["combine.bound=-0.1", "0 or more"]),
    (["combine=dual", "combine.warmup=-1"], ["combine.warmup=-1", "0 or more"]),
    (["perturb=sam", "perturb.rho=-0.1"], ["perturb.rho=-0.1", "0 or more"]),
    (["perturb=smooth", "perturb.sigma=-1"], ["perturb.sigma=-1", "0 or more"]),
    (["perturb=smooth", "perturb.draws=0"], ["perturb.draws=0", "1 or more"]),
    (["perturb=lat", "perturb.steps=-1"], ["perturb.steps=-1", "0 or more"]),
    (["perturb=lat", "perturb.layer=-1"], ["perturb.layer=-1", "0 or more"]),
    (["perturb=lat", "perturb.epsilon=-1"], ["perturb.epsilon=-1", "0 or more"]),
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
    (["train.precision=fp8"], ["train.precision", "auto, bf16 or no"]),
    (["model.template=alpaca"], ["model.template", "llama2", "chat"]),
    (["seed=one"], ["seed", "whole number"]),
    (["force=1"], ["force", "true or false"]),
    (["eval.min_k=0"], ["eval.min_k"]),
    (["eval.judge=foo"], ["eval.judge='foo'", "rougeL, sbert"]),
    (["eval.judge=null"], ["eval.judge", "must have a value"]),
    (["seed=-1"], ["seed=-1", "from 0 to 4294967295"]),
    (["seed=4294967296"], ["seed=4294967296", "from 0 to 4294967295"]),
    (["target_seed=-1"], ["target_seed=-1", "from 0 to 4294967295"]),
    (["target_seed=4294967296"], ["target_seed=4294967296"]),
    (["seed=null"], ["seed=null", "whole number"]),
    (["output_dir=null"], ["output_dir=null", "must be text"]),
    (["output_dir=1.5"], ["output_dir=1.5", "must be text"]),
    (["output_dir=true"], ["output_dir=true", "must be text"]),
    (["output_dir="], ["output_dir", "must be text"]),
    (["output_dir='\udcff'"], ["output_dir", "must be text"]),  # a byte that is not UTF-8
    (["cache_dir=[a]"], ["cache_dir=[a]", "must be text"]),
    (["trackers=tensorboard"], ["trackers=tensorboard: must be a list: trackers=[tensorboard]"]),
    (["trackers=null"], ["trackers=null", "must be a list"]),
    (["trackers=[1]"], ["trackers=[1]", "must be a list"]),
    (["trackers=[nothing]"], ["nothing", "not installed or not known to Accelerate"]),
    (["parallel=ddpp"], ["parallel=ddpp", "ddp, fsdp"]),
    (["gpu=v100"], ["gpu=v100", "h100_80g"]),
    (["gpus=0"], ["gpus=0", "1 or more"]),
    (["task.template=alpaca"], ["task.template", "llama2", "chat"]),
    (["task.forget=forgot"], ["task.forget='forgot'", "forget10"]),
    (["task.holdout_authors=-1"], ["task.holdout_authors=-1", "0 or more"]),
    (["task.retain_authors=0"], ["task.retain_authors=0", "1 or more"]),
    (["task=copyright", "task.eval_chunks=0"], ["task.eval_chunks=0", "1 or more"]),
    (["task.source=null"], ["task.source", "must have a value"]),
    (["train=null"], ["train=null", "group of keys", "train.KEY=VALUE"]),
    (["train=3"], ["train=3", "group of keys"]),
    (["train.clip=nan"], ["train.clip=nan"]),
    (["optim=adamw", "optim.eps=-1"], ["optim.eps=-1", "0 or more"]),
    (["optim=soul_released", "optim.bs=0"], ["optim.bs=0", "1 or more"]),
    (["optim=soul_released", "optim.rho=0"], ["optim.rho=0", "above 0"]),
    (["model.max_length=0"], ["model.max_length=0", "2 or more"]),
    (["+nothing=3"], ["no key nothing"]),
    (["~seed"], ["no seed"]),
]


@pytest.mark.parametrize(("given", "kept"), [("20261127", "20261127"), ('"1.5"', "1.5"), ("'a b'", "a b")])
def test_folders_keep_the_name_that_was_typed(given: str, kept: str) -> None:
    assert compose([f"output_dir={given}"]).output_dir == kept


def test_one_text_stands_for_a_list_of_one() -> None:
    config = compose(["task=copyright", "task.forget_books=oz.txt", "task.retain_books=[a.txt,b.txt]"])
    assert (config.task.forget_books, config.task.retain_books) == (["oz.txt"], ["a.txt", "b.txt"])
    assert compose(["task.forget_names=Katesa"]).task.forget_names == ["Katesa"]


def test_keys_may_refer_to_others() -> None:
    assert compose(["eval.limit=7", "epoch_eval.limit=${eval.limit}"]).epoch_eval.limit == 7


# --- folders -----------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("")
    return tmp_path / "file"


@pytest.mark.parametrize("key", ["output_dir", "cache_dir"])
@pytest.mark.parametrize("below", ["", "/a/b"])
def test_a_file_is_no_folder(file: Path, key: str, below: str) -> None:
    with pytest.raises(UserError, match=f"{key}={file}{below}: {file} is not a folder"):
        compose([f"{key}={file}{below}"])


def as_another_user(act: Callable[[], object]) -> str:
    """What `act` says, UserError or not, to a user who owns nothing."""
    if os.getuid():
        pytest.skip("needs to be root")
    receive, send = os.pipe()
    if not os.fork():
        os.setgroups([])
        os.setgid(54321)
        os.setuid(54321)
        try:
            text = f"{act()}"
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(send, text.encode())
        os._exit(0)
    os.close(send)
    with os.fdopen(receive) as pipe:
        return pipe.read()


def test_folders_of_another_user(tmp_path: Path) -> None:
    open_to_all(tmp_path)
    mine = tmp_path / "mine"
    mine.mkdir(mode=0o755)
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    shared, configs = tmp_path / "shared", {}
    for out, cache in ((mine / "out", shared), (shared, mine), (shared, mine / "new")):
        configs[out, cache] = compose([f"output_dir={out}", f"cache_dir={cache}"])
    said = [as_another_user(lambda c=c: _check_folders(c)) for c in configs.values()]
    assert said[0].startswith(f"UserError: output_dir={mine}/out: you may not write in {mine}; name another")
    assert said[1] == "None"  # what is there can be read
    assert said[2].startswith(f"UserError: cache_dir={mine}/new: you may not write in {mine}")
    assert "SOUL_CACHE" in said[2]


def open_to_all(folder: Path) -> None:
    """Let every user come to a folder."""
    for part in (folder, *folder.parents):
        if part.stat().st_uid == os.getuid() and part != Path("/"):
            part.chmod(part.stat().st_mode | 0o055)


@pytest.mark.parametrize(
    ("environment", "found"),
    [
        ({"SOUL_CACHE": "/a"}, "/a"),
        ({"SOUL_CACHE": "", "XDG_CACHE_HOME": "/x"}, "/x/soul-unlearn"),
        ({"XDG_CACHE_HOME": "/x", "HOME": "/h"}, "/x/soul-unlearn"),
        ({"XDG_CACHE_HOME": "", "HOME": "/h"}, "/h/.cache/soul-unlearn"),
        ({"XDG_CACHE_HOME": "relative", "HOME": "/h"}, "/h/.cache/soul-unlearn"),
        ({"SOUL_CACHE": "~/mine", "HOME": "/h"}, "/h/mine"),
    ],
)
def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], found: str) -> None:
    for name in ("SOUL_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert str(compose(["plan=true"]).cache) == found
    assert str(compose(["plan=true", "cache_dir=/given"]).cache) == "/given"


def test_without_a_home_a_folder_must_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("SOUL_CACHE")
    monkeypatch.setattr(pwd, "getpwuid", {}.__getitem__)  # a user whom the system does not know
    with pytest.raises(UserError, match="no such home folder; name another, cache_dir=FOLDER or SOUL_CACHE=FOLDER"):
        compose([])
    with pytest.raises(UserError, match="output_dir=~/out: there is no such home"):
        compose(["cache_dir=/tmp/c", "output_dir='~/out'"])
    assert compose(["cache_dir=/tmp/c"]).cache == Path("/tmp/c")


# --- mistakes ----------------------------------------------------------------------------------------------


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
        (["experiment=paper"], ["paper/tofu_npo_so", "llama2_7b/lora"]),
        (["sweep=none"], ["table1", "compare"]),
        (["method=null"], ["chosen by name", "method=npo"]),
        (["seed=${nothing}"], ["seed: ", "'nothing' not found"]),
        (["seed=${oc.env:NOTHING_HERE}"], ["seed: ", "NOTHING_HERE"]),
        (["noequals"], ["'noequals' is not KEY=VALUE"]),
        (["-x=1"], ["'-x=1' is not KEY=VALUE"]),
        (["task.source=~/tofu"], ["Type 'task.source=\"~/tofu\"'"]),
        (["task.source=a=b"], ["Type 'task.source=\"a=b\"'"]),
        (["output_dir=café"], ["Type 'output_dir=\"café\"'"]),
        (["output_dir=it's"], ["""Type 'output_dir="it'"'"'s"'"""]),
        (["task.forget_books=[~/a.txt,b.txt]"], ["Type 'task.forget_books=[\"~/a.txt\",b.txt]'"]),
    ],
)
def test_unreadable_command_lines_say_what_to_type(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        compose(overrides)
    text = str(error.value)
    assert all(w in text for w in words), text
    assert "\n" not in text
