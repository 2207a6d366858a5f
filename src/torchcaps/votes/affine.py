"""The sums over votes v = P W, one W per child and parent, the same at every position."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import torch
from torch import Tensor

from torchcaps.capsules import binarize, widen
from torchcaps.votes.protocol import Over, Scope
from torchcaps.votes.tiles import cut, parent_tiles, recompute


class AffineVotes(ABC):
    """The sums, over the children that a subclass gathers. See `Votes`.

    Args:
        weight: [j, i, columns, m], parents first, so that a tile of parents is one piece of memory; a vote has
            d = rows * m elements.
        rows: rows of a pose, at least 1.
        space: (height, width) of the positions p; () for a single one.
        activations: of the children in their windows [b, p, i], or None.
        present: [p, i], or None when all children are.
    """

    def __init__(
        self,
        weight: Tensor,
        rows: int,
        space: tuple[int, ...] = (),
        activations: Tensor | None = None,
        present: Tensor | None = None,
    ):
        self.parents, self.children, _, columns = weight.shape
        self.weight, self.rows, self.space = weight, rows, space
        self.pose = rows * columns
        self.activations, self.present = activations, present
        self._poses: Tensor | None = None

    @property
    def poses(self) -> Tensor:
        """Children in their windows, [b, p, i, rows, columns], zero outside the image; gathered on first use."""
        if self._poses is None:
            self._poses = self._gather()
        return self._poses

    @abstractmethod
    def _gather(self) -> Tensor: ...

    def dense(self) -> Tensor:
        return _votes(self.poses, self.weight)

    def combine(self, coupling: Tensor | None = None) -> Tensor:
        if coupling is None:
            return self._sum(self.weight)
        if coupling.ndim == 2:  # [i, j]
            return self._sum(self.weight * coupling.T[:, :, None, None])
        if coupling.shape[-1] == 1:
            return recompute(lambda u, c, w: _sum(u * c[..., None], w), self.poses, coupling, self.weight)
        tiles = [
            recompute(_coupled_sum, self.poses, coupling[..., tile], self.weight[tile])
            for tile in parent_tiles(self.parents)
        ]
        return torch.cat(tiles, 2)

    def _sum(self, weight: Tensor) -> Tensor:
        return recompute(_sum, self.poses, weight)

    def agree(self, parents: Tensor, how: Literal["dot", "xnor"] = "dot") -> Tensor:
        function = {"dot": _agreement, "xnor": _xnor_agreement}[how]
        parents = parents.unflatten(-1, (self.rows, -1))  # [b, p, j, r, m]
        tiles = [
            recompute(function, self.poses, self.weight[tile], parents[:, :, tile])
            for tile in parent_tiles(self.parents)
        ]
        return torch.cat(tiles, -1)

    def spread(self, coupling: Tensor | None, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        if coupling is None:
            present = self.present
            weights = torch.ones_like(self.poses[:1, ..., 0, 0]) if present is None else present.to(self.poses.dtype)
            coupling = weights.reshape(1, -1, self.children, 1)
        scale, shift = self._affine(scale, shift)
        tiles = [
            recompute(
                _spread,
                self.poses,
                self.weight[tile],
                cut(coupling, tile, -1),
                cut(scale, tile, 2),
                cut(shift, tile, 2),
            )
            for tile in parent_tiles(self.parents)
        ]
        return torch.cat(tiles, 2)

    def distance(self, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        scale, shift = self._affine(scale, shift)
        tiles = [
            recompute(_distance, self.poses, self.weight[tile], cut(scale, tile, 2), cut(shift, tile, 2))
            for tile in parent_tiles(self.parents)
        ]
        return torch.cat(tiles, -1)

    def _affine(self, scale: Tensor | None, shift: Tensor | None) -> tuple[Tensor, Tensor]:
        """Scale and shift as [.., .., j or 1, d or 1]."""
        one = torch.ones((), device=self.weight.device, dtype=widen(self.weight.new_empty(0)).dtype)
        scale, shift = one if scale is None else scale, 0 * one if shift is None else shift
        return scale[(None,) * (4 - scale.ndim)], shift[(None,) * (4 - shift.ndim)]

    def moments(self) -> tuple[Tensor, Tensor]:
        """Exact, by Gram matrices of the centred children: the variance of a vote is W' Cov W."""
        poses, weight = widen(self.poses), widen(self.weight)
        there = torch.ones_like(poses[0, :, :, 0, 0]) if self.present is None else self.present.to(poses.dtype)
        count = there.sum(0) * poses.shape[0]  # [i]
        share = count / (count.sum() * self.parents)  # [i], sums to 1 over children and parents
        centre = torch.einsum("bpirc,pi->irc", poses, there) / count.clamp_min(1)[:, None, None]
        centred = (poses - centre) * there[..., None, None]
        gram = torch.einsum("bpirc,bpird->ircd", centred, centred) / count.clamp_min(1)[:, None, None, None]
        votes = torch.einsum("irc,jicm->ijrm", centre, weight)  # mean vote of each child
        mean = torch.einsum("ijrm,i->rm", votes, share)
        within = torch.einsum("ircd,jicm,jidm,i->rm", gram, weight, weight, share)
        between = torch.einsum("ijrm,i->rm", (votes - mean).square(), share)
        return mean.flatten(), (within + between).flatten()

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
            coupling = widen(logits).softmax(-1)
            return coupling if present is None else coupling * present
        if present is not None:
            logits = logits.masked_fill(~present, torch.finfo(logits.dtype).min)
        coupling = widen(logits).softmax(2)
        return coupling if present is None else coupling * present

    def _compete_over_image(self, logits: Tensor | None) -> Tensor:
        """One position sees every child: the window is the image."""
        return self.compete(logits)


