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


def scrambled_votes(poses, weight, rows, stride):
    """What the released code of Tsai et al. 2020 votes: the poses of a child of the window at all places, [d, places],
    are read as [places, d]. poses [b, h, w, i, d], weight [j, kh, kw, i, c, m].
    """
    b, h, w, types, d = poses.shape
    j, kh, kw, _, _, m = weight.shape
    height, width = (h - kh) // stride + 1, (w - kw) // stride + 1
    places = [(oy, ox) for oy in range(height) for ox in range(width)]
    children = [(ky, kx, k) for ky in range(kh) for kx in range(kw) for k in range(types)]
    votes = np.zeros((b, len(places), len(children), j, rows * m))
    for n in range(b):
        for slot, (ky, kx, k) in enumerate(children):
            memory = []  # element by element, and in each of them place by place
            for element in range(d):
                for oy, ox in places:
                    memory.append(poses[n, oy * stride + ky, ox * stride + kx, k, element])
            for p in range(len(places)):
                read = memory[p * d : (p + 1) * d]
                for q in range(j):
                    votes[n, p, slot, q] = vote(read, weight[q, ky, kx, k], rows)
    return Seen(votes, None, [[(p, slot) for slot in range(len(children))] for p in range(len(places))])


def add_coordinates(seen, place, image, rows):
    """Hinton et al. 2018, section 4: the scaled row and column of child `place[p][i]` on top of its votes.

    They go to the first two elements of the last column of a matrix vote, or to the first two of a vector.
    """
    b, p, i, j, d = seen.shape
    last = d // rows - 1
    for n, q, k, s in np.ndindex(b, p, i, j):
        if place[q][k] is not None:
            for row, element in enumerate((0, 1) if rows == 1 else (last, 2 * last + 1)):
                seen.votes[n, q, k, s, element] += (place[q][k][row] + 0.5) / image[row]


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


def weighted_sum(seen, coupling, bias=0.0):
    """`bias` is 0 or [j, d]."""
    b, p, i, j, d = seen.shape
    out = np.zeros((b, p, j, d)) + bias
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


def uniform(seen, bias=0.0):
    b, p, i, j, _ = seen.shape
    return squashed(weighted_sum(seen, np.full((b, p, i, j), 1 / j), bias))


def dynamic(seen, iterations, over="parents", start=0.0, bias=0.0):
    """Sabour et al. 2017, Procedure 1, with the logits kept and updated as printed; `start` is 0 or [i, j]."""
    b, p, i, j, _ = seen.shape
    logits, parents = np.zeros((b, p, i, j)) + start, np.empty(0)
    for _ in range(iterations):
        coupling = (
            softmax_over_parents(seen, logits, "window") if over == "parents" else softmax_over_children(seen, logits)
        )
        parents = squashed(weighted_sum(seen, coupling, bias))
        logits = logits + agreement(seen, parents)
    return parents


def xnorized(x, middle=0.0):
    """Signs, 0 as -1, times the mean of |x|; `x` is a vector."""
    scale = sum(abs(element) for element in x) / len(x)
    return np.array([scale if element > middle else -scale for element in x])


def xnorized_poses(poses, rows, midpoint):
    """poses [b, ..., rows * c], row by row; the middle is that of each image's poses."""
    out = np.zeros_like(poses)
    for index in np.ndindex(poses.shape[:-1]):
        image = poses[index[0]]
        middle = (image.min() + image.max()) / 2 if midpoint else 0.0
        columns = poses.shape[-1] // rows
        for r in range(rows):
            row = slice(r * columns, (r + 1) * columns)
            out[index][row] = xnorized(poses[index][row], middle)
    return out


def xnorized_weight(weight, midpoint):
    """weight [j, ..., c, m], along c; the middle is that of all that makes output (j, m)."""
    out = np.zeros_like(weight)
    for index in np.ndindex(weight.shape[:-2]):
        for m in range(weight.shape[-1]):
            filters = weight[index[0], ..., m]
            middle = (filters.min() + filters.max()) / 2 if midpoint else 0.0
            out[index][:, m] = xnorized(weight[index][:, m], middle)
    return out


