"""The sums over votes v = P W, one W per child and parent, the same at every position."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from torchcaps.capsules import Capsules, autocast_type, binarize, midpoint, no_autocast, widen
from torchcaps.votes.binary import Threshold
from torchcaps.votes.children import check_capsules
from torchcaps.votes.protocol import Agreement, Each, Moments, Over, Scope, Share, Votes
from torchcaps.votes.tiles import cut, parent_tiles, recompute

FEW = 32  # parents below which a softmax is faster across them, by timings on a CPU


class AffineVotes(ABC):
    """The sums, over the children that a subclass gathers. See `Votes`.

    Args:
        weight: [j, i, columns, m], parents first, so that a tile of parents is one piece of memory; a vote has
            d = rows * m elements.
        rows: rows of a pose, at least 1.
        space: (height, width) of the positions p; () for a single one.
        activations: of the children in their windows [b, p, i], or None.
        present: [p, i], or None when all children are.
        binary: whether poses and weight are xnorized, so that a vote is a whole number times two scales.
    """

    capsules: Capsules  # the children, before they are gathered

    def __init__(
        self,
        weight: Tensor,
        rows: int,
        space: tuple[int, ...] = (),
        activations: Tensor | None = None,
        present: Tensor | None = None,
        binary: bool = False,
    ):
        self.parents, self.children, _, columns = weight.shape
        self.weight, self.rows, self.space = weight, rows, space
        self.pose = rows * columns
        self.activations, self.present, self.binary = activations, present, binary
        self._poses: Tensor | None = None
        self._kept: Tensor | None = None
        self._middle: Tensor | None = None

    @property
    def poses(self) -> Tensor:
        """Return the children in their windows, [b, p, i, rows, columns], zero outside the image; gathered on first
        use.
        """
        if self._poses is None:
            self._poses = self._gather()
        return self._poses

    @property
    def dtype(self) -> torch.dtype:
        if self.weight.dtype == torch.float64:  # which autocast leaves alone
            return self.weight.dtype
        return autocast_type(self.weight.device) or self.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.weight.device

    @property
    def images(self) -> int:
        return self.capsules.poses.shape[0]

    @abstractmethod
    def _gather(self) -> Tensor: ...

    @abstractmethod
    def binarized(self, threshold: Threshold = "zero") -> Votes: ...

    def dense(self) -> Tensor:
        return _votes(self.poses, self.weight)

    @property
    def kept(self) -> Tensor:
        """Return the votes themselves, made on first use and kept: for so few images that the weights are larger."""
        if self._kept is None:
            self._kept = self.dense()
        return self._kept

    @property
    def middle(self) -> Tensor:
        """Return (min + max) / 2 of all votes of an image, those of absent children, which are 0, too, as [b, 1, 1, 1,
        1]; computed on first use, tile by tile, and a constant.
        """
        if self._middle is None:
            poses = self.poses  # which keep their gradient
            with torch.no_grad():
                ends = [_ends(poses, self.weight[tile]) for tile in parent_tiles(self.parents)]
                self._middle = midpoint(torch.cat(ends, 1), range(1, 5))
        return self._middle

    def combine(self, coupling: Share = "ones", scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        if coupling is None:
            return self.combine("ones", scale, shift) / self.parents
        coupling = None if isinstance(coupling, str) else coupling
        if scale is None and shift is None:
            return self._combine(coupling)
        scale, shift = self._affine(scale, shift)
        if scale.shape[2] == shift.shape[2] == 1:  # the same for all children
            share = self._share(coupling).sum(2).unsqueeze(-1)  # [b, p, j, 1]
            return self._combine(coupling) * scale.squeeze(2) + share * shift.squeeze(2)
        return torch.cat(self._tiled(_affine_sum, self._share(coupling), scale, shift), 2)

    def _combine(self, coupling: Tensor | None) -> Tensor:
        if coupling is None:
            return self._sum(self.weight)
        if coupling.ndim == 2:  # [i, j]
            return self._sum(self.weight * coupling.T[:, :, None, None])
        if coupling.shape[-1] == 1:
            return recompute(_shared_sum, self.poses, coupling, self.weight)
        tiles = [
            recompute(_coupled_sum, self.poses, coupling[..., tile], self.weight[tile])
            for tile in parent_tiles(self.parents)
        ]
        return torch.cat(tiles, 2)

    def _sum(self, weight: Tensor) -> Tensor:
        return recompute(_sum, self.poses, weight)

    def agree(self, parents: Tensor, how: Agreement = "dot") -> Tensor:
        xnor = _whole_xnor_agreement if self.binary else _xnor_agreement
        function = {"dot": _agreement, "xnor": xnor, "xnor-midpoint": _xnor_agreement}[how]
        middle = (self.middle,) if how == "xnor-midpoint" else ()
        if how == "dot" and parents.shape[:2] == (1, 1) != self.poses.shape[:2]:
            return recompute(_shared_agreement, self.poses, self.weight, parents.unflatten(-1, (self.rows, -1)))
        parents = parents.expand(*self.poses.shape[:2], -1, -1).unflatten(-1, (self.rows, -1))  # [b, p, j, r, m]
        tiles = [
            recompute(function, self.poses, self.weight[tile], parents[:, :, tile], *middle)
            for tile in parent_tiles(self.parents)
        ]
        return torch.cat(tiles, -1)

    def squares(self, coupling: Share, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        if coupling is None:
            return self.squares("ones", scale, shift) / self.parents
        coupling = None if isinstance(coupling, str) else coupling
        return torch.cat(self._tiled(_squares, self._share(coupling), *self._affine(scale, shift)), 2)

    def distance(self, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        one = self.weight.new_ones(1, 1, 1, 1)
        return torch.cat(self._tiled(_distance, one, *self._affine(scale, shift)), -1)

    def _tiled(
        self, function: Callable[[Tensor, Tensor], Tensor], coupling: Tensor, scale: Tensor, shift: Tensor
    ) -> list[Tensor]:
        """Return `function(scale * vote + shift, coupling)` of each tile of parents."""

        def of_tile(u: Tensor, w: Tensor, c: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
            return function(self._affine_votes(u, w, scale, shift), c)

        tiles = self._tiles()
        parts = cut(self.weight, tiles, 0), cut(coupling, tiles, -1), cut(scale, tiles, 3), cut(shift, tiles, 3)
        return [recompute(of_tile, self.poses, *each) for each in zip(*parts, strict=True)]

    def _tiles(self) -> list[slice]:
        """Return the parents of which votes are there at one time."""
        return parent_tiles(self.parents)

    def _affine_votes(self, u: Tensor, w: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Return scale * vote + shift, [b, p, i, j, d], in single precision at least."""
        return widen(_votes(u, w)) * scale + shift

    def _share(self, coupling: Tensor | None) -> Tensor:
        """Return `coupling` as [b | 1, p | 1, i, j | 1]; None is 1 where a child is present."""
        if coupling is not None and coupling.ndim == 4:
            return coupling
        there = self.weight.new_ones(1, 1, self.children) if self.present is None else self.present[None]
        there = widen(there.to(self.weight.dtype)).unsqueeze(-1)  # [1, p | 1, i, 1]
        return there if coupling is None else coupling * there

    def _affine(self, scale: Tensor | None, shift: Tensor | None) -> tuple[Tensor, Tensor]:
        """Scale and shift as [b | 1, p | 1, i | 1, j | 1, d | 1]."""
        one = torch.ones((), device=self.weight.device, dtype=widen(self.weight.new_empty(0)).dtype)
        scale, shift = (
            x if x.ndim == 5 else x[(None,) * (4 - x.ndim)].unsqueeze(2)
            for x in (one if scale is None else scale, 0 * one if shift is None else shift)
        )
        return scale, shift

    def moments(self, each: Each = "element") -> Moments:
        poses = self.poses
        there = poses.new_ones(poses.shape[1:3]) if self.present is None else self.present
        there = widen(there.to(poses.dtype))
        count = there.sum(0) * poses.shape[0]  # [i]
        mean, variance = recompute(_statistics, poses, self.weight, there, count)
        return pool_moments(mean, variance, count, each)

    def compete(self, logits: Tensor | None, over: Over = "parents", scope: Scope = "window") -> Tensor:
        if over == "parents" and scope == "image":
            return self._compete_over_image(logits)
        if scope != "window":
            raise ValueError(f"children compete within a window, not over scope {scope!r}: use scope 'window'")
        present = None if self.present is None else self.present[None, :, :, None]
        if logits is None:
            there = torch.ones(1, 1, self.children, 1, device=self.weight.device) if present is None else present
            total = self.parents if over == "parents" else there.sum(2, keepdim=True).clamp_min(1)
            return there.to(widen(self.weight.new_empty(0)).dtype) / total
        if over == "parents":
            coupling = _softmax(widen(logits))
            return coupling if present is None else coupling * present
        if present is not None:
            logits = logits.masked_fill(~present, torch.finfo(logits.dtype).min)
        coupling = widen(logits).softmax(2)
        return coupling if present is None else coupling * present

    def _compete_over_image(self, logits: Tensor | None) -> Tensor:
        """Return the only position, which sees every child: the window is the image."""
        return self.compete(logits)


