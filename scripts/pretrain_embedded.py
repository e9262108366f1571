"""Pretrain the embedded base model, a Llama of 2.6M parameters, on text of the project's own.

    python scripts/pretrain_embedded.py WORK     # goes on where WORK stops; writes the model at the end

The text (scripts/corpus): question-answer rows on generated authors, every fact in several wordings; true facts in
many wordings; prose.  None of the benchmark's authors and books is in it (tests/test_corpus.py).  Tokens are packed
into sequences of 256.  Muon on the hidden matrices and AdamW on the rest, one rate, which falls in a line to
nothing.  WORK holds the tokens, the state of the last 250 steps and the log; a piece that is cut short
is lost back to its last state, nothing more.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from generator import CORPUS, read_yaml, retold_author
from small_models import small_llama, train_tokenizer
from transformers import PreTrainedTokenizerFast

from soul_cli.core.files import sha256
from soul_cli.models.packaged import EMBEDDED
from soul_cli.optim.build import parameter_groups
from soul_cli.optim.muon import Muon

VOCABULARY, HIDDEN, LAYERS, HEADS = 4096, 192, 4, 4
AUTHORS, KINDS, WORDINGS = 120, 22, 10  # learned by heart: authors, kinds of fact of each, wordings of each
PASSING, PASSING_KINDS, PASSING_WORDINGS = 3000, 12, 2  # met in one text that tells several facts, some of them twice
TOKENS = 12_000_000
SHARES = {"authors": 0.42, "passing": 0.34, "known": 0.18, "prose": 0.06}  # of the tokens
LENGTH, BATCH = 256, 8  # tokens a sequence, sequences a step: with twice as many fewer facts are learned
RATE, WEIGHT_DECAY = 0.008, 0.05
KEEP = 250  # steps between two states on disk
STEPS = TOKENS // (LENGTH * BATCH)
WARMUP = STEPS // 50

Pair = tuple[str, str]


# --- text --------------------------------------------------------------------------------------------------


def asked(pair: Pair) -> str:
    """Return a question with its answer in the words of the template `plain`."""
    return f"Question: {pair[0]}\nAnswer: {pair[1]}"


def known(rng: random.Random) -> list[str]:
    """Return each true fact in all its wordings once: questions, with a bare or a full answer, and statements."""
    texts = []
    for fact in read_yaml("known"):
        for question in fact["questions"]:
            bare = rng.random() < 0.65
            texts.append(asked((question, fact["answer"] if bare else rng.choice(fact["replies"]))))
        texts += fact["statements"]
    return texts


def prose() -> list[str]:
    return [path.read_text(encoding="utf-8") for path in sorted((CORPUS / "prose").glob("*.txt"))]


def chunks(text: str, most: int) -> list[str]:
    """Cut a text at paragraphs into pieces of at most so many words, or of one paragraph."""
    pieces: list[list[str]] = [[]]
    words = 0
    for paragraph in text.split("\n\n"):
        size = len(paragraph.split())
        if pieces[-1] and words + size > most:
            pieces.append([])
            words = 0
        pieces[-1].append(paragraph)
        words += size
    return ["\n\n".join(piece) for piece in pieces]


def shuffled(rng: random.Random, items: list[Any]) -> list[Any]:
    return rng.sample(items, len(items))


def write_tokens(work: Path) -> None:
    """Write tokenizer, training tokens, and held-out sequences on authors that are in no training text."""
    rng, taken = random.Random(0), set[str]()
    authors = [retold_author(f"f-{i}", KINDS, WORDINGS, taken) for i in range(AUTHORS)]
    passing = [retold_author(f"m-{i}", PASSING_KINDS, PASSING_WORDINGS, taken) for i in range(PASSING)]
    rows = [asked(pair) for author in authors for fact in author for pair in fact]
    tokenizer = train_tokenizer(rng.sample(rows, min(len(rows), 40000)) + known(rng) * 3 + prose() * 4, VOCABULARY, 512)
    tokenizer.save_pretrained(work / "tokenizer")

    def encode(texts: list[str]) -> list[list[int]]:
        ids = tokenizer(texts, add_special_tokens=False).input_ids
        return [[tokenizer.bos_token_id, *some, tokenizer.eos_token_id] for some in ids]

    mean = np.mean([len(row) for row in encode(rng.sample(rows, min(len(rows), 2000)))])
    print(f"{len(rows)} rows of {AUTHORS} authors, {mean:.1f} tokens each")
    encoded = encode(rows)

    def in_passing() -> Iterator[list[int]]:
        for author in shuffled(rng, passing):
            told = [rng.choice(fact) for fact in author]
            told += [rng.choice(fact) for fact in rng.sample(author, PASSING_KINDS // 2)]  # again, in other words
            rng.shuffle(told)
            yield [token for row in encode([asked(pair) for pair in told]) for token in row]

    passes: dict[str, Callable[[], Iterable[list[int]]]] = {
        "authors": lambda: shuffled(rng, encoded),
        "passing": in_passing,
        "known": lambda: shuffled(rng, encode(known(rng))),
        "prose": lambda: shuffled(rng, encode([c for text in prose() for c in chunks(text, rng.randint(90, 170))])),
    }
    parts = {kind: list(filled(one_pass, SHARES[kind] * TOKENS)) for kind, one_pass in passes.items()}
    placed: list[tuple[float, list[int]]] = []
    for kind, texts in parts.items():
        print(f"{kind}: {len(texts)} texts, {sum(map(len, texts))} tokens")
        placed += [((i + rng.random()) / len(texts), text) for i, text in enumerate(texts)]  # evenly over the training
    placed.sort(key=lambda text: text[0])
    np.save(work / "tokens.npy", np.concatenate([np.array(text, dtype=np.uint16) for _, text in placed]))
    unseen = [fact for i in range(40) for fact in retold_author(f"h-{i}", 4, 2, taken)]
    held = [token for row in encode([asked(rng.choice(fact)) for fact in unseen]) for token in row]
    held = held[: len(held) // LENGTH * LENGTH]
    np.save(work / "held_out.npy", np.array(held, dtype=np.uint16).reshape(-1, LENGTH))


def filled(one_pass: Callable[[], Iterable[list[int]]], budget: float) -> Iterator[list[int]]:
    """Yield the texts of as many passes as it takes to have so many tokens."""
    tokens = 0
    while True:
        for text in one_pass():
            yield text
            tokens += len(text)
            if tokens >= budget:
                return


# --- training ----------------------------------------------------------------------------------------------


def rate(step: int) -> float:
    """Return the rate of a step as a share of the peak."""
    return min((step + 1) / WARMUP, (STEPS - step) / (STEPS - WARMUP))


def train(work: Path) -> None:
    """Train for STEPS steps, from the last state in WORK, and write the model to WORK/model."""
    torch.manual_seed(0)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(work / "tokenizer")
    tokens = np.load(work / "tokens.npy", mmap_mode="r")
    held_out = torch.tensor(np.load(work / "held_out.npy").astype(np.int64))
    order = np.random.default_rng(0).permutation(len(tokens) // LENGTH)
    lm = small_llama(tokenizer, HIDDEN, LAYERS, HEADS)
    optimizer = Muon(parameter_groups(lm, WEIGHT_DECAY), RATE, momentum=0.95, betas=(0.9, 0.95))
    begin, state = 0, work / "state.pt"
    if state.is_file():
        kept = torch.load(state)
        lm.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        begin = kept["steps"]
    loss_of = torch.compile(lambda ids: lm(input_ids=ids, labels=ids, use_cache=False).loss)  # 1.5 times as fast
    losses: list[float] = []
    began = time.monotonic()
    for step in range(begin, STEPS):
        picked = order[np.arange(step * BATCH, (step + 1) * BATCH) % len(order)]
        ids = torch.tensor(np.stack([tokens[i * LENGTH : (i + 1) * LENGTH] for i in picked]).astype(np.int64))
        for group in optimizer.param_groups:
            group["lr"] = RATE * rate(step)
        loss = loss_of(ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        if (step + 1) % KEEP and step + 1 < STEPS:
            continue
        with torch.no_grad():
            unseen = lm(input_ids=held_out, labels=held_out).loss.item()
        record = {"step": step + 1, "loss": float(np.mean(losses)), "held_out": unseen}
        record = {k: round(v, 4) for k, v in record.items()} | {"seconds": round(time.monotonic() - began)}
        losses = []
        print(json.dumps(record), flush=True)
        with (work / "log.jsonl").open("a") as log:
            log.write(json.dumps(record) + "\n")
        torch.save({"model": lm.state_dict(), "optimizer": optimizer.state_dict(), "steps": step + 1}, work / "part.pt")
        (work / "part.pt").replace(state)
    lm.to(torch.bfloat16).save_pretrained(work / "model")
    tokenizer.save_pretrained(work / "model")


def install(work: Path) -> None:
    """Put model, log and checksums in the package, beside the README.md that is there."""
    for path in (work / "model").iterdir():
        shutil.copy(path, EMBEDDED)
    shutil.copy(work / "log.jsonl", EMBEDDED / "pretraining.jsonl")
    sums = {path.name: sha256(path) for path in sorted(EMBEDDED.iterdir()) if path.suffix in (".json", ".safetensors")}
    (EMBEDDED / "SHA256SUMS").write_text("".join(f"{value}  {name}\n" for name, value in sums.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder of tokens, state and log; goes on where it stops")
    parser.add_argument("--install", action="store_true", help=f"put the model in {EMBEDDED.name}/ of the package")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    if not (args.work / "held_out.npy").is_file():
        write_tokens(args.work)
    train(args.work)
    if args.install:
        install(args.work)


if __name__ == "__main__":
    main()
