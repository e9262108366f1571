"""Two processes on gloo give what one gives: training (whole and sharded), evaluation, caches, kills, the command."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from functools import cache, partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from runs import TINY, finish, numbers, only_run
from term_rows import rows_for
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from soul_cli.core import cost, distributed, interrupt
from soul_cli.core.cache import Cache
from soul_cli.core.files import read_lines
from soul_cli.core.run_folder import WORK, RunFolder
from soul_cli.core.screen import bar
from soul_cli.core.types import QA, Metric, Prompted, UserError
from soul_cli.data.embedded import write_layout
from soul_cli.data.encode import Encoder
from soul_cli.data.generator import generate_authors
from soul_cli.data.rows import NO_ROWS, Rows
from soul_cli.experiment.config import RunConfig, compose
from soul_cli.experiment.context import Context
from soul_cli.experiment.evaluation import evaluate
from soul_cli.experiment.models import save
from soul_cli.experiment.run import run
from soul_cli.experiment.unlearning import alternatives
from soul_cli.models import load as models
from soul_cli.models.load import ModelRef
from soul_cli.objective.edit import IU
from soul_cli.objective.forget.preference import AltPO
from soul_cli.objective.term import Kinds
from soul_cli.optim import curvature
from soul_cli.train.influence import Influence
from soul_cli.train.loop import TrainData, Trainer

PARALLEL = ("ddp", "fsdp")
TOLERANCE = 1e-8
COMMON = ["optim.lr=1e-3", "train.epochs=2", "train.batch_size=3", "train.accumulation=2"]
CASES = {
    "adamw": ["optim=adamw"],
    "soul": ["optim=soul", "optim.hessian_every=2"],
    "soul, rho given": ["optim=soul", "optim.rho=1", "optim.unclipped_share=null", "optim.hessian_data=forget"],
    "soul, alternating": ["optim=soul", "optim.hessian_every=2", "combine=alternating"],
    "soul_released": ["optim=soul_released"],
    "soul, kl": ["optim=soul", "optim.hessian_every=2", "optim.hessian_rows=null", "retain=kl"],
    "muon": ["optim=muon", "method=finetune"],
    "soul, dpo": ["method=dpo", "optim=soul", "optim.hessian_every=2"],
    "soul, rmu": ["method=rmu", "method.layer=0", "optim=soul", "optim.hessian_every=2"],
    "adamw, undial": ["method=undial", "optim=adamw"],
    "gru": ["optim=adamw", "combine=gru", "train.batch_size=1", "train.accumulation=6"],  # two rows go together
    "soul, sam": ["optim=soul", "optim.hessian_every=2", "optim.hessian_rows=1", "perturb=sam", "perturb.rho=0.1"],
    "alternating, kl, by rows": ["optim=adamw", "retain=kl", "combine=alternating", "train.normalise=row"],
}

# --- two processes that are started once -------------------------------------------------------------------


def serve(wire: Connection) -> None:
    """A process of the pair: call what comes, send back what it returns, or the exception."""
    distributed.start()
    gc.freeze()  # what has been imported is no garbage
    while True:
        act = wire.recv()
        try:
            wire.send((act(), None))
        except BaseException as error:
            wire.send((traceback.format_exc(), error))


class Pair:
    """Two processes in one process group."""

    def __init__(self) -> None:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            port = str(s.getsockname()[1])
        context = multiprocessing.get_context("spawn")
        self.wires, self.processes = [], []
        for rank in "01":
            env = {
                "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
                "OMP_NUM_THREADS": "1",
            }  # fmt: skip
            with pytest.MonkeyPatch.context() as patch:
                for key, value in env.items():
                    patch.setenv(key, value)
                ours, theirs = context.Pipe()
                process = context.Process(target=serve, args=(theirs,), daemon=True)
                process.start()
            self.wires.append(ours)
            self.processes.append(process)

    def begin(self, act: Callable[..., Any], *args: Any) -> None:
        for wire in self.wires:
            wire.send(partial(act, *args))

    def attempt(self, act: Callable[..., Any], *args: Any) -> list[tuple[Any, BaseException | None]]:
        self.begin(act, *args)
        for wire in self.wires:
            assert wire.poll(300), "a process does not answer"
        return [wire.recv() for wire in self.wires]

    def __call__(self, act: Callable[..., Any], *args: Any) -> list[Any]:
        answers = self.attempt(act, *args)
        assert [error for _, error in answers] == [None, None], "\n".join(str(text) for text, _ in answers)
        return [value for value, _ in answers]

    def alive(self) -> bool:
        return all(process.is_alive() for process in self.processes)

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


@pytest.fixture(scope="module")
def pairs() -> Iterator[list[Pair]]:
    started: list[Pair] = []
    yield started
    for some in started:
        some.kill()


@pytest.fixture
def pair(pairs: list[Pair]) -> Pair:
    """The same one until a test kills it."""
    if not (pairs and pairs[-1].alive()):
        pairs.append(Pair())
    return pairs[-1]


def assert_close(a: Any, b: Any) -> None:
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_close(a[key], b[key])
    elif isinstance(a, list):
        for x, y in zip(a, b, strict=True):
            assert_close(x, y)
    else:
        assert a == (b if b is None or isinstance(b, str) else pytest.approx(b, rel=TOLERANCE, abs=TOLERANCE))


# --- who does what -----------------------------------------------------------------------------------------


def gathered(n: int) -> list[int]:
    return distributed.gather([10 * i for i in distributed.share(list(range(n)))])


@pytest.mark.parametrize("n", [0, 1, 2, 5])
def test_shares_come_back_in_order(pair: Pair, n: int) -> None:
    expected = [10 * i for i in range(n)]
    assert gathered(n) == expected
    assert pair(gathered, n) == [expected, expected]


def refused() -> None:
    distributed.once(lambda: (_ for _ in ()).throw(UserError(f"no, says rank {distributed.rank()}")))


def test_rank_0_acts_alone_and_its_error_is_everyones(pair: Pair) -> None:
    assert pair(distributed.once, os.getpid) == [pair.processes[0].pid] * 2
    for _, error in pair.attempt(refused):
        assert isinstance(error, UserError)
        assert str(error) == "no, says rank 0"
    assert pair(distributed.once, os.getpid) == [pair.processes[0].pid] * 2  # they are still in step


def taken_in_turn(folder: Path, failing: int) -> int:
    """Act alone in the folder for a while."""

    def act() -> int:
        if distributed.rank() == failing:
            raise UserError(f"no, says rank {failing}")
        (folder / "busy").touch(exist_ok=False)
        time.sleep(0.2)
        (folder / "busy").unlink()
        return distributed.rank()

    return distributed.in_turn(act, torch.device("cpu"))


def test_one_acts_after_the_other(pair: Pair, tmp_path: Path) -> None:
    assert pair(taken_in_turn, tmp_path, -1) == [0, 1]
    for failing in (0, 1):
        errors = [str(error) for _, error in pair.attempt(taken_in_turn, tmp_path, failing)]
        assert errors == [f"no, says rank {failing}"] * 2


def entry(root: Path, broken: bool) -> tuple[Path, list[str]]:
    """Get a cache entry that needs both processes -> its path, and what was built here."""
    built: list[str] = []

    def build(work: Path, out: Path) -> None:
        built.append(work.name)
        if broken:
            raise UserError("not today")
        names = distributed.everyone(f"rank {distributed.rank()}")
        if distributed.main():
            (out / "names").write_text(" ".join(names))

    get = partial(Cache(root, print).get, "models", {"seed": 0})
    return distributed.together(get, build), built


def test_cache_entries_are_built_together_and_once(pair: Pair, tmp_path: Path) -> None:
    assert {str(error) for _, error in pair.attempt(entry, tmp_path, True)} == {"not today"}
    for times in (1, 0):
        (path, *built), other = pair(entry, tmp_path, False)
        assert other == (path, *built)
        assert (path / "names").read_text() == "rank 0 rank 1"
        assert len(built[0]) == times
    (path / "names").write_text("damaged")
    assert [len(built) for _, built in pair(entry, tmp_path, False)] == [1, 1]


def summed(bucket: int) -> list[list[float] | None]:
    """Gradients after the sum: of a parameter both processes used, two that only the second used, one that none did."""
    rank = distributed.rank()
    params = [torch.zeros(4, 3, dtype=torch.float64), torch.zeros(5), torch.zeros(2), torch.zeros(1)]
    params[0].grad = torch.arange(12.0, dtype=torch.float64).view(3, 4).T + rank  # not contiguous
    if rank:
        params[1].grad, params[2].grad = torch.full((5,), 7.0), torch.full((2,), 8.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(distributed, "BUCKET", bucket)
        distributed.total_gradients(params)
    return [None if p.grad is None else p.grad.T.flatten().tolist() for p in params]


@pytest.mark.parametrize("bucket", [1, 6, 100])
def test_gradients_are_summed_and_a_process_without_rows_counts_as_zeros(pair: Pair, bucket: int) -> None:
    expected = [[2.0 * i + 1 for i in range(12)], [7.0] * 5, [8.0] * 2, None]
    assert pair(summed, bucket) == [expected, expected]


def strided(stride: int) -> list[int]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    whole = torch.arange(21).view(7, 3)
    part = distribute_tensor(whole, init_device_mesh("cpu", (2,)), [Shard(0)])
    return distributed.all_values(distributed.every(part, stride), part).sort().values.tolist()


@pytest.mark.parametrize("stride", [1, 2, 5, 13, 30])
def test_strided_samples_do_not_depend_on_sharding(pair: Pair, stride: int) -> None:
    assert pair(strided, stride) == [list(range(0, 21, stride))] * 2


# --- training ----------------------------------------------------------------------------------------------


def rows(count: int, seed: int) -> list[Prompted]:
    """Random prompts of 2-5 and answers of 2-9 tokens."""
    draw = random.Random(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw.randint(3, 46) for _ in range(draw.randint(low, high)))

    return [Prompted(ids(2, 5), ((*ids(1, 8), 2),)) for _ in range(count)]


# 7 rows in micro-batches of 3, 2 a step: 3 + 3, then a single row, of which an alternating phase gives one process none
FORGET, RETAIN = rows(7, seed=1), rows(11, seed=2)
Trained = tuple[list[dict[str, Any]], dict[str, Tensor], list[tuple[float, int]]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A Llama in float64 of varied answers, and an odd number of tokens to shard."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 1, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=256, initializer_range=0.2, tie_word_embeddings=True,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(config).to(torch.float64).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def load(folder: Path) -> Any:
    return models.load(ModelRef(str(folder), ""), "cpu", "float64")


def encoder(folder: Path) -> Encoder:
    return Encoder(models.load_tokenizer(ModelRef(str(folder), "")), "plain", 256)


@cache
def settings(case: str) -> RunConfig:
    return compose([*COMMON, *CASES[case], "train.checkpoint_minutes=0"])


def interrupted() -> None:
    raise KeyboardInterrupt


def train(
    model: Path, work: Path, case: str, parallel: str, stop: int = 0, end: Callable[[], None] = interrupted,
    **options: bool,
) -> Trained:  # fmt: skip
    """-> records, weights, and the (number, label) pairs that the curvature drew, in order of the numbers.

    stop: the step after which `end` is called.
    """
    config = settings(case)
    lm, drawn, sample = load(model), [], curvature.sample_labels

    def recorded(logits: Tensor, u: Tensor) -> Tensor:
        labels = sample(logits, u)
        drawn.extend(zip(u.tolist(), labels.tolist(), strict=True))
        return labels

    def progress(done: int, total: int, record: dict[str, float]) -> None:
        if done == stop:
            end()

    terms = config.problem.terms  # type: ignore[union-attr]
    rows = {kind: rows_for(terms[kind], some, 32) if kind in terms else NO_ROWS
            for kind, some in ((Kinds.forget, FORGET), (Kinds.retain, RETAIN))}  # fmt: skip
    data = TrainData(lambda epoch: rows[Kinds.forget], rows[Kinds.retain])
    sharded = parallel == "fsdp" and distributed.world() > 1
    accelerator = distributed.start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curvature, "sample_labels", recorded)
        options |= {"sharded": sharded}
        trainer = Trainer(lm, data, config.problem, config.optim, config.train, 3, accelerator, **options)
        records = trainer.train(work, progress)
    save(lm, encoder(model), work / "model")
    labels = sorted(pair for some in distributed.everyone(drawn) for pair in some)
    return records, load(work / "model").state_dict(), labels


def assert_same(a: Trained, b: Trained, tolerance: float = TOLERANCE) -> None:
    assert len(a[0]) == len(b[0])
    for x, y in zip(a[0], b[0], strict=True):
        assert x.keys() == y.keys()
        for key in x.keys() - {"tokens_per_s"}:
            assert x[key] == pytest.approx(y[key], rel=tolerance, abs=tolerance), key
    torch.testing.assert_close(a[1], b[1], rtol=0, atol=tolerance)
    assert a[2] == b[2]


@pytest.fixture(scope="module")
def by_one(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    """What one process comes to in a case."""
    return cache(lambda case: train(model, tmp_path_factory.mktemp("one"), case, "ddp"))


@pytest.fixture(scope="module")
def by_two(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Pair, str, str], Trained]:
    """What a pair of processes comes to in a case, without a stop."""
    done: dict[tuple[str, str], Trained] = {}

    def trained(pair: Pair, case: str, parallel: str) -> Trained:
        if (case, parallel) not in done:
            done[case, parallel] = pair(train, model, tmp_path_factory.mktemp("two"), case, parallel)[0]
        return done[case, parallel]

    return trained


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one(
    pair: Pair, by_one: Callable[[str], Trained], model: Path, tmp_path: Path, case: str
) -> None:
    one = by_one(case)
    assert bool(one[2]) is case.startswith("soul,") or case == "soul"
    for parallel in PARALLEL:
        two = pair(train, model, tmp_path / parallel, case, parallel)
        for trained in two:
            assert_same(trained, one)
        kept = tmp_path / parallel / "checkpoint"
        assert (kept / "tensors.safetensors").is_file() is (parallel == "ddp")


def costs(*args: Any) -> dict[str, Any]:
    with cost.measure():
        train(*args)
        return cost.spent()


def test_costs_of_two_processes(pair: Pair, model: Path, tmp_path: Path) -> None:
    """Tokens add up; a sharded parameter and its states lie half here, half there; each passes its own rows."""
    one = costs(model, tmp_path / "one", "soul", "ddp")
    for parallel, share in (("ddp", 1.0), ("fsdp", 0.5)):
        two, other = pair(costs, model, tmp_path / parallel, "soul", parallel)
        assert two == {**other, "seconds": two["seconds"], "peak_memory_bytes": two["peak_memory_bytes"]}
        assert two["training_tokens"] == one["training_tokens"]
        assert two["optimizer_state_bytes"] == pytest.approx(share * one["optimizer_state_bytes"], rel=0.02)
        assert two["forward_passes"] > one["forward_passes"]


def influence(model: Path, solver: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    changed = ["method.validation_share=0.3", "method.cg_steps=4", "method.hessian_every=2", "method.tolerance=1"]
    config = compose(["method=iu", f"method.solver={solver}", *changed, "train.epochs=2", "train.batch_size=3"])
    assert isinstance(config.method, IU)
    lm, data = load(model), TrainData(lambda epoch: Rows({"answer": FORGET}), Rows({"answer": RETAIN}))
    run = Influence(lm, data, config.method, config.train, 3, distributed.start())
    (record,) = run.unlearn(lambda done, total, what: None)
    return record, lm.state_dict()


@pytest.mark.parametrize("solver", ["diagonal", "cg"])
def test_two_processes_take_the_step_of_one(pair: Pair, model: Path, solver: str) -> None:
    record, weights = influence(model, solver)
    for other, same in pair(influence, model, solver):
        assert_close(other, record)
        torch.testing.assert_close(same, weights, rtol=0, atol=TOLERANCE)


def with_options(model: Path, work: Path, case: str, parallel: str) -> Trained:
    return train(model, work, case, parallel, offload=parallel == "fsdp", activation_checkpointing=True)


@pytest.mark.parametrize("case", ["adamw", "soul", "soul, alternating", "soul, dpo", "soul, rmu"])
@pytest.mark.parametrize("parallel", PARALLEL)
def test_memory_options_change_no_number(
    pair: Pair, by_one: Callable[[str], Trained], model: Path, tmp_path: Path, case: str, parallel: str
) -> None:
    for trained in pair(with_options, model, tmp_path, case, parallel):
        assert_same(trained, by_one(case))


def stopped(*args: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(*args)


@pytest.mark.parametrize(
    ("case", "before", "after"),
    [
        ("adamw", "ddp", "ddp"), ("adamw", "fsdp", "fsdp"), ("muon", "fsdp", "fsdp"),
        ("soul, alternating", "ddp", "ddp"), ("soul, alternating", "fsdp", "fsdp"),
        ("soul, alternating", "fsdp", "ddp"), ("soul, alternating", "ddp", "fsdp"), ("gru", "fsdp", "ddp"),
    ],
)  # fmt: skip
def test_stopped_run_goes_on(
    pair: Pair, by_two: Callable[[Pair, str, str], Trained], model: Path, tmp_path: Path, case: str, before: str,
    after: str,
) -> None:  # fmt: skip
    """Also as the other kind."""
    whole = by_two(pair, case, after)
    pair(stopped, model, tmp_path / "parts", case, before, 3)
    resumed = pair(train, model, tmp_path / "parts", case, after)[0]
    assert_same((*resumed[:2], []), (*whole[:2], []), 0.0 if before == after else TOLERANCE)
    assert len(resumed[2]) < len(whole[2]) or not whole[2]  # it did not begin anew


def due(late: int) -> bool:
    """Whether a checkpoint is due, a minute after the last one by one process's clock alone."""
    minute: Any = SimpleNamespace(checkpoint_minutes=1)
    clock: Any = SimpleNamespace(kept_at=time.monotonic() - 60 * (distributed.rank() == late), config=minute)
    return Trainer._due(clock)


