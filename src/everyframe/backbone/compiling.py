"""The image tower through torch.compile, with a handful of shapes.

I-batches and P-batches come as tokens [B, n, W]; a compiled graph, and even more so a recorded CUDA graph, is good for
one shape. n takes two values in an encoder, but the last batch of a video has any B: it is filled up with zeros to a
size that is compiled already, and the filling is cut off again. Sequences of a batch do not see each other, so the
others' features are what they were.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

Layers = Callable[[Tensor], Tensor]
Backend = Callable[..., Any]
MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
MOST_SHAPES = 6
"""Shapes that are compiled, at most: each takes up to a minute, and memory where a CUDA graph is recorded."""


class Compiled:
    """Runs a tower's `layers`, tokens [B, n, W] -> features [B, D], compiled for few batch sizes B of each length n.

    A batch larger than any before is compiled as it is; a smaller one is filled up to the smallest size that holds it.
    One that would be less than half full, or a seventh shape, runs as without compilation: that is cheaper than a graph
    of mostly zeros, or than a minute of compiling. Results are those of `layers` within the rounding of their dtype.

    mode, backend: as for torch.compile. With CUDA graphs (modes "reduce-overhead" and "max-autotune") all calls must
    come from one thread.
    Raises ValueError for an unknown mode or backend, or a mode where the backend is not "inductor".
    """

    def __init__(self, layers: Layers, *, mode: str | None = None, backend: str | Backend = "inductor") -> None:
        if mode is not None and mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        if mode is not None and backend != "inductor":
            raise ValueError(f"mode is one of the backend 'inductor', not of {backend!r}; leave it out")
        if isinstance(backend, str):
            known = torch.compiler.list_backends(exclude_tags=())
            if backend not in known:
                raise ValueError(f"backend must be one of {', '.join(known)}, got {backend!r}")
        self.mode, self.backend = mode, backend
        self._layers = layers
        self._compiled: dict[tuple[Any, ...], dict[int, Layers]] = {}  # by everything else of the tokens, and B

    @property
    def num_shapes(self) -> int:
        """Shapes compiled so far."""
        return sum(map(len, self._compiled.values()))

    def __call__(self, tokens: Tensor) -> Tensor:
        """What `layers` returns, never in memory that a later call writes to."""
        count = len(tokens)
        by_size = self._compiled.setdefault((tuple(tokens.shape[1:]), tokens.dtype, tokens.device), {})
        size = min((size for size in by_size if size >= count), default=None)
        if size is None and count and self.num_shapes < MOST_SHAPES:
            size, by_size[count] = count, self._compile()
        if size is None or 2 * count < size:
            return self._layers(tokens)
        if count < size:
            tokens = F.pad(tokens, (0, 0, 0, 0, 0, size - count))
        # A copy: the next run of a recorded CUDA graph writes its result into the same memory.
        return by_size[size](tokens)[:count].clone()

    def _compile(self) -> Layers:
        layers = self._layers

        def run(tokens: Tensor) -> Tensor:
            return layers(tokens)

        # Torch counts what it compiled per code object, of all models together, and gives up after eight.
        run.__code__ = run.__code__.replace()
        return torch.compile(run, fullgraph=True, dynamic=False, mode=self.mode, backend=self.backend)

    def __getstate__(self) -> dict[str, Any]:
        # A copy compiles for itself: neither compiled code nor graphs can be sent.
        return {**vars(self), "_compiled": {}}