def xnidr(seen, iterations, over="parents", bias=0.0, midpoint=False):
    """Sun et al. 2023, Table 3, with b = 0 before the loop; the middles are those of an image's votes and outputs."""
    b, p, i, j, _ = seen.shape
    logits, parents = np.zeros((b, p, i, j)), np.empty(0)
    for _ in range(iterations):
        coupling = (
            softmax_over_parents(seen, logits, "window") if over == "parents" else softmax_over_children(seen, logits)
        )
        parents = squashed(weighted_sum(seen, coupling, bias))
        for n, q, s in each_parent(seen):
            middles = [(each[n].min() + each[n].max()) / 2 if midpoint else 0.0 for each in (seen.votes, parents)]
            parent = xnorized(parents[n, q, s], middles[1])
            for k in range(i):
                logits[n, q, k, s] += sum(xnorized(seen.votes[n, q, k, s], middles[0]) * parent)
    return parents


def layer_norm(x, gain=1.0, bias=0.0, eps=1e-5):
    mean = sum(x) / len(x)
    variance = sum((x - mean) ** 2) / len(x)
    return (x - mean) / math.sqrt(variance + eps) * gain + bias


def inverted_attention_step(seen, parents, gain, bias, scale, scope="window", before=0.0):
    """Tsai et al. 2020, Procedure 1: one call, from the parents of the previous iteration [b, p, j, d].

    `gain` None leaves the layer norm out; `bias` is its own, `before` what is added before it.
    """
    out = weighted_sum(seen, softmax_over_parents(seen, agreement(seen, parents) * scale, scope), before)
    for n, q, s in each_parent(seen):
        out[n, q, s] = out[n, q, s] if gain is None else layer_norm(out[n, q, s], gain, bias)
    return out


def inverted_attention_c(seen, iterations, start, norm, scale, costs, scope, before=0.0):
    """Ablation C as the library defines it; `costs` are the last five arguments of `clusters`, lambda a function.

    A gain of None leaves the layer norm out; `before` is what is added before it.
    """
    beta_u, beta_a, heat, normalise, eps = costs
    b, p, _, j, d = seen.shape
    parents, prior, activation = np.zeros((b, p, j, d)) + start, np.zeros((b, p, 1, j)), np.empty(0)
    for t in range(iterations):
        coupling = softmax_over_parents(seen, agreement(seen, parents) * scale + prior, scope)
        _, _, activation = clusters(seen, coupling, beta_u, beta_a, heat(t), normalise, eps)
        parents = weighted_sum(seen, coupling * seen.activations[..., None], before)
        for n, q, s in each_parent(seen):
            if norm[0] is not None:
                parents[n, q, s] = layer_norm(parents[n, q, s], *norm)
        prior = np.log(activation)[:, :, None]
    return parents, activation


def clusters(seen, coupling, beta_u, beta_a, heat, normalise, eps):
    """M step of Hinton et al. 2018, Procedure 1, with `eps` where the library says it stands."""
    b, p, i, j, d = seen.shape
    mean, variance, logit = np.zeros((b, p, j, d)), np.zeros((b, p, j, d)), np.zeros((b, p, j))
    for n, q, s in each_parent(seen):
        share = [coupling[n, q, k, s] * seen.activations[n, q, k] for k in range(i)]
        total = sum(share)
        cost = 0.0
        for h in range(d):
            m = sum(share[k] * seen.votes[n, q, k, s, h] for k in range(i)) / max(total, eps)
            v = max(sum(share[k] * (seen.votes[n, q, k, s, h] - m) ** 2 for k in range(i)) / max(total, eps), eps)
            mean[n, q, s, h], variance[n, q, s, h] = m, v
            cost += (beta_u[s] + math.log(math.sqrt(v))) * total
        logit[n, q, s] = beta_a[s] - cost
    for n in range(b):
        for q in range(p):
            logit[n, q] = layer_norm(logit[n, q]) if normalise else heat * logit[n, q]
    return mean, variance, 1 / (1 + np.exp(-logit))


def em(seen, iterations, scope, costs):
    """Hinton et al. 2018, Procedure 1; `costs` are the last five arguments of `clusters`, lambda a function."""
    beta_u, beta_a, heat, normalise, eps = costs
    b, p, i, j, d = seen.shape
    coupling = softmax_over_parents(seen, np.zeros((b, p, i, j)), scope)
    mean = activation = np.empty(0)
    for t in range(iterations):
        mean, variance, activation = clusters(seen, coupling, beta_u, beta_a, heat(t), normalise, eps)
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