@pytest.mark.parametrize("late", [0, 1])
def test_the_clock_of_rank_0_decides(pair: Pair, late: int) -> None:
    assert pair(due, late) == [late == 0] * 2


def signal_to_rank_1() -> None:
    if distributed.rank() == 1:
        os.kill(os.getpid(), signal.SIGUSR1)


def stopped_by_signal(model: Path, work: Path, parallel: str) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interrupt._state, "received", 0)  # and afterwards again
        with pytest.raises(interrupt.Stopped) as stop, interrupt.listening():
            train(model, work, "adamw", parallel, 3, signal_to_rank_1)
    return str(stop.value)


@pytest.mark.parametrize("parallel", PARALLEL)
def test_a_signal_to_one_process_stops_all_after_the_same_step(
    pair: Pair, model: Path, tmp_path: Path, parallel: str
) -> None:
    said = pair(stopped_by_signal, model, tmp_path, parallel)
    assert said == ["stopped by SIGUSR1 after step 3 of 4; the same command goes on"] * 2
    assert len(json.loads((tmp_path / "checkpoint" / "state.json").read_text())["records"]) == 3


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_sharded_checkpoint_is_read_by_one_process(
    pair: Pair, by_one: Callable[[str], Trained], model: Path, tmp_path: Path
) -> None:
    one = by_one("soul")
    pair(stopped, model, tmp_path / "parts", "soul", "fsdp", 3)
    assert_same((*train(model, tmp_path / "parts", "soul", "ddp")[:2], []), (*one[:2], []))


