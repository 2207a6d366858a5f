"""The forward kernels of the step on CUDA, and what they share with those of `cuda_gradients`.

Tensors in a program are [t, j, r, m] as in `torchcaps.kernels.window_tiles`, and what is one for each parent [t, j].
Where not ROUTED there is no state and activations are weights; DOT compares votes by dot product, where there is no
scale; with WHOLE a child competes over all windows that see it, of which `seen` keeps the largest logit and the sum
of e^(l - it). Where parents are many a program has a tile of them at a time, from `j0` on; then each child is seen by
one window, or WHOLE, so that `seen` says what the tiles must know of each other. Importing this module imports Triton.
"""

# The body of a kernel is Triton's language, and a pointer no tensor.
# pyright: reportArgumentType=false, reportCallIssue=false, reportPrivateUsage=false
from __future__ import annotations

import triton
import triton.language as tl

from torchcaps.kernels.em import sums
from torchcaps.kernels.tiles import inner, parents_at
from torchcaps.kernels.window_tiles import child_at, window_votes

LEAST = tl.constexpr(sums.LEAST)


@triton.jit
def numbers_at(position, count, J, JP: tl.constexpr, j0=0):
    """Return places [t, j] in [positions, j] from `j0` on, and which of them exist."""
    j = j0 + tl.arange(0, JP)[None, :]
    return position[:, None] * J + j, (position < count)[:, None] & (j < J)


@triton.jit
def state_of(mean, scale, prior, at, mask, place, real, ROUTED: tl.constexpr, DOT: tl.constexpr):
    """Return mean, scale and prior of the parents that votes are compared with; zeros where there is none."""
    mu = tl.load(mean + at, mask=mask & ROUTED, other=0.0)
    s = tl.load(scale + at, mask=mask & (ROUTED and not DOT), other=0.0)
    return mu, s, tl.load(prior + place, mask=real & ROUTED, other=0.0)


@triton.jit
def _logits(votes, mu, s, q, j0, J, JP: tl.constexpr, DOT: tl.constexpr):
    """Return [t, j], -inf beyond the last parent."""
    if DOT:
        logits = q + inner(votes, mu)
    else:
        apart = s * (votes - mu)  # before it is squared: the square of a difference may exceed what float32 holds
        logits = q - inner(apart, apart)
    return tl.where((j0 + tl.arange(0, JP) < J)[None, :], logits, float("-inf"))


