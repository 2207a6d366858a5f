"""Every algorithm as loops over its paper's formula, in float64 and without torch: the truth for the library.

A layer is described by what each parent position sees: `Seen.votes[b, p, i, j]` is a vote (a vector of d), and
`Seen.child[p][i]` names the child, so that it is known again in another window, or is None outside the image.
"""

import math
from dataclasses import dataclass

import numpy as np


@dataclass
class Seen:
    votes: np.ndarray  # [b, p, i, j, d]
    activations: np.ndarray | None  # [b, p, i]
    child: list[list[tuple | None]]  # [p][i]

    @property
    def shape(self):
        return self.votes.shape


def vote(pose, weight, rows):
    """pose (rows x columns, flattened) times weight (columns x m), flattened."""
    columns = len(pose) // rows
    out = []
    for r in range(rows):
        for m in range(weight.shape[1]):
            out.append(sum(pose[r * columns + c] * weight[c, m] for c in range(columns)))
    return out


def linear_votes(poses, weight, rows, activations=None):
    """poses [b, i, d], weight [j, i, c, m]."""
    b, i, _ = poses.shape
    j = weight.shape[0]
    votes = [[[[vote(poses[n, k], weight[q, k], rows) for q in range(j)] for k in range(i)]] for n in range(b)]
    activations = None if activations is None else activations[:, None]
    return Seen(np.array(votes), activations, [[(k,) for k in range(i)]])