def _softmax(logits: Tensor) -> Tensor:
    """Return the softmax over the last dimension. On a CPU torch takes a dimension of few numbers that are no whole
    vectors one by one, and so is several times as fast where another lies last.
    """
    few = logits.device.type in ("cpu", "meta") and logits.shape[-1] < FEW and logits.shape[-1] % 16 and logits.ndim > 1
    if not few or torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return logits.softmax(-1)
    return logits.transpose(-1, -2).softmax(-2).transpose(-1, -2)


def check_types(capsules: Capsules, dtype: torch.dtype) -> None:
    """Raise what `check_capsules` does, and ValueError for children of a layer whose weights are `dtype` that are of
    another type.

    Under autocast they may be of any floating type that it converts: all but float64.
    """
    check_capsules(capsules)
    found = capsules.poses.dtype
    if found == dtype and dtype.is_floating_point:
        return
    if not found.is_floating_point:
        raise ValueError(f"poses are {found}; they must be floating, as the layer's weights are: {dtype}")
    if torch.float64 in (found, dtype) or autocast_type(capsules.poses.device) is None:
        raise ValueError(
            f"poses are {found}, but the layer's weights {dtype}: convert one of the two, the poses by .to({dtype}) or "
            f"the layer by .to({found})"
        )


def pool_moments(mean: Tensor, variance: Tensor, count: Tensor, each: Each) -> Moments:
    """Return what `Votes.moments` gives, from the mean and variance of each pair's votes, [i, j, d], and their number,
    [i].
    """
    count = count[:, None, None]
    if each == "pair":
        return Moments(mean, variance, count)
    share = torch.ones_like(count) if each == "child" else count / count.sum()
    over, parents = (1,) if each == "child" else (0, 1), mean.shape[1]

    def pool(x: Tensor) -> Tensor:
        return (x * share).sum(over, keepdim=True) / parents

    pooled = pool(mean)
    overall = pool(variance + (mean - pooled).square())
    if each == "child":
        return Moments(pooled, overall, count * parents)
    return Moments(pooled[0, 0], overall[0, 0], count.sum() * parents)