@triton.jit
def coupling_of(
    votes, mu, s, q, seen, child, present, j0, J,
    JP: tl.constexpr, ROUTED: tl.constexpr, DOT: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    """Return share of each parent in the child, [t, j]; 1 where there is no state."""
    if ROUTED:
        logits = _logits(votes, mu, s, q, j0, J, JP, DOT)
        if WHOLE:  # over all windows, or all tiles: other=inf makes the coupling of an absent child 0
            most = tl.load(seen + 2 * child, mask=present, other=float("inf"))
            whole = tl.load(seen + 2 * child + 1, mask=present, other=1.0)
        else:
            most = tl.max(logits, 1)
            whole = tl.sum(tl.exp(logits - most[:, None]), 1)
        return tl.exp(logits - most[:, None]) / whole[:, None]
    else:
        return tl.full(q.shape, 1.0, q.dtype)


@triton.jit
def forward_kernel(
    poses, weight, activations, mean, scale, prior, seen, centre, square, total, share,
    count, height, width, across, places, stride, padding, types,
    KH: tl.constexpr, KW: tl.constexpr, J: tl.constexpr, R: tl.constexpr, C: tl.constexpr, M: tl.constexpr,
    JP: tl.constexpr, RP: tl.constexpr, MP: tl.constexpr,
    ROUTED: tl.constexpr, DOT: tl.constexpr, WHOLE: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Compute: means, squares about them [runs, t, j, r, m] and weights [runs, t, j] of the positions, the run of
    children and the tile of parents of this program.

    Votes are taken in one by one, so that squares are never uncentred; `cuda.py` joins the runs.
    """
    position, run = tl.program_id(0).to(tl.int64) * T + tl.arange(0, T), tl.program_id(1)
    j0 = tl.program_id(2) * JP
    at, mask = parents_at(position, count, J, R, M, JP, RP, MP, j0)
    place, real = numbers_at(position, count, J, JP, j0)
    mu, s, q = state_of(mean, scale, prior, at, mask, place, real, ROUTED, DOT)
    middle = tl.zeros((T, JP, RP, MP), mu.dtype)  # m_j, S_j T_j and T_j of the children so far
    about = tl.zeros((T, JP, RP, MP), mu.dtype)
    whole = tl.zeros((T, JP), mu.dtype)
    for index in range(run * share, tl.minimum(run * share + share, KH * KW * types)):
        child, present = child_at(
            position, index // types, index % types, count, height, width, across, places, stride, padding, types,
            KW, 1,
        )  # fmt: skip
        votes = window_votes(
            poses, child * R * C, present, weight, index * C * J * M, mu, J, R, C, M, T, JP, RP, MP, j0
        )
        a = tl.load(activations + child, mask=present, other=0.0)  # 0 outside the image: such a vote weighs nothing
        w = coupling_of(votes, mu, s, q, seen, child, present, j0, J, JP, ROUTED, DOT, WHOLE) * a[:, None]
        before = whole
        whole += w
        # Welford's update: m += step e, S T += step T_before e^2, of e = v - m before
        step = w / tl.where(whole > LEAST, whole, 1.0)
        apart = votes - middle
        middle += step[:, :, None, None] * apart
        about += (step * before)[:, :, None, None] * apart * apart
    begin = run.to(tl.int64) * count * J
    tl.store(centre + begin * R * M + at, middle, mask=mask)
    tl.store(square + begin * R * M + at, about, mask=mask)
    tl.store(total + begin + place, whole, mask=real)


@triton.jit
def claim_kernel(
    poses, weight, activations, mean, scale, prior, seen, share,
    count, height, width, across, places, stride, padding, types,
    KH: tl.constexpr, KW: tl.constexpr, J: tl.constexpr, R: tl.constexpr, C: tl.constexpr, M: tl.constexpr,
    JP: tl.constexpr, RP: tl.constexpr, MP: tl.constexpr,
    ROUTED: tl.constexpr, DOT: tl.constexpr, WHOLE: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Compute: `seen` of the children of one type in `share` positions, which start from -inf and 0; see
    `child_kernel`.
    """
    n = tl.program_id(0)
    first = tl.program_id(1).to(tl.int64) * share
    last = tl.minimum(first + share, count)
    for k in range(KH * KW):
        for start in range(first, last, T):
            position = start + tl.arange(0, T)
            child, present = child_at(
                position, k, n, last, height, width, across, places, stride, padding, types, KW, 1
            )
            for j0 in range(0, J, JP):
                at, mask = parents_at(position, last, J, R, M, JP, RP, MP, j0)
                place, real = numbers_at(position, last, J, JP, j0)
                mu, s, q = state_of(mean, scale, prior, at, mask, place, real, ROUTED, DOT)
                votes = window_votes(
                    poses, child * R * C, present, weight, (k * types + n) * C * J * M, mu, J, R, C, M,
                    T, JP, RP, MP, j0,
                )  # fmt: skip
                logits = _logits(votes, mu, s, q, j0, J, JP, DOT)
                # the sum of e^(l - M) over all parents so far, with M the largest: the sum before is moved to the new M
                top = tl.max(logits, 1)
                before = tl.load(seen + 2 * child, mask=present, other=0.0)
                whole = tl.load(seen + 2 * child + 1, mask=present, other=0.0)
                most = tl.maximum(before, top)
                whole = whole * tl.exp(before - most) + tl.sum(tl.exp(logits - most[:, None]), 1)
                tl.store(seen + 2 * child, most, mask=present)
                tl.store(seen + 2 * child + 1, whole, mask=present)
                tl.debug_barrier()  # what a thread has stored another may load
