"""The backward kernels of the step on CUDA; see `cuda_kernels`. Importing this module imports Triton.

Names are those of README.md's "Backward": m, g, v and h are m, G, V and H there; mu, s and q are mu, kappa and q; y is
v_ij - m_j, e is v_ij - mu_j, and l is the gradient of the logit l_ij.
"""

# The body of a kernel is Triton's language, and a pointer no tensor.
# pyright: reportArgumentType=false, reportCallIssue=false, reportPrivateUsage=false
from __future__ import annotations

import triton
import triton.language as tl

from torchcaps.kernels.em.cuda_kernels import coupling_of, numbers_at, state_of
from torchcaps.kernels.tiles import inner, parents_at
from torchcaps.kernels.window_tiles import child_at, column_of, row_of, window_votes


@triton.jit
def _result(mean, of_mean, of_square, of_weight, at, mask, place, real):
    """Return m, G, V and H of README.md."""
    m = tl.load(mean + at, mask=mask, other=0.0)
    g = tl.load(of_mean + at, mask=mask, other=0.0)
    v = tl.load(of_square + at, mask=mask, other=0.0)
    return m, g, v, tl.load(of_weight + place, mask=real, other=0.0)


@triton.jit
def _change(votes, m, g, v, h):
    """Return the gradient of the weight of each pair, [t, j]: dw_ij = H_j + sum_d y (G_j + V_j y)."""
    y = votes - m
    return h + inner(y, g + v * y)


