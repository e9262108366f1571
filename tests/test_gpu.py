"""What a GPU computes against the CPU: a training step, scores, answers, what saves memory, what is resumed.

Marked gpu; without a CUDA device they skip.  SOUL_GPU_TESTS=cpu lets the device be the CPU: a rehearsal of the checks,
in which each compares the CPU with itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts

import pytest
import torch
from test_evaluate import GROUPS, MAX_TOTAL, PROMPTS
from test_kernel import build
from test_train import ADAMW, FORGET, MUON, NPO_SUM, RELEASED, RETAIN, SOLVED, answered, config, silent, soul
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import LlamaConfig, LlamaForCausalLM, OPTConfig, OPTForCausalLM

from soul_cli.core.types import Prompted, UserError
from soul_cli.data.rows import Rows
from soul_cli.evaluate.abilities import abilities
from soul_cli.evaluate.decoding import Recorded
from soul_cli.evaluate.generate import greedy
from soul_cli.evaluate.likelihood import score
from soul_cli.models.adapters import LoRA
from soul_cli.models.answer_model import AnswerModel
from soul_cli.objective.methods import Problem
from soul_cli.optim import kernel
from soul_cli.optim.curvature import sample_labels
from soul_cli.optim.sophia import Soul
from soul_cli.train.loop import TrainData, Trainer

pytestmark = pytest.mark.gpu
MakeLM = Callable[..., Any]
CPU = torch.device("cpu")
OPTIMS = {"adamw": ADAMW, "soul": soul(every=2), "soul_released": RELEASED, "muon": MUON}
TRIED = ("adamw", "soul", "soul_released")


@pytest.fixture(scope="session")
def device() -> torch.device:
    wanted = torch.device(os.environ.get("SOUL_GPU_TESTS", "cuda"))
    if wanted.type == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    return wanted


# --- training ----------------------------------------------------------------------------------------------


def trainer(
    lm: Any, device: torch.device, name: str, solved: Problem = NPO_SUM, precision: str = "no", **options: bool
) -> Trainer:
    """name: of the optimizer."""
    values = [torch.linspace(-3, -1, len(row.answers[0]), dtype=torch.float64) for row in FORGET]
    (answer,) = solved.forget.needs.answers if solved.forget else ("answer",)
    data = TrainData(lambda epoch: Rows({answer: FORGET}, {"answer": values}), answered(RETAIN))
    settings, machine = config(epochs=2, warmup=0.0, precision=precision), SimpleNamespace(device=device)
    return Trainer(lm, data, solved, OPTIMS[name], settings, 3, machine, **options)  # type: ignore[arg-type]


def trained(
    lm: Any, work: Path, device: torch.device, name: str, **options: Any
) -> tuple[list[dict[str, float]], Tensor, list[Tensor]]:
    """Records, weights and states, all on the CPU in float64."""
    one = trainer(lm, device, name, **options)
    records = one.train(work, silent)
    states = [
        value.detach().to(CPU, torch.float64)
        for phase in one.phases
        for state in phase.optimizer.state_dict()["state"].values()
        for _, value in sorted(state.items())
        if isinstance(value, Tensor)
    ]
    after = torch.cat([w.detach().flatten().to(CPU, torch.float64) for w in one.masters.weights])
    return [{k: v for k, v in r.items() if k != "tokens_per_s"} for r in records], after, states


def exact_lm() -> Any:
    """A model of which devices must agree to the rounding of float64.

    It is float64 throughout; Llama's norms and positions are float32.  It has no coordinate whose gradient is 0 but for
    rounding, as GPT-2's has in the bias of its keys: a step that divides by the curvature makes noise of it as large as
    any other step.
    """
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "word_embed_proj_dim": 32, "ffn_dim": 64, "num_hidden_layers": 2, "vocab_size": 48}
    still = {"dropout": 0.0, "attention_dropout": 0.0, "layerdrop": 0.0, "enable_bias": False}
    named = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    shape = OPTConfig(num_attention_heads=4, max_position_embeddings=64, **sizes, **still, **named)
    return OPTForCausalLM(shape).to(torch.float64)


@contextmanager
def elsewhere(device: torch.device) -> Iterator[None]:
    """In a rehearsal, products add up in another order, as those of another device do."""
    plain = torch.nn.functional.linear

    def reordered(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        order = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(1))
        return plain(x[..., order], weight[:, order], bias)

    with pytest.MonkeyPatch.context() as patch:
        if device.type == "cpu":
            patch.setattr(torch.nn.functional, "linear", reordered)
        yield


def flat(lm: Any) -> Tensor:
    """The weights of a model, on the CPU in float64."""
    return torch.cat([p.detach().flatten().to(CPU, torch.float64) for p in lm.parameters()])


@pytest.mark.parametrize("solved", ["npo", "graddiff", "alternating"])
@pytest.mark.parametrize("name", TRIED)
def test_training_in_float64_is_that_of_the_cpu(tmp_path: Path, device: torch.device, name: str, solved: str):
    """Losses, norms, states (the curvature estimate in soul's h) and weights, to 1e-9."""
    with elsewhere(device):
        there = trained(exact_lm(), tmp_path / "there", device, name, solved=SOLVED[solved])
    here = trained(exact_lm(), tmp_path / "here", CPU, name, solved=SOLVED[solved])
    for one, other in zip(there[0], here[0], strict=True):
        assert one == pytest.approx(other, rel=1e-9, abs=1e-9)
    torch.testing.assert_close(there[1:], here[1:], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("solved", ["npo", "graddiff", "alternating"])
def test_muon_in_float64_is_near_to_that_of_the_cpu(tmp_path: Path, device: torch.device, solved: str):
    """Distance of the weights to 5e-2 of the way: its iterations (Newton-Schulz) are in bfloat16 (8 bits) by design.

    On an H100 up to 2.3e-2.
    """
    start = flat(exact_lm())
    there = trained(exact_lm(), tmp_path / "there", device, "muon", solved=SOLVED[solved])[1]
    here = trained(exact_lm(), tmp_path / "here", CPU, "muon", solved=SOLVED[solved])[1]
    assert (there - here).norm() / (here - start).norm() < 5e-2


@pytest.mark.parametrize("kind", ["float32", "bf16 autocast", "bfloat16"])
@pytest.mark.parametrize("name", TRIED)
def test_training_in_less_is_near_to_float64(
    tiny_lm: MakeLM, tmp_path: Path, device: torch.device, name: str, kind: str
):
    """Distance of the weights from those of float64, as a share of the way that these have gone: float32 1e-3,
    bfloat16 0.3 (on a CPU it is 1e-5 to 1e-4 and 0.1)."""
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    precision = "bf16" if kind == "bf16 autocast" else "no"

    def start() -> Any:
        return tiny_lm(torch.bfloat16, spread=0.3).to(dtype)  # the same weights at each precision

    exact = trained(start().double(), tmp_path / "exact", CPU, name)[1]
    way = (exact - flat(start())).norm()
    _, after, _ = trained(start(), tmp_path / "there", device, name, precision=precision)
    assert way > 0.01
    assert (after - exact).norm() / way < (1e-3 if kind == "float32" else 0.3)


@pytest.mark.parametrize("option", ["activation_checkpointing", "offload"])
@pytest.mark.parametrize("name", OPTIMS)
def test_what_saves_memory_changes_no_number(tmp_path: Path, device: torch.device, name: str, option: str):
    """To 1e-9; Muon with its step on the CPU as in test_muon_in_float64_is_near_to_that_of_the_cpu."""
    plain = trained(exact_lm(), tmp_path / "plain", device, name)
    other = trained(exact_lm(), tmp_path / "other", device, name, **{option: True})
    if name == "muon" and option == "offload":
        assert (other[1] - plain[1]).norm() / (plain[1] - flat(exact_lm())).norm() < 5e-2
        return
    for one, two in zip(plain[0], other[0], strict=True):
        assert two == pytest.approx(one, rel=1e-9, abs=1e-9)
    torch.testing.assert_close(other[1:], plain[1:], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", ["float32", "bf16 autocast", "bfloat16"])
@pytest.mark.parametrize("name", TRIED)
def test_resumed_run_is_the_uninterrupted_one(
    tiny_lm: MakeLM, tmp_path: Path, device: torch.device, name: str, kind: str
):
    """Bit for bit, with torch's deterministic algorithms."""
    dtype, precision = torch.bfloat16 if kind == "bfloat16" else torch.float32, "bf16" if "auto" in kind else "no"

    def run(work: str, progress: Any = silent) -> tuple[list[Any], list[Tensor]]:
        one = trainer(tiny_lm(dtype), device, name, precision=precision)
        records = one.train(tmp_path / work, progress)
        kept = [{k: v for k, v in r.items() if k != "tokens_per_s"} for r in records]
        return kept, [w.detach().clone() for w in one.masters.weights]

    def stop(done: int, total: int, record: dict[str, float]) -> None:
        if done == 3:
            raise KeyboardInterrupt

    torch.use_deterministic_algorithms(True)
    try:
        whole = run("whole")
        with pytest.raises(KeyboardInterrupt):
            run("parts", stop)
        resumed = run("parts")
    finally:
        torch.use_deterministic_algorithms(False)
    assert resumed[0] == whole[0]
    assert all(torch.equal(a, b) for a, b in zip(resumed[1], whole[1], strict=True))


def test_adapters_train_as_on_the_cpu(tiny_lm: MakeLM, tmp_path: Path, device: torch.device):
    """The adapters' own weights are float32."""
    pytest.importorskip("peft")
    merged = {}
    for place in {CPU, device}:
        lm = tiny_lm(torch.float64)
        adapters = LoRA(r=2, alpha=6, load_in_4bit=False).attach(lm, seed=0)
        trainer(lm, place, "soul").train(tmp_path / place.type, silent)
        merged[place] = flat(adapters.merge_and_unload())
    way = (merged[CPU] - flat(tiny_lm(torch.float64))).norm()
    assert way > 0
    assert (merged[device] - merged[CPU]).norm() / way < 1e-3


# --- the optimizer -----------------------------------------------------------------------------------------

# longer than a block, odd, vector, scalar, nothing; the last begins where 16 bytes cannot be read at a time
SHAPES = [(3, 4099), (8, 2048), (5,), (), (2, 0), (4096,)]


def stepped(name: str, device: torch.device, steps: int = 5) -> tuple[list[Tensor], list[Any], list[dict[str, float]]]:
    def randoms(seed: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        drawn = [torch.randn(shape, generator=generator) for shape in SHAPES]
        return [x.to(device) for x in drawn[:-1]] + [torch.cat([drawn[-1][:1], drawn[-1]]).to(device)[1:]]

    params = [torch.nn.Parameter(x) for x in randoms(0)]
    optimizer, stats = build(name, params), []
    for t in range(steps):
        for p, g in zip(params, randoms(100 + t), strict=True):
            p.grad = torch.where(g > 1.5, 0.0, g)
            if p.ndim == 2:
                p.grad[0] = 0
        if name != "released" and t % 2 == 0:
            estimates = (torch.where(x > 1, 0.0, x.square()) for x in randoms(200 + t))
            optimizer.update_hessian(zip(params, estimates, strict=True))
        optimizer.step()
        stats.append(optimizer.stats)
    return [p.detach().cpu() for p in params], [s for p in params for s in optimizer.state[p].values()], stats


@pytest.mark.parametrize("name", ["rho", "share", "released"])
def test_one_pass_equals_the_readable_step(name: str, device: torch.device, monkeypatch: pytest.MonkeyPatch):
    taken = []
    takes = kernel.takes
    monkeypatch.setattr(kernel, "takes", lambda parts: (taken.append(takes(parts)), taken[-1])[1])
    params, states, stats = stepped(name, device)
    assert taken == [True] * 5, "the kernel was not used"
    monkeypatch.setattr(kernel, "takes", lambda parts: False)
    expected = stepped(name, device)
    close = {"rtol": 1e-6, "atol": 1e-7}  # an ulp or two
    torch.testing.assert_close(params, expected[0], **close)
    torch.testing.assert_close(states, expected[1], **close)
    for one, other in zip(stats, expected[2], strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    assert any(0.1 < s["unclipped_share"] < 0.9 for s in stats)


def test_what_is_not_a_number_stays_so(device: torch.device):
    p = torch.nn.Parameter(torch.ones(5000, device=device))
    optimizer = build("rho", [p])
    optimizer.update_hessian([(p, torch.ones_like(p))])
    p.grad = torch.ones_like(p)
    p.grad[7] = torch.nan
    optimizer.step()
    assert p.isnan().nonzero().tolist() == [[7]]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999999, 1.0])
def test_rho_is_that_of_the_cpu(device: torch.device, share: float):
    generator = torch.Generator().manual_seed(0)
    m, h = (torch.randn(3_000_000, generator=generator) for _ in range(2))
    m[::5], h[1::5], h[2::5] = 0, 0, -1  # none of these takes part
    for curvature in (h, torch.zeros_like(h)):
        found = []
        for place in (CPU, device):
            p = torch.nn.Parameter(torch.zeros_like(m, device=place))
            optimizer = Soul([p], lr=0.0, betas=(0.9, 0.95), eps=1e-15, weight_decay=0.0, unclipped_share=share)
            optimizer.state[p] = {"m": m.to(place), "h": curvature.to(place)}
            found.append(optimizer._calibrated(share))
        assert found[0] == found[1]


@pytest.mark.parametrize("vocab", [48, 32000, 50257])
def test_equal_keys_draw_equal_labels(device: torch.device, vocab: int):
    logits = 3 * torch.randn(200, vocab, generator=torch.Generator().manual_seed(0))
    u = torch.rand(200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.equal(sample_labels(logits.to(device), u).to(CPU), sample_labels(logits, u))


# --- evaluation --------------------------------------------------------------------------------------------

# where a kernel takes no mask, dtype or shared heads, torch has none left, and the test says so
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


def attention_lm(dtype: torch.dtype, kv_heads: int) -> Any:
    """Four heads of 16, as kernels for GPUs want them."""
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=48, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=kv_heads, max_position_embeddings=128, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(shape).to(torch.bfloat16).to(dtype).eval()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("rows", ["trees", "one row each"])
@pytest.mark.parametrize("name", [*KERNELS, "eager"])
def test_scores_under_each_attention_kernel(
    device: torch.device, name: str, rows: str, kv_heads: int, dtype: torch.dtype
):
    """Against one row each in float64 on the CPU: float32 to 1e-4 nats a token, bfloat16 to 0.15."""
    alone = [Prompted(g.prompt, (a,)) for g in GROUPS for a in g.answers]
    exact = attention_lm(torch.float64, kv_heads)
    expected = [s.logps for group in score(AnswerModel(exact), alone, budget=999) for s in group]
    lm = attention_lm(dtype, kv_heads).to(device)
    if name == "eager":
        lm.set_attn_implementation("eager")
    where = f"{str(dtype).removeprefix('torch.')}, {rows}{', shared key heads' if kv_heads < 4 else ''}"
    with sdpa_kernel(KERNELS.get(name, SDPBackend.MATH)):
        try:
            if rows == "trees" and not abilities(lm).trees:
                pytest.skip(f"attention kernel {name} does not take trees: {where}")
            scored = score(AnswerModel(lm), GROUPS if rows == "trees" else alone, budget=999)
        except (RuntimeError, UserError) as error:
            if "No available kernel" not in str(error) and "No viable backend" not in str(error):
                raise
            pytest.skip(f"attention kernel {name} does not run: {where}")
    got = [s.logps for group in scored for s in group]
    most = max(abs(a - b) for one, other in zip(got, expected, strict=True) for a, b in zip(one, other, strict=True))
    assert most < (1e-4 if dtype == torch.float32 else 0.15)


def test_greedy_answers_are_those_of_the_cpu(tiny_lm: MakeLM, device: torch.device):
    lm = tiny_lm(torch.float64, spread=1.0)
    room = [MAX_TOTAL - len(p) for p in PROMPTS]
    here = greedy(lm, PROMPTS, ends=(), most_new=room, budget=3 * MAX_TOTAL)
    ends = {here[0][3], here[1][7]}
    ending = greedy(lm, PROMPTS, ends=ends, most_new=room, budget=999)
    lm = tiny_lm(torch.float64, spread=1.0).to(device)
    assert (abilities(lm).decoding is Recorded) is (device.type == "cuda")
    assert greedy(lm, PROMPTS, ends=(), most_new=room, budget=3 * MAX_TOTAL) == here
    assert greedy(lm, PROMPTS, ends=ends, most_new=room, budget=999) == ending