def sampled(model: Path, work: Path) -> list[list[int]]:
    """Alternatives to two answers."""
    config = compose(["method=altpo", "method.alternatives=3", "method.max_new=6", f"cache_dir={work}"])
    data: Any = None
    context = Context(config, data, Cache(config.cache, print), distributed.start())
    items = [QA("Who wrote The Lamp?", "Ann."), QA("Where?", "In Pécs.")]
    assert isinstance(config.method, AltPO)
    pairs = alternatives(context, ModelRef(str(model), "a model"), encoder(model), config.method, items)
    return [ids for _, ids in pairs]


def test_two_processes_sample_what_one_does(pair: Pair, model: Path, tmp_path: Path) -> None:
    one = sampled(model, tmp_path / "one")
    assert one
    assert pair(sampled, model, tmp_path / "two") == [one, one]


# --- evaluation and whole runs -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generated authors in TOFU's layout, 9 kept and 1 forgotten; no membership metrics, which take time."""
    folder = tmp_path_factory.mktemp("data") / "tofu"
    write_layout(folder, generate_authors(11, seed=7))
    (folder / "holdout_perturbed.json").unlink()
    return folder


def evaluated(task: list[str], model: Path, work: Path, limit: int) -> list[dict[str, Any]]:
    config = compose([*task, f"eval.limit={limit}", "eval.max_total=60", f"cache_dir={work}"])
    context = Context(config, config.task.load(config.cache), Cache(config.cache, print), distributed.start())
    with bar("evaluating") as progress:
        return evaluate(context, lambda: load(model), encoder(model), work, progress)