def _votes(u: Tensor, w: Tensor) -> Tensor:
    return torch.einsum("bpirc,jicm->bpijrm", u, w).flatten(-2)  # [b, p, i, j, d]


def _sum(u: Tensor, w: Tensor) -> Tensor:
    rows = u.transpose(2, 3).flatten(3)  # [b, p, r, (i c)]
    out = rows @ w.permute(1, 2, 0, 3).flatten(0, 1).flatten(1)  # [b, p, r, (j m)]
    return out.unflatten(-1, (w.shape[0], -1)).transpose(2, 3).flatten(-2)  # [b, p, j, d]


def _coupled_sum(u: Tensor, c: Tensor, w: Tensor) -> Tensor:
    """One matrix product per parent: the children, scaled by their coupling, times W_j."""
    b, p, _, r, _ = u.shape
    share = c.to(u.dtype).permute(3, 0, 1, 2)[:, :, :, None, :, None]  # [j, b, p, 1, i, 1]
    scaled = (share * u.transpose(2, 3)).flatten(1, 3).flatten(2)  # [j, (b p r), (i c)]
    out = torch.bmm(scaled, w.flatten(1, 2))  # [j, (b p r), m]
    return out.reshape(-1, b, p, r, out.shape[-1]).permute(1, 2, 0, 3, 4).flatten(-2)  # [b, p, j, d]


def _agreement(u: Tensor, w: Tensor, parents: Tensor) -> Tensor:
    """The parents, taken back through W_j', against the children: sum_c u_c (sum_m W_cm parent_m)."""
    b, p, i, r, c = u.shape
    flat = parents.permute(2, 0, 1, 3, 4).flatten(1, 3).to(u.dtype)  # [j, (b p r), m]
    back = torch.bmm(flat, w.flatten(1, 2).transpose(1, 2)).reshape(-1, b, p, r, i, c)
    return (widen(back) * u.transpose(2, 3)).sum((3, 5)).movedim(0, -1)  # [b, p, i, j]


def _xnor_agreement(u: Tensor, w: Tensor, parents: Tensor) -> Tensor:
    return torch.einsum("bpijd,bpjd->bpij", binarize(widen(_votes(u, w))), widen(parents.flatten(-2)))


def _spread(u: Tensor, w: Tensor, c: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    squares = (widen(_votes(u, w)) * scale.unsqueeze(2) + shift.unsqueeze(2)).square()  # [b, p, i, j, d]
    return (squares * c.unsqueeze(-1)).sum(2)


def _distance(u: Tensor, w: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return (widen(_votes(u, w)) * scale.unsqueeze(2) + shift.unsqueeze(2)).square().sum(-1)
