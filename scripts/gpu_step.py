"""Stage step: optimizer.step() alone, Soul against torch's fused AdamW, and against the bytes it has to move."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from gpu_setup import Job, back_to_back, job, rates, seconds, wait
from transformers import LlamaConfig, LlamaForCausalLM

from soul_cli.optim import kernel
from soul_cli.optim.sophia import Soul, SoulReleased

# hidden, layers, heads, key-value heads, intermediate, vocabulary, tied
SHAPES = {
    "tiny": (32, 2, 2, 2, 64, 320, True),
    "135M": (576, 30, 9, 3, 1536, 49152, True),  # SmolLM2-135M
    "1.1B": (2048, 22, 32, 4, 5632, 32000, False),  # TinyLlama
}
# float32 arrays that a step reads or writes: parameter, gradient, states
ARRAYS = {"soul": 6, "soul_released": 7, "adamw": 7}
Step = Callable[[], Any]


def parameters(size: str, device: torch.device) -> list[torch.nn.Parameter]:
    """Random ones of a Llama's shapes, with gradients."""
    hidden, layers, heads, kv_heads, inner, vocab, tied = SHAPES[size]
    with torch.device("meta"):
        lm = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=vocab, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
                num_attention_heads=heads, num_key_value_heads=kv_heads, tie_word_embeddings=tied,
            )
        )  # fmt: skip
    params = [torch.nn.Parameter(torch.randn(p.shape, device=device)) for p in lm.parameters()]
    for p in params:
        p.grad = torch.randn_like(p)
    return params


def optimizers(params: list[torch.nn.Parameter], names: tuple[str, ...]) -> dict[str, torch.optim.Optimizer]:
    vectors = [p for p in params if p.ndim < 2]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in params if p.ndim > 1]},
        {"params": vectors, "weight_decay": 0.0},
    ]
    made: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "soul": lambda: Soul(groups, lr=1e-6, betas=(0.9, 0.95), eps=1e-15, weight_decay=0.1, rho=0.5),
        "soul_released": lambda: SoulReleased(groups, lr=1e-6, betas=(0.9, 0.95), rho=0.04, bs=5120, weight_decay=0.1),
        "adamw": lambda: torch.optim.AdamW(groups, lr=1e-6, weight_decay=0.1, fused=True),
    }
    out = {name: made[name]() for name in names}
    if "soul" in out:
        out["soul"].update_hessian((p, torch.rand_like(p)) for p in params)  # type: ignore[attr-defined]
    return out


def host_seconds(step: Step, device: torch.device, calls: int) -> float:
    """Of a call that does not wait for the device."""
    wait(device)
    began = time.perf_counter()
    for _ in range(calls):
        step()
    took = time.perf_counter() - began
    wait(device)
    return took / calls


def measure(one: Job, size: str, bandwidth: float) -> None:
    params = parameters(size, one.device)
    count = sum(p.numel() for p in params)
    built = optimizers(params, tuple(ARRAYS))
    first = seconds(built["soul"].step, one.device)
    if one.device.type == "cuda":
        one.note(f"{size}: the first step of soul took {first:.1f} s; kernel: {kernel.on_gpu() is not None}")
    repeats, calls = (2, 2) if one.rehearse else (5, 20)
    took = back_to_back({name: o.step for name, o in built.items()}, one.device, repeats, calls)
    one.measured(
        "optimizer step, soul against AdamW fused", size, took["soul"] / took["adamw"], ("<=", 0.9),
        f"{took['soul'] * 1e3:.3f} ms against {took['adamw'] * 1e3:.3f} ms, {calls} in a row, {len(params)} tensors",
    )  # fmt: skip
    for name, arrays in ARRAYS.items():
        share = 4 * arrays * count / took[name] / bandwidth
        one.measured(
            f"optimizer step of {name}, share of the copy bandwidth", size, share,
            (">=", 0.85) if name == "soul" else None,
            f"{arrays} arrays of {4 * count / 1e9:.2f} GB in {took[name] * 1e3:.3f} ms",
        )  # fmt: skip
    issued = {name: host_seconds(built[name].step, one.device, calls) for name in ("soul", "adamw")}
    one.measured(
        "host's share of a step of soul", size, issued["soul"] / took["soul"], None,
        f"{issued['soul'] * 1e3:.3f} ms until the call returns; AdamW fused {issued['adamw'] * 1e3:.3f} ms",
    )  # fmt: skip
    alone = {name: lambda o=o: (o.step(), getattr(o, "stats", None)) for name, o in built.items()}
    waiting = back_to_back(alone, one.device, repeats, 1)
    one.measured(
        "one step from an idle device to its numbers, soul against AdamW fused", size,
        waiting["soul"] / waiting["adamw"], None,
        f"{waiting['soul'] * 1e3:.3f} ms against {waiting['adamw'] * 1e3:.3f} ms",
    )  # fmt: skip
    soul = built["soul"]
    with patch.object(kernel, "takes", lambda parts: False):
        readable = back_to_back({"": soul.step}, one.device, 2, 2)[""]
    one.measured(
        "optimizer step, the kernel against the readable operations", size, took["soul"] / readable, None,
        f"{took['soul'] * 1e3:.3f} ms against {readable * 1e3:.3f} ms",
    )  # fmt: skip
    for group in soul.param_groups:
        group["share"] = 0.3

    def calibrated() -> None:
        for group in soul.param_groups:
            group["calibrate"] = True
        soul.step()

    slow = back_to_back({"": calibrated}, one.device, repeats, 2)[""]
    one.measured(
        "a step that finds rho, against one that has it", size, slow / took["soul"], None,
        f"{slow * 1e3:.3f} ms against {took['soul'] * 1e3:.3f} ms, once in optim.hessian_every steps",
    )  # fmt: skip


def main() -> None:
    one = job("step")
    bandwidth, products = rates(one.device, tiny=one.rehearse)
    one.note(f"copies {bandwidth / 1e12:.3f} TB/s, read and written; bfloat16 products {products / 1e12:.0f} TFLOP/s")
    for size in ("tiny",) if one.rehearse else ("135M", "1.1B"):
        measure(one, size, bandwidth)
        gc.collect()


if __name__ == "__main__":
    main()
