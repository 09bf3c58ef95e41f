"""Standard normal numbers that do not depend on how rows are batched."""

from __future__ import annotations

import hashlib

import torch

from gradlogp._shapes import Batch, event_size

_NUMBERS = 2**15  # numbers a block of rows, at least one row


class Noise:
    """Draws z ~ N(0, I) for consecutive rows; a row's numbers depend on the seed, its place and the draw alone.

    Rows are drawn in blocks whose size depends on the event only, each block from a generator of its own.

    Args:
        seed: of the run.
        first: place of the first row among all rows of the run.
    """

    def __init__(self, seed: int, first: int = 0) -> None:
        self.seed = seed
        self.first = first
        self.draws = 0

    def __call__(self, like: Batch) -> Batch:
        """The next draw, in the shape, dtype and device of ``like``."""
        event = tuple(like.shape[1:])
        size = max(1, _NUMBERS // event_size(event))
        low, high = self.first // size, (self.first + len(like) - 1) // size
        blocks = []
        for block in range(low, high + 1):
            g = torch.Generator(like.device).manual_seed(mixed(self.seed, self.draws, block))
            blocks.append(torch.randn(size, *event, generator=g, dtype=torch.float32, device=like.device))
        self.draws += 1
        start = self.first - low * size
        return torch.cat(blocks)[start : start + len(like)].to(like.dtype)


def mixed(*numbers: int) -> int:
    """A seed from several numbers: a hash, so that no two streams are related."""
    digest = hashlib.blake2b(",".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