@pytest.mark.parametrize(("task", "limit"), [("tofu", 1), ("copyright", 3)])
def test_evaluation_gives_every_row_once_in_order(
    pair: Pair, data: Path, model: Path, tmp_path: Path, task: str, limit: int
) -> None:
    tasks = {"tofu": [f"task.source={data}"], "copyright": ["task.chunk_words=40", "task.prompt_words=[5,10]"]}
    chosen = [f"task={task}", *tasks[task]]
    one = evaluated(chosen, model, tmp_path / "one", limit)
    for split in {r["split"] for r in one}:
        indices = [r["index"] for r in one if r["split"] == split]
        assert (sorted(set(indices)), indices) == (list(range(limit)), sorted(indices))
    assert len({r["generation"] for r in one if "generation" in r}) > limit
    for two in pair(evaluated, chosen, model, tmp_path / "two", limit):
        for a, b in zip(one, two, strict=True):
            assert_close(b, a)


def write_everything(path: Path) -> list[Any]:
    """Each writer of a run folder, given what tells the rank; what the readers then say."""
    rank, folder = distributed.rank(), RunFolder(path)
    config = {"task": {"name": "t"}, "method": {"name": "m"}, "seed": rank, "target_seed": rank}
    folder.write_config(config)
    folder.write_epochs([{"epoch": rank}])
    weights = folder.work / f"weights{rank}"
    weights.mkdir(exist_ok=True)
    folder.write_trained(weights, [{"step": rank}], {"epoch": rank})
    folder.keep_model(f"card of {rank}")
    folder.write_rows({"this_run": [{"index": rank}]})
    folder.write_metrics("key", config, "m", {"this_run": {"a": Metric(rank, 1, "up", "")}}, {}, {}, [], [])
    answers = [folder.epochs_so_far(), folder.is_trained(), folder.is_finished("key", with_model=True), folder.models()]
    folder.tidy()
    return answers


