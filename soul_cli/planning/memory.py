"""Memory and work of a training run, counted without weights.

What the optimizer keeps is arithmetic.  What a forward and a backward hold is found by running them, with the code of
the loop, on tensors without content (FakeTensorMode) for models of two and of three blocks: blocks are alike, so all
else follows.  tests/test_plan.py and scripts/check_plan.py compare the result with real training.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial, reduce
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from soul_cli.core.types import Prompted
from soul_cli.data.batches import collate
from soul_cli.models.adapters import LoRA
from soul_cli.models.answer_model import AnswerModel, Look
from soul_cli.models.load import autocast, checkpoint_activations, untrained
from soul_cli.objective.methods import Problem
from soul_cli.objective.term import Kinds, Reference, Route
from soul_cli.optim.build import Optim
from soul_cli.optim.curvature import drawn_logps
from soul_cli.optim.sophia import SAMPLE
from soul_cli.train.checkpoint import disk
from soul_cli.train.gradient import Part, looks_of

IN_4BIT = 4.127 / 8  # bytes a weight in NF4 with double quantisation (QLoRA, section 3)
WIDE = 4  # bytes of a float32
SPARE = 3  # float32 tensors as large as what it works on, at most the largest trained one, that an update holds


class LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that exist, now and at most, from the results of operations.

    What a kernel allocates for itself is not seen, nor what an allocator keeps.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._count = 0
        self._known: dict[int, int] = {}  # address of a storage -> its number: addresses are used again

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, Tensor):
                self.watch(t)
        return out

    def watch(self, t: Tensor) -> None:
        """Count the memory of a tensor from now until it is freed."""
        storage = t.untyped_storage()
        if storage._cdata not in self._known:
            self._count += 1
            self._known[storage._cdata] = self._count
            self.now += storage.nbytes()
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._forget, storage._cdata, self._count, storage.nbytes())

    def release(self, t: Tensor) -> None:
        """Count it no longer."""
        storage = t.untyped_storage()
        self._forget(storage._cdata, self._known.get(storage._cdata, 0), storage.nbytes())

    def _forget(self, address: int, number: int, size: int) -> None:
        if self._known.get(address) == number:
            del self._known[address]
            self.now -= size


@dataclass(frozen=True)
class Work:
    """One forward and backward of a micro-batch, in bytes beside weights and gradients; and the model's sizes."""

    parameters: int
    trained: int
    reached: int  # of them by a backward: what lies behind the last block of a forward gets no gradient
    head: float  # bytes of the head that is kept from before unlearning
    weights: float  # bytes
    gradients: float  # bytes, of all that are reached
    largest: int  # elements of the largest trained tensor
    linear: float  # bytes of the linear layers but the head
    block: float  # bytes of the weights of one block
    blocks: int
    passes: int  # forwards with their backwards: rows that take the same way through the model go together
    most: float  # at any time
    last: float  # while the first block's gradients, the last ones, come in

    def deeper(self, other: Work, layers: int, depth: int) -> Work:
        """self: of two blocks, other: of three -> of so many, `depth` of which a forward goes through."""

        def grown(name: str) -> Any:
            a, b = getattr(self, name), getattr(other, name)
            return a + ((depth if name in ("reached", "gradients", "most") else layers) - 2) * (b - a)

        names = ("parameters", "trained", "reached", "weights", "gradients", "linear", "most")
        return replace(other, blocks=layers, **{name: grown(name) for name in names})

    def beside(self, other: Work) -> Work:
        """Of two forwards with their backwards, one after the other."""
        names = ("reached", "gradients", "head", "most", "last")
        larger = {name: max(getattr(self, name), getattr(other, name)) for name in names}
        return replace(self, passes=self.passes + other.passes, **larger)

    def scaled(self, factor: float) -> Work:
        """Of a micro-batch of so many times the tokens, roughly."""
        return replace(self, most=factor * self.most, last=factor * self.last)


@dataclass(frozen=True)
class Setting:
    """What one forward and backward depends on."""

    dtype: str
    precision: str
    checkpointing: bool
    lora: tuple[int, int] | None  # r and alpha
    rows: tuple[tuple[int, int], ...]  # tokens of prompt and answer, of each row
    forget: int  # how many of the rows are forget rows; they come first
    problem: Problem = field(compare=False)
    drawn: bool = False  # the pass of a curvature estimate: answers are drawn from the model
    terms: str = field(init=False)  # the problem's terms in words: what two settings have to agree in

    def __post_init__(self) -> None:
        object.__setattr__(self, "terms", repr(list(self.problem.terms.values())))

    def of(self, route: Route) -> Setting:
        """Return the setting of those rows alone that take this way through the model."""
        terms = {kind: t for kind, t in self.problem.terms.items() if t.needs.route == route}
        parts = {Kinds.forget: self.rows[: self.forget], Kinds.retain: self.rows[self.forget :]}
        rows = [row for kind in terms for row in parts[kind]]
        own = replace(self.problem, forget=terms.get(Kinds.forget), retain=terms.get(Kinds.retain))  # type: ignore[arg-type]
        return replace(self, rows=tuple(rows), forget=self.forget if Kinds.forget in terms else 0, problem=own)