def _votes(u: Tensor, w: Tensor) -> Tensor:
    return torch.einsum("bpirc,jicm->bpijrm", u, w).flatten(-2)  # [b, p, i, j, d]


def _ends(u: Tensor, w: Tensor) -> Tensor:
    """Return the smallest and the largest vote of each image, [b, 2, 1, 1, 1]."""
    votes = widen(_votes(u, w)).flatten(1)
    return torch.stack((votes.amin(1), votes.amax(1)), 1)[..., None, None, None]


def _sum(u: Tensor, w: Tensor) -> Tensor:
    rows = u.transpose(2, 3).flatten(3)  # [b, p, r, (i c)]
    out = rows @ w.permute(1, 2, 0, 3).flatten(0, 1).flatten(1)  # [b, p, r, (j m)]
    return out.unflatten(-1, (w.shape[0], -1)).transpose(2, 3).flatten(-2)  # [b, p, j, d]


def _shared_sum(u: Tensor, c: Tensor, w: Tensor) -> Tensor:
    """Return the sum with a coupling [b, p, i, 1] that all parents share."""
    return _sum((u * c[..., None]).to(u.dtype), w)


def _coupled_sum(u: Tensor, c: Tensor, w: Tensor) -> Tensor:
    """Return one matrix product per parent: the children, scaled by their coupling, times W_j."""
    b, p, _, r, _ = u.shape
    # [j, b, p, 1, i, 1], as the product is to lie: as it comes, each number would be looked for, and all copied again
    share = c.permute(3, 0, 1, 2).contiguous()[:, :, :, None, :, None]
    scaled = (share * u.transpose(2, 3)).to(u.dtype).flatten(1, 3).flatten(2)  # [j, (b p r), (i c)]
    out = torch.bmm(scaled, w.flatten(1, 2))  # [j, (b p r), m]
    return out.reshape(len(w), b, p, r, out.shape[-1]).permute(1, 2, 0, 3, 4).flatten(-2)  # [b, p, j, d]


