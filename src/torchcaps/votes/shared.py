"""Votes of linear capsules of which those at all positions of a type share their transforms.

Of a grouped convolution whose outputs are votes (Li et al. 2018, section A.i), W has a matrix for each type and parent,
while a coupling has a number for each type, position and parent. So positions are summed before the product with W, and
a parent is taken back through W once for all positions: neither the votes nor a W of each child is ever there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from torchcaps.capsules import Capsules, no_autocast, widen
from torchcaps.votes.affine import AffineVotes, check_types
from torchcaps.votes.binary import Threshold, binary_children, binary_weight
from torchcaps.votes.linear import LinearVotes
from torchcaps.votes.protocol import Agreement, Each, Moments
from torchcaps.votes.tiles import parent_tiles, recompute

CACHED = 2**21  # numbers, as many as votes are there at one time


class SharedVotes(AffineVotes):
    """The sums of `LinearVotes` for vector poses, with the weight of each child repeated from that of its type.

    Args:
        capsules: children, ordered (type, position), poses [b, i, columns] and activations [b, i] or None.
        weight: [j, types, columns, m].
        positions: of each type; i = types * positions.
        binary: see `AffineVotes`.

    Raises:
        ValueError: when the children are not what the weight takes, in shape or type.
    """

    def __init__(self, capsules: Capsules, weight: Tensor, positions: int, binary: bool = False):
        check_types(capsules, weight.dtype)
        types, columns = weight.shape[1:3]
        if capsules.poses.shape[1:] != (types * positions, columns):
            raise ValueError(
                f"the children are {tuple(capsules.poses.shape[1:])} (capsules, pose), but the transform takes "
                f"({types * positions}, {columns})"
            )
        activations = None if capsules.activations is None else capsules.activations.unsqueeze(1)
        super().__init__(weight, 1, activations=activations, binary=binary)
        self.children, self.positions = types * positions, positions
        self.capsules = capsules

    def binarized(self, threshold: Threshold = "zero") -> SharedVotes:
        children = binary_children(self.capsules, 1, threshold)
        return SharedVotes(children, binary_weight(self.weight, threshold), self.positions, binary=True)

    def dense(self) -> Tensor:
        return self._repeated().dense()

    def moments(self, each: Each = "element") -> Moments:
        return self._repeated().moments(each)

    def agree(self, parents: Tensor, how: Agreement = "dot") -> Tensor:
        if how != "dot":
            return self._repeated().agree(parents, how)
        parents = parents.expand(self.poses.shape[0], -1, -1, -1)
        tiles = [
            recompute(self._agreement, self.poses, self.weight[tile], parents[:, :, tile])
            for tile in parent_tiles(self.parents)
        ]
        return torch.cat(tiles, -1)

    def _gather(self) -> Tensor:  # [b, 1, i, 1, c]
        return self.capsules.poses[:, None, :, None]

    def _repeated(self) -> LinearVotes:
        return LinearVotes(self.capsules, self._repeat(self.weight), binary=self.binary)

    def _repeat(self, weight: Tensor) -> Tensor:
        """Return [j, t, c, m] for each child, [j, i, c, m]."""
        return weight.unsqueeze(2).expand(-1, -1, self.positions, -1, -1).flatten(1, 2)

    def _combine(self, coupling: Tensor | None) -> Tensor:
        if coupling is None:
            coupling = self.weight.new_ones(1, 1, 1, 1)
        coupling = coupling.expand(1, 1, -1, -1) if coupling.ndim == 2 else coupling
        if coupling.shape[-1] == 1:
            return recompute(self._uniform_sum, self.poses, coupling, self.weight)
        tiles = [
            recompute(self._coupled_sum, self.poses, coupling[..., tile], self.weight[tile])
            for tile in parent_tiles(self.parents)
        ]
        return torch.cat(tiles, 2)

    def _tiles(self) -> list[slice]:
        """Return the tiles of parents; on a CPU these are of so few parents that their votes stay in its cache."""
        if self.device.type != "cpu":
            return super()._tiles()
        return parent_tiles(self.parents, max(1, CACHED // max(1, len(self.poses) * self.children * self.pose)))

    def _affine_votes(self, u: Tensor, w: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        """Return scale * vote + shift, [b, 1, i, j, d], by one matrix product per image and type, the shift being one
        more row of W: what repeats W for each child takes twenty times as long.
        """
        if scale.shape[2] != 1 or shift.shape[2] != 1:  # they differ from child to child
            return super()._affine_votes(u, self._repeat(w), scale, shift)
        with no_autocast(u):
            matrix = widen(w).permute(1, 2, 0, 3) * scale[:, 0].unsqueeze(2)  # [b | 1, t, c, j, m]
            sizes, (t, _, j, m) = (len(scale), len(shift)), matrix.shape[1:]
            b = max(sizes) if min(sizes) else 0  # of no images
            row = shift[:, 0].unsqueeze(2).expand(b, t, 1, j, m)
            matrix = torch.cat([matrix.expand(b, -1, -1, -1, -1), row], 2).flatten(3)  # [b | 1, t, c + 1, (j m)]
            votes = F.pad(widen(self._by_type(u)), (0, 1), value=1.0) @ matrix  # [b, t, p, (j m)]
        return votes.flatten(1, 2).unflatten(2, (j, m)).unsqueeze(1)

    def _by_type(self, poses: Tensor) -> Tensor:
        """Map [b, 1, i, 1, c] -> [b, t, p, c]."""
        return poses[:, 0, :, 0].unflatten(1, (-1, self.positions))

    def _uniform_sum(self, u: Tensor, c: Tensor, w: Tensor) -> Tensor:
        total = self._by_type(u * c[..., None]).sum(2)  # [b, t, c]
        out = total.to(u.dtype).flatten(1) @ w.permute(1, 2, 0, 3).flatten(2).flatten(0, 1)  # [b, (j m)]
        return out.unflatten(1, (len(w), -1)).unsqueeze(1)  # [b, 1, j, d]

    def _coupled_sum(self, u: Tensor, c: Tensor, w: Tensor) -> Tensor:
        """Return sum_i c v, [b, 1, j, d]: the positions of a type are summed first, a matrix product per type; then
        there is one per parent.
        """
        poses = self._by_type(u)
        share = c[:, 0].to(u.dtype).unflatten(1, (-1, self.positions)).expand(u.shape[0], -1, -1, -1)  # [b, t, p, j]
        total = share.transpose(2, 3) @ poses  # [b, t, j, c]
        out = torch.bmm(total.permute(2, 0, 1, 3).flatten(2), w.flatten(1, 2))  # [j, b, m]
        return out.transpose(0, 1).unsqueeze(1)

    def _agreement(self, u: Tensor, w: Tensor, parents: Tensor) -> Tensor:
        flat = parents[:, 0].transpose(0, 1).to(u.dtype)  # [j, b, m]
        back = torch.bmm(flat, w.flatten(1, 2).transpose(1, 2)).unflatten(2, w.shape[1:3])  # [j, b, t, c]
        with no_autocast(u):  # logits are not rounded to half precision
            out = widen(self._by_type(u)) @ widen(back).permute(1, 2, 3, 0)  # [b, t, p, j]
        return out.flatten(1, 2).unsqueeze(1)