def conv_votes(poses, weight, rows, stride, padding, activations=None):
    """poses [b, h, w, i, d], weight [j, kh, kw, i, c, m]."""
    b, h, w, types, _ = poses.shape
    j, kh, kw, _, _, m = weight.shape
    child = []
    votes, acts = [[] for _ in range(b)], [[] for _ in range(b)]
    for oy in range((h + 2 * padding - kh) // stride + 1):
        for ox in range((w + 2 * padding - kw) // stride + 1):
            names, here, here_acts = [], [[] for _ in range(b)], [[] for _ in range(b)]
            for ky in range(kh):
                for kx in range(kw):
                    y, x = oy * stride - padding + ky, ox * stride - padding + kx
                    inside = 0 <= y < h and 0 <= x < w
                    for k in range(types):
                        names.append((y, x, k) if inside else None)
                        for n in range(b):
                            if inside:
                                here[n].append([vote(poses[n, y, x, k], weight[q, ky, kx, k], rows) for q in range(j)])
                                here_acts[n].append(0.0 if activations is None else activations[n, y, x, k])
                            else:
                                here[n].append([[0.0] * (rows * m)] * j)
                                here_acts[n].append(0.0)
            child.append(names)
            for n in range(b):
                votes[n].append(here[n])
                acts[n].append(here_acts[n])
    return Seen(np.array(votes), None if activations is None else np.array(acts), child)


def softmax_over_parents(seen, logits, scope):
    """logits [b, p, i, j]; each child over the parents at p, or over all (p, j) at which it is seen."""
    b, p, i, j = logits.shape
    out = np.zeros_like(logits)
    for n in range(b):
        for q in range(p):
            for k in range(i):
                name = seen.child[q][k]
                if name is None:
                    continue
                rivals = [(q, k)]
                if scope == "image":
                    rivals = [(u, v) for u in range(p) for v in range(i) if seen.child[u][v] == name]
                top = max(logits[n, u, v, s] for u, v in rivals for s in range(j))
                total = sum(math.exp(logits[n, u, v, s] - top) for u, v in rivals for s in range(j))
                for s in range(j):
                    out[n, q, k, s] = math.exp(logits[n, q, k, s] - top) / total
    return out


def softmax_over_children(seen, logits):
    b, p, i, j = logits.shape
    out = np.zeros_like(logits)
    for n in range(b):
        for q in range(p):
            there = [k for k in range(i) if seen.child[q][k] is not None]
            for s in range(j):
                total = sum(math.exp(logits[n, q, k, s]) for k in there)
                for k in there:
                    out[n, q, k, s] = math.exp(logits[n, q, k, s]) / total
    return out


def squash(v):
    square = sum(x * x for x in v)
    return v * square / (1 + square) / math.sqrt(square) if square > 0 else 0 * v


def each_parent(seen):
    b, p, _, j, _ = seen.shape
    return [(n, q, s) for n in range(b) for q in range(p) for s in range(j)]


def weighted_sum(seen, coupling):
    b, p, i, j, d = seen.shape
    out = np.zeros((b, p, j, d))
    for n, q, s in each_parent(seen):
        for k in range(i):
            out[n, q, s] += coupling[n, q, k, s] * seen.votes[n, q, k, s]
    return out


def agreement(seen, parents):
    b, p, i, j, _ = seen.shape
    out = np.zeros((b, p, i, j))
    for n, q, s in each_parent(seen):
        for k in range(i):
            out[n, q, k, s] = sum(seen.votes[n, q, k, s] * parents[n, q, s])
    return out


def squashed(poses):
    return np.apply_along_axis(squash, -1, poses)


def uniform(seen):
    b, p, i, j, _ = seen.shape
    return squashed(weighted_sum(seen, np.full((b, p, i, j), 1 / j)))


def dynamic(seen, iterations, over="parents"):
    """Sabour et al. 2017, Procedure 1, with the logits kept and updated as printed."""
    b, p, i, j, _ = seen.shape
    logits = np.zeros((b, p, i, j))
    for _ in range(iterations):
        coupling = (
            softmax_over_parents(seen, logits, "window") if over == "parents" else softmax_over_children(seen, logits)
        )
        parents = squashed(weighted_sum(seen, coupling))
        logits = logits + agreement(seen, parents)
    return parents


def inverted_attention_step(seen, parents, gain, bias, scale, scope="window", eps=1e-5):
    """Tsai et al. 2020, Procedure 1: one call, from the parents of the previous iteration [b, p, j, d]."""
    out = weighted_sum(seen, softmax_over_parents(seen, agreement(seen, parents) * scale, scope))
    for n, q, s in each_parent(seen):
        x = out[n, q, s]
        mean = sum(x) / len(x)
        variance = sum((x - mean) ** 2) / len(x)
        out[n, q, s] = (x - mean) / math.sqrt(variance + eps) * gain + bias
    return out


def em(seen, iterations, beta_u, beta_a, scope, temperature, eps):
    """Hinton et al. 2018, Procedure 1, with `eps` where the library says it stands."""
    b, p, i, j, d = seen.shape
    coupling = softmax_over_parents(seen, np.zeros((b, p, i, j)), scope)
    mean, variance = np.zeros((b, p, j, d)), np.zeros((b, p, j, d))
    activation = np.zeros((b, p, j))
    for t in range(iterations):
        heat = temperature * (1 - 0.95 ** (t + 1))
        for n, q, s in each_parent(seen):
            share = [coupling[n, q, k, s] * seen.activations[n, q, k] for k in range(i)]
            total = sum(share)
            cost = 0.0
            for h in range(d):
                m = sum(share[k] * seen.votes[n, q, k, s, h] for k in range(i)) / (total + eps)
                v = sum(share[k] * (seen.votes[n, q, k, s, h] - m) ** 2 for k in range(i)) / (total + eps) + eps
                mean[n, q, s, h], variance[n, q, s, h] = m, v
                cost += (beta_u[s] + math.log(math.sqrt(v))) * total
            activation[n, q, s] = 1 / (1 + math.exp(-heat * (beta_a[s] - cost)))
        logits = np.zeros((b, p, i, j))
        for n, q, s in each_parent(seen):
            for k in range(i):
                density = 0.0
                for h in range(d):
                    v = variance[n, q, s, h]
                    gap = seen.votes[n, q, k, s, h] - mean[n, q, s, h]
                    density -= gap * gap / (2 * v) + 0.5 * math.log(2 * math.pi * v)
                logits[n, q, k, s] = math.log(activation[n, q, s]) + density
        coupling = softmax_over_parents(seen, logits, scope)
    return mean, activation


def discriminative_parents(seen, coefficient):
    b, p, _, _, _ = seen.shape
    return squashed(weighted_sum(seen, np.broadcast_to(coefficient, (b, p, *coefficient.shape))))


def discriminative_step(seen, coefficient, targets, gamma, weight, norm):
    """Yang et al. 2021, Eq. 13 and 15, with U U' built as printed and the sum over observations a mean.

    Eq. 15 as printed doubles the l1 term; the derivative of Eq. 14 does not.
    """
    b, p, i, j, _ = seen.shape
    new = coefficient.copy()
    for s in range(j):
        gradient = np.zeros(i)
        for n in range(b):
            delta = 1.0 if targets[n, s] else -1.0
            for q in range(p):
                u = seen.votes[n, q, :, s]  # [i, d]
                gradient += 2 * delta * (u @ u.T) @ coefficient[:, s] / b
        gradient -= weight * (2 * coefficient[:, s] if norm == "l2" else np.sign(coefficient[:, s]))
        new[:, s] += gamma * gradient
    return new
