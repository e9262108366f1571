"""Answers to one prompt that share what they have in common, for scoring."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from soul_cli.core.types import Inputs, Prompted


class Tree:
    """The tokens of a prompt and of all its answers, each once: answers that begin alike share their beginning.

    A token sees its own branch alone.  The last token of an answer is only predicted, and is not here.
    """

    def __init__(self, group: Prompted, *, score_prompt: bool = False):
        self.tokens = list(group.prompt)
        self.parents = list(range(-1, len(group.prompt) - 1))  # what a token stands behind; -1: nothing
        self.depths = list(range(len(group.prompt)))
        children: dict[tuple[int, int], int] = {}
        asked: dict[tuple[int, int], int] = {}  # (behind which token, what is to be predicted) -> its place in pairs
        self.paths: list[list[int]] = []  # for each answer, with score_prompt the prompt first: places in pairs

        def ask(where: int, target: int) -> int:
            return asked.setdefault((where, target), len(asked))

        if score_prompt:
            self.paths.append([ask(i, t) for i, t in enumerate(group.prompt[1:])])
        for answer in group.answers:
            path, at = [], len(group.prompt) - 1
            for i, token in enumerate(answer):
                path.append(ask(at, token))
                if i + 1 == len(answer):
                    break
                if (at, token) not in children:
                    children[at, token] = len(self.tokens)
                    self.tokens.append(token)
                    self.parents.append(at)
                    self.depths.append(self.depths[at] + 1)
                at = children[at, token]
            self.paths.append(path)
        self.pairs = list(asked)

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def straight(self) -> bool:
        """Return whether it has no branches."""
        return self.parents == list(range(-1, len(self) - 1))


def plant(trees: Sequence[Tree]) -> Inputs:
    """Return trees right-padded to one batch; its targets are their pairs, one tree after the other.

    Pads see themselves alone, and nothing sees them.
    """
    width = max(map(len, trees))
    ids, positions = np.zeros((2, len(trees), width), dtype=np.int64)
    for b, tree in enumerate(trees):
        ids[b, : len(tree)], positions[b, : len(tree)] = tree.tokens, tree.depths
    plain = all(tree.straight for tree in trees)
    return Inputs(
        torch.from_numpy(ids),
        None if plain else torch.from_numpy(positions),
        None if plain else torch.from_numpy(_sight(trees, width)),
        torch.tensor([b * width + where for b, tree in enumerate(trees) for where, _ in tree.pairs]),
        torch.tensor([target for tree in trees for _, target in tree.pairs]),
    )


def _sight(trees: Sequence[Tree], width: int) -> np.ndarray:
    """Return (B, 1, width, width), True where the one token may look at the other: what its parent sees, and itself."""
    mask = np.zeros((len(trees), 1, width, width), dtype=bool)
    for sees, tree in zip(mask[:, 0], trees, strict=True):
        for i, parent in enumerate(tree.parents):
            if parent >= 0:
                sees[i] = sees[parent]
            sees[i, i] = True
        sees[range(len(tree), width), range(len(tree), width)] = True
    return mask