def work(config: Any, setting: Setting) -> Work:
    """Of a model of the transformers configuration `config`."""
    every = dict.fromkeys(term.needs.route for term in setting.problem.terms.values())
    works = [_one_way(config, own, route) for route in every if (own := setting.of(route)).rows]
    return reduce(Work.beside, works)


def _one_way(config: Any, setting: Setting, route: Route) -> Work:
    layers = config.num_hidden_layers
    two, three = (_traced(_Key(config, n), setting) for n in (2, 3))
    return two.deeper(three, layers, layers if route.head or route.layer is None else route.layer + 1)


@dataclass(frozen=True)
class _Key:
    """A configuration with another number of blocks, hashed by its content."""

    config: Any
    layers: int

    def __hash__(self) -> int:
        return hash((self.config.to_json_string(), self.layers))

    def shallow(self) -> Any:
        config = copy.deepcopy(self.config)
        config.num_hidden_layers = self.layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[: self.layers]
        return config


@lru_cache(maxsize=64)
def _traced(key: _Key, setting: Setting) -> Work:
    from torch._subclasses.fake_tensor import FakeTensorMode  # here: the import takes a second

    with torch.device("meta"):
        lm = untrained(key.shallow(), setting.dtype)
        sizes = _sizes(lm, setting, key.layers)
    if setting.checkpointing:
        checkpoint_activations(lm)
    with FakeTensorMode():
        _put_on_cpu(lm)
        trained = [p for p in lm.parameters() if p.requires_grad]
        model = AnswerModel(lm.train())
        if any(term.needs.reference is Reference.logits for term in setting.problem.terms.values()):
            head = lm.get_output_embeddings()
            kept = nn.Linear(head.in_features, head.out_features, bias=False, dtype=head.weight.dtype)
            model.kept_head = (kept.requires_grad_(False),)
        return Work(*sizes, *_backward(model, trained, setting, key.layers))


def _put_on_cpu(lm: nn.Module) -> None:
    """Tensors without content, that say they lie on the CPU, in the place of those on the meta device.

    There attention would take another path than on a GPU, one that holds all its weights.
    """
    seen: dict[Tensor, Tensor] = {}
    for module in lm.modules():
        for tensors in (module._parameters, module._buffers):
            for name, t in tensors.items():
                if t is not None and t not in seen:
                    new = torch.empty(t.shape, dtype=t.dtype)
                    seen[t] = nn.Parameter(new, t.requires_grad) if isinstance(t, nn.Parameter) else new
                if t is not None:
                    tensors[name] = seen[t]  # type: ignore[assignment]


def _sizes(lm: Any, setting: Setting, layers: int) -> tuple[Any, ...]:
    """Return the first fields of Work.  Attaches adapters."""
    blocks = lm._no_split_modules or ()
    linear: float = sum(
        m.weight.numel() * m.weight.element_size()
        for m in lm.modules()
        if isinstance(m, nn.Linear) and m is not lm.get_output_embeddings()
    )
    weights = _bytes(list(lm.parameters()))
    parameters = sum(p.numel() for p in lm.parameters())
    block = next((_bytes(list(m.parameters())) for m in lm.modules() if type(m).__name__ in blocks), 0.0)
    if setting.lora:
        LoRA(*setting.lora, load_in_4bit=False).attach(lm, seed=0)
        weights = _bytes(list(lm.parameters()))
    trained = [p for p in lm.parameters() if p.requires_grad]
    count, largest = sum(p.numel() for p in trained), max(p.numel() for p in trained)
    compares = any(term.needs.reference is Reference.logits for term in setting.problem.terms.values())
    own = [p for p in lm.get_output_embeddings().parameters() if p.requires_grad]
    return (
        parameters,
        count,
        count,
        _bytes(own) if compares else 0.0,
        weights,
        _bytes(trained),
        largest,
        linear,
        block,
        layers,
        1,
    )


def _bytes(tensors: Sequence[Tensor]) -> float:
    return float(sum(t.numel() * t.element_size() for t in tensors))