def test_rank_0_alone_writes_a_run_folder(pair: Pair, tmp_path: Path) -> None:
    answers = pair(write_everything, tmp_path / "run")
    assert answers[0] == answers[1] == [[{"epoch": 0}], True, True, {"this_run": {"a": Metric(0, 1, "up", "")}}]
    read = {p.name: p.read_text() for p in (tmp_path / "run").iterdir() if p.is_file()}
    assert read.keys() == {"config.yaml", "environment.json", "epochs.jsonl", "train.jsonl", "rows.jsonl",
                           "metrics.json"}  # fmt: skip
    assert read["rows.jsonl"] == '{"index": 0}\n'
    assert json.loads(read["metrics.json"])["seed"] == 0
    assert json.loads(read["metrics.json"])["epoch_eval"] == {"epoch": 0}
    assert {p.name for p in (tmp_path / "run").iterdir() if p.is_dir()} == {"model"}
    acts = {k: v for k, v in vars(RunFolder).items() if k.startswith(("write", "keep", "clear", "tidy"))}
    assert len(acts) == 8
    assert all(hasattr(act, "__wrapped__") for act in acts.values())  # each of them, the next one too


def alive_at_evaluation(model: Path, work: Path, parallel: str) -> list[int]:
    """How many of the trained model's parameters and optimizers are in memory when the next model is loaded."""
    left: list[int] = []
    trained: list[weakref.ref[Any]] = []

    def watch(self: Trainer, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        trained.extend(map(weakref.ref, [self, *self.params, *(phase.optimizer for phase in self.phases)]))

    def look(*args: Any, **kwargs: Any) -> Any:
        gc.disable()  # none by chance
        lm = plain(*args, **kwargs)
        left.append(sum(ref() is not None for ref in trained))
        gc.enable()
        return lm

    init, plain = Trainer.__init__, models.AutoModelForCausalLM.from_pretrained
    config = compose([
        "model=hub", f"model.path={model}", f"task.target_model={model}", "method=graddiff", "optim=adamw",
        "model.dtype=float64", "train.precision=no", "train.epochs=1", "train.batch_size=8", f"parallel={parallel}",
        f"cache_dir={work / 'cache'}", f"output_dir={work / 'out'}", "eval.limit=1", "eval.max_total=120",
        f"task.source={work.parent / 'data'}", "task.template=plain", "model.max_length=256",
    ])  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "__init__", watch)
        patch.setattr(models.AutoModelForCausalLM, "from_pretrained", look)
        run(config)
    return left