def vote_statistics(seen, each):
    """Mean, variance and count of the votes for each pose element, (child, element) or (child, parent, element).

    All are [i, j, d], the same numbers where they are shared.
    """
    _, _, i, j, d = seen.shape
    groups = {}
    for n, q, s in each_parent(seen):
        for k in range(i):
            if seen.child[q][k] is not None:
                for h in range(d):
                    key = {"element": (h,), "child": (k, h), "pair": (k, s, h)}[each]
                    groups.setdefault(key, []).append(seen.votes[n, q, k, s, h])
    mean, variance, count = np.zeros((i, j, d)), np.ones((i, j, d)), np.zeros((i, j, d))
    for k, s, h in np.ndindex(i, j, d):
        group = groups.get({"element": (h,), "child": (k, h), "pair": (k, s, h)}[each], [0.0])
        mean[k, s, h] = sum(group) / len(group)
        variance[k, s, h] = sum((x - mean[k, s, h]) ** 2 for x in group) / len(group)
        count[k, s, h] = len(group)
    return mean, variance, count


def fm(seen, l2, mean, halved, eps, scale=1.0, shift=0.0):
    """Zhao et al. 2020, Algorithm 1, all pairs written out; `scale` and `shift` of the votes broadcast to [i, j, d]."""
    b, p, i, j, d = seen.shape
    out = np.zeros((b, p, j, d))
    scale, shift = np.broadcast_to(scale, (i, j, d)), np.broadcast_to(shift, (i, j, d))
    for n, q, s in each_parent(seen):
        there = [k for k in range(i) if seen.child[q][k] is not None]
        votes = [seen.votes[n, q, k, s] * scale[k, s] + shift[k, s] for k in there]
        if l2:
            votes = [v / math.sqrt(max(sum(v * v), eps)) for v in votes]
        for first in range(len(votes)):
            for second in range(first + 1, len(votes)):
                out[n, q, s] += votes[first] * votes[second]
        out[n, q, s] *= (1 if halved else 2) / (len(votes) if mean else 1)
    return out, out.sum(-1)


def discriminative_parents(seen, coefficient, bias=0.0):
    b, p, _, _, _ = seen.shape
    return squashed(weighted_sum(seen, np.broadcast_to(coefficient, (b, p, *coefficient.shape)), bias))


def shrunk(v):
    """The squash of Mazzia et al. 2021."""
    length = math.sqrt(sum(x * x for x in v))
    return (1 - math.exp(-length)) * v / length if length > 0 else 0 * v


def self_attention(seen, prior, bias=0.0, exponential=True):
    """Mazzia et al. 2021, with the Gram matrix of each parent's votes built and its rows summed, as printed."""
    b, p, i, j, d = seen.shape
    logits = np.zeros((b, p, i, j))
    for n, q, s in each_parent(seen):
        for k in range(i):
            row = [sum(seen.votes[n, q, k, s] * seen.votes[n, q, other, s]) for other in range(i)]
            logits[n, q, k, s] = sum(row) / math.sqrt(d)
    coupling = softmax_over_parents(seen, logits, "window") + prior
    for n, q, s in each_parent(seen):
        for k in range(i):
            if seen.child[q][k] is None:
                coupling[n, q, k, s] = 0.0
    total = weighted_sum(seen, coupling, bias)
    return np.apply_along_axis(shrunk if exponential else squash, -1, total)


def self_routing(seen, offset, eps):
    """Hahn et al. 2019; the last element of a vote is R_ij u_i."""
    b, p, i, j, d = seen.shape
    coupling = softmax_over_parents(seen, seen.votes[..., -1] + offset, "window")
    poses, active = np.zeros((b, p, j, d - 1)), np.zeros((b, p, j))
    for n, q, s in each_parent(seen):
        share = [seen.activations[n, q, k] * coupling[n, q, k, s] for k in range(i)]
        everybody = sum(seen.activations[n, q, k] for k in range(i))
        active[n, q, s] = sum(share) / max(everybody, eps)
        for h in range(d - 1):
            poses[n, q, s, h] = sum(share[k] * seen.votes[n, q, k, s, h] for k in range(i)) / max(sum(share), eps)
    return poses, active