def _agreement(u: Tensor, w: Tensor, parents: Tensor) -> Tensor:
    """Return the parents, taken back through W_j', against the children: sum_c u_c (sum_m W_cm parent_m)."""
    b, p, i, r, c = u.shape
    flat = parents.permute(2, 0, 1, 3, 4).flatten(1, 3).to(u.dtype)  # [j, (b p r), m]
    back = torch.bmm(flat, w.flatten(1, 2).transpose(1, 2)).reshape(len(w), b, p, r, i, c)
    return (widen(back) * u.transpose(2, 3)).sum((3, 5)).movedim(0, -1)  # [b, p, i, j]


def _shared_agreement(u: Tensor, w: Tensor, parents: Tensor) -> Tensor:
    """Return the same of parents [1, 1, j, r, m] that all images and positions share: taken back once for all."""
    back = torch.einsum("jicm,jrm->jirc", w, parents[0, 0].to(w.dtype))
    with no_autocast(u):
        return torch.einsum("bpirc,jirc->bpij", widen(u), widen(back))


def _xnor_agreement(u: Tensor, w: Tensor, parents: Tensor, middle: Tensor | None = None) -> Tensor:
    signs = binarize(widen(_votes(u, w)), threshold=middle)
    return torch.einsum("bpijd,bpjd->bpij", signs, widen(parents.flatten(-2)))


def _whole_xnor_agreement(u: Tensor, w: Tensor, parents: Tensor) -> Tensor:
    """Return the agreement, signs first, then scales: with d = 8 a quarter of all elements are 0, and rounding must
    not choose a sign.
    """
    u_scale, w_scale = u.abs().amax(-1, keepdim=True).detach(), w.abs().amax(-2, keepdim=True).detach()
    counts = torch.einsum("bpirc,jicm->bpijrm", _over(u, u_scale), _over(w, w_scale))
    votes = widen(counts) * u_scale[:, :, :, None] * w_scale.transpose(0, 1)  # [b, p, i, j, r, m]
    return torch.einsum("bpijd,bpjd->bpij", binarize(votes.flatten(-2)), widen(parents.flatten(-2)))


def _over(x: Tensor, scale: Tensor) -> Tensor:
    """Return x / scale, exactly -1 or 1; 0 where the scale is 0."""
    return x / torch.where(scale > 0, scale, 1)


def _statistics(u: Tensor, w: Tensor, there: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and variance [i, j, d] of each pair's votes, exact by Gram matrices of the centred children: W'
    Cov W.
    """
    with no_autocast(u):  # sums of squares overflow half precision
        u, w = widen(u), widen(w)
        total = count.clamp_min(1)[:, None, None]
        centre = torch.einsum("bpirc,pi->irc", u, there) / total
        centred = (u - centre) * there[..., None, None]
        gram = torch.einsum("bpirc,bpird->ircd", centred, centred) / total.unsqueeze(-1)
        mean = torch.einsum("irc,jicm->ijrm", centre, w)
        half = torch.einsum("ircd,jicm->ijrdm", gram, w)
        variance = torch.einsum("ijrdm,jidm->ijrm", half, w)
    return mean.flatten(-2), variance.flatten(-2)


def _affine_sum(votes: Tensor, c: Tensor) -> Tensor:
    return (votes * c.unsqueeze(-1)).sum(2)


def _squares(votes: Tensor, c: Tensor) -> Tensor:
    return (votes.square() * c.unsqueeze(-1)).sum(2)


def _distance(votes: Tensor, _: Tensor) -> Tensor:
    return votes.square().sum(-1)