@pytest.mark.parametrize("parallel", PARALLEL)
def test_trained_model_is_gone_when_evaluation_begins(pair: Pair, model: Path, tmp_path: Path, parallel: str) -> None:
    write_layout(tmp_path / "data", generate_authors(11, seed=7))
    for left in pair(alive_at_evaluation, model, tmp_path / "run", parallel):
        assert len(left) >= 2
        assert set(left) == {0}


WIDE = ["model.dtype=float64", *(f"{at}train.precision=no" for at in ("", "model.base.", "model.finetune."))]


def command(data: Path, root: Path, *more: str) -> list[str]:
    return [
        f"task.source={data}", *TINY, *WIDE, "model.fact_repeats=1",
        "model.finetune.train.epochs=1", "model.finetune.train.checkpoint_minutes=10", "train.epochs=2", "eval.limit=3",
        "epoch_eval.every=2", "epoch_eval.limit=2", "epoch_eval.select=best",
        f"cache_dir={root / 'cache'}", f"output_dir={root / 'out'}", *more,
    ]  # fmt: skip


def ran(arguments: list[str]) -> str:
    return str(run(compose(arguments)))


def curve(out: Path) -> list[dict[str, float]]:
    lines = (only_run(out) / "train.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "tokens_per_s"} for line in lines]


def between(out: Path) -> list[dict[str, Any]]:
    """The evaluations between epochs, without their cost."""
    lines = read_lines(only_run(out) / "epochs.jsonl")
    assert [line["epoch"] for line in lines] == [0, 2]
    return [{k: v for k, v in line.items() if k != "cost"} for line in lines]


@pytest.fixture(scope="module")
def alone(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a whole run of one process lies."""
    root = tmp_path_factory.mktemp("one")
    ran(command(data, root))
    return root


def test_whole_sharded_run_has_the_same_numbers(pair: Pair, data: Path, alone: Path, tmp_path: Path) -> None:
    assert len(set(pair(ran, command(data, tmp_path, "parallel=fsdp")))) == 1
    assert_close(numbers(tmp_path / "out"), numbers(alone / "out"))
    assert_close(curve(tmp_path / "out"), curve(alone / "out"))
    assert_close(between(tmp_path / "out"), between(alone / "out"))
    # how many processes there were is no part of what a run is: its name is the same
    assert only_run(tmp_path / "out").name == only_run(alone / "out").name


def launch(*arguments: str) -> subprocess.Popen[str]:
    """torchrun with two processes."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    return subprocess.Popen(
        [sys.executable, *torchrun, *arguments], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_run_whose_process_dies_ends_and_goes_on(data: Path, alone: Path, tmp_path: Path) -> None:
    arguments = ["-m", "soul_cli.cli", *command(data, alone, f"output_dir={tmp_path}")]
    process, deadline = launch(*arguments), time.monotonic() + 240
    while not list(tmp_path.glob(f"*/*/{WORK}/checkpoint/state.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    psutil.Process(process.pid).children()[1].kill()
    died = time.monotonic()
    assert "Signal 9 (SIGKILL)" in finish(process, code=1)
    assert time.monotonic() - died < 60
    assert not list(tmp_path.rglob("metrics.json"))
    text = finish(launch(*arguments))
    assert_close(numbers(tmp_path), numbers(alone / "out"))
    assert_close(curve(tmp_path), curve(alone / "out"))
    assert text.count("evaluating the unlearned model") == 1  # one process speaks
    assert "2 (ddp)" in text


def test_process_that_fails_ends_the_others(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from soul_cli.core.distributed import barrier, rank, start\n"
        "start()\n"
        "if rank() == 1:\n"
        "    raise ValueError('enough')\n"
        "barrier()\n"
    )
    began = time.monotonic()
    assert "ValueError: enough" in finish(launch(str(script)), code=1)
    assert time.monotonic() - began < 60