def digamma(x):
    """By its recurrence to far out, where two terms of the series do."""
    below = 0.0
    while x < 1000:
        below, x = below + 1 / x, x + 1
    return math.log(x) - 1 / (2 * x) - 1 / (12 * x * x) - below


def standardised(x, eps):
    """[b, p, j, d] by type j over all else, of the batch."""
    out = np.zeros(x.shape)
    for s in range(x.shape[2]):
        group = x[:, :, s].ravel()
        mean = sum(group) / len(group)
        variance = sum((y - mean) ** 2 for y in group) / len(group)
        out[:, :, s] = (x[:, :, s] - mean) / math.sqrt(variance + eps)
    return out


def variational_bayes(seen, iterations, scope, beta_a, beta_u, eps, norm_eps):
    """Ribeiro et al. 2020 with a diagonal scale; the assignments that no iteration uses are not made."""
    b, p, i, j, d = seen.shape
    coupling = softmax_over_parents(seen, np.zeros((b, p, i, j)), "window")
    m, scale, total = np.zeros((b, p, j, d)), np.zeros((b, p, j, d)), np.zeros((b, p, j))
    log_share, log_precision = np.zeros((b, p, j)), np.zeros((b, p, j))
    for t in range(iterations):
        for n, q, s in each_parent(seen):
            r = [coupling[n, q, k, s] * seen.activations[n, q, k] for k in range(i)]
            total[n, q, s] = sum(r)
            kappa = 1 + sum(r)
            for h in range(d):
                v = seen.votes[n, q, :, s, h]
                mu = sum(r[k] * v[k] for k in range(i)) / max(sum(r), eps)
                m[n, q, s, h] = sum(r) * mu / kappa
                around = sum(r[k] * (v[k] - mu) ** 2 for k in range(i))
                scale[n, q, s, h] = 1 + around + sum(r) / kappa * mu * mu
        logits = np.zeros((b, p, i, j))
        for n, q, s in each_parent(seen):
            nu = d + 1 + total[n, q, s]
            log_share[n, q, s] = digamma(1 + total[n, q, s]) - digamma(sum(1 + total[n, q, o] for o in range(j)))
            log_precision[n, q, s] = sum(digamma((nu - h) / 2) for h in range(d)) + d * math.log(2)
            log_precision[n, q, s] -= sum(math.log(scale[n, q, s, h]) for h in range(d))
            for k in range(i):
                gap = seen.votes[n, q, k, s] - m[n, q, s]
                apart = d / (1 + total[n, q, s]) + nu * sum(gap * gap / scale[n, q, s])
                density = 0.5 * (log_precision[n, q, s] - d * math.log(2 * math.pi) - apart)
                logits[n, q, k, s] = log_share[n, q, s] + density
        if t + 1 < iterations:
            coupling = softmax_over_parents(seen, logits, scope)
    entropy = 0.5 * d * math.log(2 * math.pi * math.e) - 0.5 * log_precision
    logit = standardised((beta_a - beta_u - np.exp(log_share) * entropy)[..., None], norm_eps)[..., 0]
    return standardised(m, norm_eps), 1 / (1 + np.exp(-logit))


def discriminative_step(seen, coefficient, targets, gamma, weight, norm, absent=1.0):
    """Yang et al. 2021, Eq. 13 and 15, with U U' built and summed over the observations as printed.

    Eq. 15 as printed doubles the l1 term; the derivative of Eq. 14 does not.
    """
    b, p, i, j, _ = seen.shape
    new = coefficient.copy()
    for s in range(j):
        gradient = np.zeros(i)
        for n in range(b):
            delta = 1.0 if targets[n, s] else -absent
            for q in range(p):
                u = seen.votes[n, q, :, s]  # [i, d]
                gradient += 2 * delta * (u @ u.T) @ coefficient[:, s]
        slopes = {
            "l1": np.sign(coefficient[:, s]),
            "l2": 2 * coefficient[:, s],
            "rows": coefficient[:, s] / np.sqrt((coefficient**2).sum(1)),
        }
        gradient -= weight * slopes[norm]
        new[:, s] += gamma * gradient
    return new