def _backward(model: AnswerModel, trained: list[Tensor], setting: Setting, layers: int) -> tuple[float, ...]:
    """Return the last fields of Work.  Gradients are not counted: each is taken out of the count when it is whole."""
    live = LiveBytes()
    peaks: list[float] = []

    def arrived(p: Tensor) -> None:
        assert p.grad is not None
        peaks.append(live.most)
        live.release(p.grad)
        live.most = live.now
        p.grad = None

    for p in trained:
        p.register_post_accumulate_grad_hook(arrived)
    batch = collate([Prompted((0,) * p, ((0,) * a,)) for p, a in setting.rows])
    with live:
        for p in model.parameters():
            live.watch(p)
        base = float(live.now)
        route = next(iter(setting.problem.terms.values())).needs.route  # that of all
        looks = looks_of(_parts(setting, model.lm.config.hidden_size), batch) if route.head else []
        if setting.drawn:
            looks = [Look(drawn_logps, (torch.zeros(len(batch.targets)),))]
        with autocast(torch.device("cpu"), setting.precision):
            layer = None if route.layer is None else layers - 1
            found, states = model(batch, looks, layer, head=route.head)
        loss = torch.stack([t.sum() for t in (*found, states) if t is not None]).sum()
        del found, states
        loss.backward()
    # of all, and of the first block, whose gradients come last
    return max(peaks) - base, max(peaks[len(peaks) * (layers - 1) // layers :]) - base


def _parts(setting: Setting, width: int) -> list[Part]:
    """Return what the terms see of the batch, as in the loop."""
    sizes = {kind: 0 for kind in setting.problem.terms}
    for i, (_, answer) in enumerate(setting.rows):
        sizes[Kinds.forget if i < setting.forget else Kinds.retain] += answer
    dtype = getattr(torch, setting.dtype)
    return [
        Part(term, sizes[kind], partial(torch.zeros, sizes[kind], width, dtype=dtype))
        for kind, term in setting.problem.terms.items()
    ]


# --- a whole step ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Footprint:
    """Bytes of one process over a step.  What stands in main memory (offload) is not part of the peak."""

    weights: float
    gradients: float
    masters: float
    states: float
    head: float  # as it was before unlearning
    buffers: float  # of combination and perturbation
    activations: float  # forward and backward, logits included
    gathered: float  # sharded: what is whole for a while
    peak: float
    host: float
    checkpoint: float  # on disk, of all processes
    disk: float  # on disk at most while it is trained


def footprint(
    optim: Optim,
    problem: Problem,
    one: Work,
    estimate: Work | None = None,
    *,
    master_weights: bool,
    accumulates: bool,
    parts: int,
    offload: bool,
    element: float = 0,
) -> Footprint:
    """one: of the largest share of a pass.  accumulates: it is not the only pass of its step.

    estimate: of the pass of a curvature estimate, where there is any.  parts: how many processes the model is sharded
    over, 1: it is whole.  element: bytes of a weight, where linear layers stand in 4 bit.  What FSDP2 gathers is
    estimated: what lies outside the blocks with its gradients, the block at work with its own, and the next block.
    """
    size = one.gradients / one.reached  # bytes of a trained number
    wide = WIDE if master_weights and size == 2 else size
    copied = wide != size or (offload and parts == 1)
    whole = one.weights - one.linear * (1 - IN_4BIT / element) if element else one.weights
    weights, gradients = whole / parts, one.reached * size / parts
    stepped = one.reached * wide / parts
    drawn = one.trained if estimate else one.reached  # labels of the curvature take every parameter
    masters = one.trained * wide / parts if copied else 0.0
    states = drawn * wide / parts * optim.states * len(problem.steps)
    gathered = 2 * (one.weights - one.blocks * one.block) + 3 * one.block if parts > 1 else 0.0

    # the step's gradients so far; new ones come one at a time
    so_far = gradients if accumulates or one.passes > 1 else 0.0
    buffers, lasting = problem.buffers * gradients, problem.combine.kept * gradients
    spare = SPARE * WIDE * one.largest / parts
    if estimate:  # rho is found on a sample
        spare = max(spare, SPARE * WIDE * min(SAMPLE, one.trained))
    through = max(one.most + so_far, one.last + gradients) + buffers
    update = (stepped if copied else gradients) + spare
    activations = one.most
    if estimate and optim.curvature:  # its gradients come and go before the step's
        every = drawn * size / parts
        so_far = 0.0 if optim.curvature.rows else every
        through = max(through, lasting + max(estimate.most + so_far, estimate.last + every))
        update = max(update, every + spare)
        activations, gradients = max(activations, estimate.most), every
    kept = masters + states
    if not offload:
        peak, host = weights + kept + gathered + max(through, update + lasting), 0.0
    elif parts == 1:
        peak, host = weights + max(through, gradients), kept + update
    else:
        peak, host = gathered + activations, weights + kept + update + gradients + buffers
    peak += one.head
    stored = one.trained * wide + parts * (states + lasting)
    return Footprint(
        weights, gradients, masters, states, one.head, buffers, activations, gathered, peak, host, stored,
        disk(one.trained * size, stored, one.weights),
    )  # fmt: skip
