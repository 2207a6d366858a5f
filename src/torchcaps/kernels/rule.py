"""Which form "auto" takes where nobody has timed both: a rule on shapes alone, the same on every machine of a kind.

On a CPU the newest line `forms/...` of each machine, layer and batch in results/benchmarks.jsonl, from four children
upwards, has the kernel ahead of the plain step, so the rule is: the kernel. It does not ask for the batch: a layer
computes one form at any size of it, though which loops of a kernel run may depend on it.

On CUDA there is no line yet, and the rule is careful. Where a window has one place there are few programs to keep a
device busy, so attention, EM and variational Bayes are plain there. Where the votes of one child are more than
registers hold, parents come in tiles, and all are plain.
`torchcaps.choose`, and `fit` before its first step, time both forms of a layer instead.
"""

from __future__ import annotations

import math

from torchcaps.routing.fused import Transform

REGISTERS = 2048  # elements of one child's votes, at most, padded to powers of two
LANES = 16  # of a vector on a CPU, as in `torchcaps.kernels.simd`, which imports numba


def unless_wide(device: str, transform: Transform) -> bool:
    """Return everywhere, but on CUDA where the votes of one child fit into registers."""
    parents, *_, columns = transform.shape
    sizes = parents, transform.sizes.pose // columns, columns
    return device != "cuda" or math.prod(1 << (size - 1).bit_length() for size in sizes) <= REGISTERS


def off_cuda(device: str, transform: Transform) -> bool:
    """Return everywhere but on CUDA."""
    return device != "cuda"


def few_fit(transform: Transform) -> bool:
    """Return whether all iterations of a layer for a few images run at once: of vector poses of whole vectors."""
    out = transform.shape[-1]
    return transform.sizes.pose == out and out % LANES == 0