@triton.jit
def activation_kernel(
    poses, weight, activations, mean, scale, prior, seen, found, of_mean, of_square, of_weight, d_activations,
    share, count, height, width, across, places, stride, padding, types,
    KH: tl.constexpr, KW: tl.constexpr, J: tl.constexpr, R: tl.constexpr, C: tl.constexpr, M: tl.constexpr,
    JP: tl.constexpr, RP: tl.constexpr, MP: tl.constexpr,
    ROUTED: tl.constexpr, DOT: tl.constexpr, WHOLE: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Compute: gradient of the activations of children that compete over all windows; see `child_kernel`."""
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
                m, g, v, h = _result(found, of_mean, of_square, of_weight, at, mask, place, real)
                votes = window_votes(
                    poses, child * R * C, present, weight, (k * types + n) * C * J * M, mu, J, R, C, M,
                    T, JP, RP, MP, j0,
                )  # fmt: skip
                c = coupling_of(votes, mu, s, q, seen, child, present, j0, J, JP, ROUTED, DOT, WHOLE)
                da = tl.load(d_activations + child, mask=present, other=0.0)
                da += tl.sum(c * _change(votes, m, g, v, h), 1)  # da_i = sum_j c_ij dw_ij, window after window
                tl.store(d_activations + child, da, mask=present)
                tl.debug_barrier()  # what a thread has stored another may load


@triton.jit
def child_kernel(
    poses, weight, activations, mean, scale, prior, seen, found, of_mean, of_square, of_weight, d_activations,
    d_poses, d_weight, share, count, height, width, across, places, stride, padding, types,
    KH: tl.constexpr, KW: tl.constexpr, J: tl.constexpr, R: tl.constexpr, C: tl.constexpr, M: tl.constexpr,
    JP: tl.constexpr, RP: tl.constexpr, MP: tl.constexpr,
    ROUTED: tl.constexpr, DOT: tl.constexpr, WHOLE: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Compute: children of one type in `share` positions, which no other program has, and their part of the weights'
    gradient.

    Windows share a child only at different offsets, which come one after another. The gradient of activations is there
    already with WHOLE, and else made here.
    """
    n, part = tl.program_id(0), tl.program_id(1).to(tl.int64)
    first = part * share
    last = tl.minimum(first + share, count)
    for k in range(KH * KW):
        matrix = (k * types + n) * C * J * M
        own = part * KH * KW * types * C * J * M + matrix
        for start in range(first, last, T):
            position = start + tl.arange(0, T)
            child, present = child_at(
                position, k, n, last, height, width, across, places, stride, padding, types, KW, 1
            )
            a = tl.load(activations + child, mask=present, other=0.0)
            for j0 in range(0, J, JP):
                at, mask = parents_at(position, last, J, R, M, JP, RP, MP, j0)
                place, real = numbers_at(position, last, J, JP, j0)
                mu, s, q = state_of(mean, scale, prior, at, mask, place, real, ROUTED, DOT)
                m, g, v, h = _result(found, of_mean, of_square, of_weight, at, mask, place, real)
                votes = window_votes(poses, child * R * C, present, weight, matrix, mu, J, R, C, M, T, JP, RP, MP, j0)
                c = coupling_of(votes, mu, s, q, seen, child, present, j0, J, JP, ROUTED, DOT, WHOLE)
                change = _change(votes, m, g, v, h)  # dw_ij
                w = c * a[:, None]
                da = tl.load(d_activations + child, mask=present, other=0.0)
                if not WHOLE:  # a child competes at each position apart, so its logits need this window's sum alone
                    own_da = tl.sum(c * change, 1)
                    tl.store(d_activations + child, da + own_da, mask=present)
                    da = own_da
                d_votes = w[:, :, None, None] * (g + 2 * v * (votes - m))  # w_ij (G_j + 2 V_j y)
                if ROUTED:
                    l = (w * (change - da[:, None]))[:, :, None, None]  # dl_ij = w_ij (dw_ij - da_i)
                    if DOT:
                        d_votes += l * mu
                    else:
                        d_votes -= 2 * l * (s * (votes - mu)) * s
                for column in range(C):  # du_i += sum_j dv_ij W_ij', and dW_ij += sum_t u_i' dv_ij, by columns of u
                    u, where, r = column_of(poses, child * R * C, present, column, R, C, RP)
                    row, _, _ = row_of(weight, matrix, column, J, M, JP, MP, j0)
                    d_u = tl.sum(tl.sum(d_votes * row[None, :, None, :], 3), 1)
                    inside = present[:, None] & (r < R)[None, :]
                    tl.store(d_poses + where, tl.load(d_poses + where, mask=inside, other=0.0) + d_u, mask=inside)
                    d_row, lies, exists = row_of(d_weight, own, column, J, M, JP, MP, j0)
                    d_row += tl.sum(tl.sum(d_votes * u[:, None, :, None], 2), 0)
                    tl.store(d_weight + lies, d_row, mask=exists)
                tl.debug_barrier()  # what a thread has stored another may load


@triton.jit
def state_kernel(
    poses, weight, activations, mean, scale, prior, seen, found, of_mean, of_square, of_weight, d_activations,
    first, second, third, share, count, height, width, across, places, stride, padding, types,
    KH: tl.constexpr, KW: tl.constexpr, J: tl.constexpr, R: tl.constexpr, C: tl.constexpr, M: tl.constexpr,
    JP: tl.constexpr, RP: tl.constexpr, MP: tl.constexpr,
    ROUTED: tl.constexpr, DOT: tl.constexpr, WHOLE: tl.constexpr, T: tl.constexpr,
):  # fmt: skip
    """Compute: the sums l s e, l s e^2 [runs, t, j, r, m] and l [runs, t, j], or with DOT l v and l, like
    `forward_kernel`'s.
    """
    position, run = tl.program_id(0).to(tl.int64) * T + tl.arange(0, T), tl.program_id(1)
    j0 = tl.program_id(2) * JP
    at, mask = parents_at(position, count, J, R, M, JP, RP, MP, j0)
    place, real = numbers_at(position, count, J, JP, j0)
    mu, s, q = state_of(mean, scale, prior, at, mask, place, real, ROUTED, DOT)
    m, g, v, h = _result(found, of_mean, of_square, of_weight, at, mask, place, real)
    of_mu = tl.zeros((T, JP, RP, MP), mu.dtype)
    of_s = tl.zeros((T, JP, RP, MP), mu.dtype)
    of_q = tl.zeros((T, JP), mu.dtype)
    for index in range(run * share, tl.minimum(run * share + share, KH * KW * types)):
        child, present = child_at(
            position, index // types, index % types, count, height, width, across, places, stride, padding, types,
            KW, 1,
        )  # fmt: skip
        votes = window_votes(
            poses, child * R * C, present, weight, index * C * J * M, mu, J, R, C, M, T, JP, RP, MP, j0
        )
        c = coupling_of(votes, mu, s, q, seen, child, present, j0, J, JP, ROUTED, DOT, WHOLE)
        change = _change(votes, m, g, v, h)
        da = tl.load(d_activations + child, mask=present, other=0.0) if WHOLE else tl.sum(c * change, 1)
        a = tl.load(activations + child, mask=present, other=0.0)
        l = c * a[:, None] * (change - da[:, None])  # dl_ij; `sums.of_parents` makes the state's gradients of sums
        of_q += l
        if DOT:
            of_mu += l[:, :, None, None] * votes
        else:
            e = votes - mu
            le = l[:, :, None, None] * (s * e)
            of_mu += le
            of_s += le * e
    begin = run.to(tl.int64) * count * J
    tl.store(first + begin * R * M + at, of_mu, mask=mask)
    if not DOT:
        tl.store(second + begin * R * M + at, of_s, mask=mask)
    tl.store(third + begin + place, of_q, mask=real)
