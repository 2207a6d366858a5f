"""Votes of convolutional capsules: the same transforms at every position, on the children of its window."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from torchcaps.capsules import Capsules, widen
from torchcaps.votes.affine import AffineVotes, check_types
from torchcaps.votes.binary import Threshold, binary_children, binary_weight
from torchcaps.votes.children import check_capsules


class ConvVotes(AffineVotes):
    """See `Votes` for the sums. Children of a window are counted as (kernel row, kernel column, capsule).

    With a coupling the votes are linear votes of the gathered windows; without one, `combine` is a convolution.

    Args:
        capsules: children, poses [b, h, w, i, d] and activations [b, h, w, i] or None.
        weight: [j, kernel height, kernel width, i, columns, m].
        rows: rows of a pose, at least 1.
        stride, padding: of the windows, in positions; what is outside the image is absent, not a zero capsule.
        binary: see `AffineVotes`.

    Raises:
        ValueError: when the image is smaller than the kernel, or the children are not what the weight takes, in shape
            or type.
    """

    def __init__(
        self,
        capsules: Capsules,
        weight: Tensor,
        rows: int = 1,
        stride: int = 1,
        padding: int = 0,
        binary: bool = False,
    ):
        check_types(capsules, weight.dtype)
        _, *image, types, elements = capsules.poses.shape
        if (types, elements) != (weight.shape[3], rows * weight.shape[4]):
            raise ValueError(
                f"the children are {types} capsules of {elements}, but the transform takes "
                f"{weight.shape[3]} of {rows * weight.shape[4]}"
            )
        self.kernel, self.stride, self.padding = tuple(weight.shape[1:3]), stride, padding
        self.strides, self.paddings = self.along(stride, padding)
        self.image = (image[0], image[1])
        for size, k, pad in zip(self.image, self.kernel, self.paddings, strict=True):
            if size + 2 * pad < k:
                raise ValueError(
                    f"capsules of {image[0]}x{image[1]} positions are too small for a kernel of "
                    f"{self.kernel[0]}x{self.kernel[1]} with padding {padding}"
                )
        space = tuple(
            (n + 2 * pad - k) // step + 1
            for n, k, step, pad in zip(self.image, self.kernel, self.strides, self.paddings, strict=True)
        )
        self.capsules = capsules
        activations, present = capsules.activations, None
        if activations is not None:
            activations = self._windows(activations).flatten(2)
        if padding > 0:
            present = self._windows(torch.ones(1, *self.image, types, device=weight.device)).flatten(2)[0] > 0
        self.windows = (space[0], space[1])  # rows and columns of them
        super().__init__(weight.flatten(1, 3), rows, space, activations, present, binary)

    @staticmethod
    def along(stride: int, padding: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return (rows, columns) of the stride, and of the padding."""
        return (stride, stride), (padding, padding)

    def binarized(self, threshold: Threshold = "zero") -> ConvVotes:
        children = binary_children(self.capsules, self.rows, threshold)
        weight = binary_weight(self.weight, threshold).unflatten(1, (*self.kernel, -1))
        return type(self)(children, weight, self.rows, self.stride, self.padding, binary=True)

    def _gather(self) -> Tensor:  # [b, p, i, r, c]
        poses = self.capsules.poses
        windows = self._windows(poses.flatten(-2)).flatten(2, 3)  # [b, p, k, (i d)]
        return windows.unflatten(-1, poses.shape[-2:]).flatten(2, 3).unflatten(-1, (self.rows, -1))

    def _windows(self, x: Tensor) -> Tensor:
        """Map [b, h, w, n] -> [b, p, kh, kw, n], 0 outside the image."""
        (down, right), (above, beside) = self.strides, self.paddings
        x = F.pad(x, (0, 0, beside, beside, above, above))
        windows = x.unfold(1, self.kernel[0], down).unfold(2, self.kernel[1], right)
        return windows.permute(0, 1, 2, 4, 5, 3).flatten(1, 2)

    def _sum(self, weight: Tensor) -> Tensor:
        """Return a convolution: rows of poses as images of the batch, (child, column) in and (parent, m) out as
        channels, which stay last in memory as they are in poses.
        """
        poses, kernel = self.capsules.poses, weight.unflatten(1, (*self.kernel, -1))
        b = poses.shape[0]
        maps = poses.unflatten(-1, (self.rows, -1)).permute(0, 4, 1, 2, 3, 5).flatten(-2).flatten(0, 1)
        filters = kernel.permute(0, 5, 1, 2, 3, 4).flatten(-2).flatten(0, 1)  # [(j m), kh, kw, (i c)]
        out = F.conv2d(
            maps.movedim(-1, 1), filters.movedim(-1, 1), stride=self.strides, padding=self.paddings
        )  # [(b r), (j m), *space]
        out = out.movedim(1, -1).unflatten(-1, (self.parents, -1)).unflatten(0, (b, self.rows))  # [b, r, *space, j, m]
        return out.permute(0, 2, 3, 4, 1, 5).flatten(-2).flatten(1, 2)  # [b, p, j, d]

    def _compete_over_image(self, logits: Tensor | None) -> Tensor:
        """Return the windows that see a child stand in its kernel offsets: sum over parents, then over offsets, then
        go back.

        The fill is finite: a row of nothing but -inf would be NaN.
        """
        if logits is None:
            logits = torch.zeros(1, self.windows[0] * self.windows[1], self.children, 1, device=self.weight.device)
            return self._compete_over_image(logits.to(widen(self.weight.new_empty(0)).dtype)) / self.parents
        logits = widen(logits)
        seen = logits.logsumexp(-1).unflatten(2, (self.kernel[0] * self.kernel[1], -1))  # [b, p, k, i]
        if self.present is not None:
            absent = ~self.present.unflatten(1, seen.shape[2:])
            seen = seen.masked_fill(absent, torch.finfo(seen.dtype).min)
        index = self._positions_that_see(seen.device)  # [h w, k]
        fill = seen.new_full((), torch.finfo(seen.dtype).min)
        offsets = torch.arange(index.shape[1], device=seen.device)
        slots = seen[:, index.clamp_min(0), offsets]  # [b, h w, k, i]
        slots = torch.where((index >= 0)[:, :, None], slots, fill)
        total = self._windows(slots.logsumexp(2).unflatten(1, self.image)).flatten(2)  # [b, p, i]
        share = logits - total.unsqueeze(-1)
        if self.present is not None:
            share = share.masked_fill(~self.present[:, :, None], torch.finfo(share.dtype).min)
        return share.exp()

    def _positions_that_see(self, device: torch.device) -> Tensor:
        """Return the position whose window has the child of each place at each kernel offset, or -1: int64 [h w, k]."""
        along = []
        for size, k, count, step, pad in zip(
            self.image, self.kernel, self.windows, self.strides, self.paddings, strict=True
        ):
            places, offsets = torch.arange(size, device=device), torch.arange(k, device=device)
            start = places[:, None] + pad - offsets  # of the window, times the stride
            position = start.div(step, rounding_mode="floor")
            valid = (start % step == 0) & (position >= 0) & (position < count)
            along.append(torch.where(valid, position, -1))  # [size, k]
        rows, columns = along[0][:, None, :, None], along[1][None, :, None, :]
        both = torch.where((rows >= 0) & (columns >= 0), rows * self.windows[1] + columns, -1)
        return both.flatten(2).flatten(0, 1)


class SequenceVotes(ConvVotes):
    """The sums of `ConvVotes` along one dimension: a sequence is an image of one row, whose windows have one.

    Args:
        capsules: children, poses [b, t, i, d] and activations [b, t, i] or None.
        weight: [j, 1, kernel, i, columns, m].
        rows: rows of a pose, at least 1.
        stride, padding: of the windows, along the sequence.
        binary: see `AffineVotes`.

    Raises:
        ValueError: as `ConvVotes`.
    """

    def __init__(
        self,
        capsules: Capsules,
        weight: Tensor,
        rows: int = 1,
        stride: int = 1,
        padding: int = 0,
        binary: bool = False,
    ):
        check_capsules(capsules)
        if capsules.poses.ndim == 4:
            active = capsules.activations
            capsules = Capsules(capsules.poses.unsqueeze(1), None if active is None else active.unsqueeze(1))
        super().__init__(capsules, weight, rows, stride, padding, binary)
        self.space = self.windows[1:]

    @staticmethod
    def along(stride: int, padding: int) -> tuple[tuple[int, int], tuple[int, int]]:
        return (1, stride), (0, padding)
