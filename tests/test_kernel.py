"""The one-pass optimizer step against the readable one, and when which is taken."""

import math

import pytest
import torch
from torch import distributed as dist

from soul_cli.optim import kernel, sophia
from soul_cli.optim.sophia import Soul, SoulReleased

SHAPES = [(3, 4099), (70, 70), (5,), (), (2, 0)]  # longer than a block and than a row; vector, scalar, nothing
needs_compiler = pytest.mark.skipif(kernel.library() is None, reason="no C compiler here")


def build(name: str, params):
    groups = [{"params": params[::2], "weight_decay": 0.1}, {"params": params[1::2], "weight_decay": 0.0}]
    options = {"lr": 0.01, "betas": (0.9, 0.95), "weight_decay": 0.0}
    if name == "released":
        return SoulReleased(groups, rho=0.04, bs=50, **options)
    rho = {"rho": 0.5} if name == "rho" else {"unclipped_share": 0.3}
    return Soul(groups, eps=1e-15, **options, **rho)


def randoms(seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator) for shape in SHAPES]


def run(name: str, steps: int = 5):
    """Parameters, states and statistics after some steps; some gradients and curvatures are 0."""
    params = [torch.nn.Parameter(x) for x in randoms(0)]
    optimizer, stats = build(name, params), []
    for t in range(steps):
        for p, g in zip(params, randoms(100 + t), strict=True):
            p.grad = torch.where(g > 1.5, 0.0, g) if t < 3 else torch.zeros_like(g)
            if p.ndim == 2:
                p.grad[0] = 0
        if name != "released" and t % 2 == 0:
            estimates = (torch.where(x > 1, 0.0, x.square()) for x in randoms(200 + t))
            optimizer.update_hessian(zip(params, estimates, strict=True))
        optimizer.step()
        stats.append(optimizer.stats)
    return params, [optimizer.state[p] for p in params], stats


@needs_compiler
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", ["rho", "share", "released"])
def test_one_pass_equals_the_readable_step(name, threads, monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        params, states, stats = run(name)
        monkeypatch.setattr(kernel, "takes", lambda parts: False)
        monkeypatch.setitem(sophia.PIECE, "cpu", 1000)
        expected = run(name)
    finally:
        torch.set_num_threads(before)
    exact = {"rtol": 3e-7, "atol": 3e-8}  # an ulp or two
    torch.testing.assert_close([p.data for p in params], [p.data for p in expected[0]], **exact)
    torch.testing.assert_close(states, expected[1], **exact)
    for one, other in zip(stats, expected[2], strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    assert any(0.1 < s["unclipped_share"] < 0.9 for s in stats)


@needs_compiler
def test_what_the_kernels_take():
    whole = (torch.zeros(4, 6).requires_grad_(), *(torch.zeros(4, 6) for _ in range(3)))
    assert kernel.takes([whole])
    assert not kernel.takes([])
    for odd in (torch.zeros(6, 4).T, torch.zeros(4, 6, dtype=torch.bfloat16), torch.zeros(4, 6, device="meta")):
        assert not kernel.takes([whole, (*whole[:3], odd)])


@needs_compiler
def test_a_parameter_that_is_not_a_number_does_not_become_one():
    for name in ("rho", "released"):
        p = torch.nn.Parameter(torch.ones(40))
        optimizer = build(name, [p])
        if name == "rho":
            optimizer.update_hessian([(p, torch.ones(40))])
        p.grad = torch.ones(40)
        p.grad[7] = math.nan
        optimizer.step()
        assert p.isnan().nonzero().tolist() == [[7]]


@needs_compiler
def test_autograd_notices_the_step():
    p = torch.nn.Parameter(torch.ones(3))
    optimizer = build("released", [p])
    loss = (p * p).sum()
    p.grad = torch.ones(3)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_without_a_compiler_it_says_so_once(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler -x")
    kernel.library.cache_clear()
    try:
        with pytest.warns(UserWarning, match="no C compiler that works") as warned:
            run("rho")
        assert len(warned) == 1
    finally:
        kernel.library.cache_clear()


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_gpu_that_cannot_be_used_is_said_once():
    kernel.on_gpu.cache_clear()
    try:
        with pytest.warns(UserWarning, match="no triton that works") as warned:
            assert kernel.on_gpu() is kernel.on_gpu() is None
        assert len(warned) == 1
    finally:
        kernel.on_gpu.cache_clear()


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_shares_are_even_and_cover_every_coordinate_once(n):
    tensors = [torch.zeros(size) for size in (5, 11, 0, 1)]
    lists = kernel.shares([(t, t, t, t) for t in tensors], n)
    sizes = [sum(run[-1] for run in runs) for runs in lists]
    assert len(lists) <= n
    assert max(sizes) == math.ceil(17 / n)
    covered = [run[0] + 4 * i for runs in lists for run in runs for i in range(run[-1])]
    assert covered == [t.data_ptr() + 4 * i for t in tensors for i in range(t.numel())]


def test_bf16_parameters_take_the_step_of_their_rounded_values():
    p = torch.nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.bfloat16))
    optimizer = build("rho", [p])
    optimizer.update_hessian([(p, torch.tensor([1.0, 1.0, 0.0]))])
    p.grad = torch.tensor([2.0, -50.0, 1.0], dtype=torch.bfloat16)
    optimizer.step()
    # m = 0.1 g; ratios 0.4, -1, 1; theta (1 - 0.001) - 0.01 ratio, each operation rounded to 8 bits
    assert p.tolist() == pytest.approx([0.995, -1.988, 0.4895], abs=0.01)
    assert optimizer.state[p]["m"].dtype == torch.bfloat16
    assert optimizer.stats["unclipped_share"] == pytest.approx(1 / 3)


@needs_compiler
@pytest.mark.parametrize("name", ["share", "released"])
def test_sharded_parameters_are_stepped_in_place(name):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        plain, shards = (torch.nn.Parameter(randoms(0)[1]) for _ in range(2))
        shards = torch.nn.Parameter(distribute_tensor(shards.data, mesh, [Shard(0)]))
        optimizers = [build(name, [plain]), build(name, [shards])]
        for optimizer, p in zip(optimizers, (plain, shards), strict=True):
            if name == "share":
                optimizer.update_hessian([(p, randoms(2)[1].square())])
            g = randoms(1)[1]
            p.grad = g if p is plain else distribute_tensor(g, mesh, [Shard(0)])
            optimizer.step()
        assert torch.equal(plain.data, shards.to_local())
        assert optimizers[0].stats == optimizers[1].stats
    finally:
        dist.destroy_process_group()
