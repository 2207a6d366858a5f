"""Our convention: every arithmetic operation of a forward pass is counted, routing included, as plain steps compute it.

Whichever implementation runs (a kernel, votes that few images keep, packed bits), what is counted is the plain form of
`torchcaps.votes`, so that layers of different implementations can be compared. So do the FLOP formulas of the kernels:
what torch counts of a fused step, its matrix products, is what it counts of the plain one. How little an algorithm
could do is another question, that of `benchmarks/roofline.py`.

Matrix products and convolutions count two for a multiply-add, by torch's own formulas; what else is computed counts one
for each element that it writes, or reads where these are more (a sum); of a softmax three, of a normalisation as many
as `_EACH` says. Moving numbers counts nothing. Signs are computed in floating point, and counted so.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from torchcaps.layers import evaluating, plain_steps

aten = torch.ops.aten
CONVENTION = 2  # of what is counted; 1 counted what a machine ran, with kernels where it has them

_MOVES = {
    aten.clone, aten.copy_, aten._to_copy, aten.cat, aten.stack, aten.index, aten.gather, aten.constant_pad_nd,
    aten.full, aten.full_like, aten.zeros, aten.zeros_like, aten.ones, aten.ones_like, aten.empty, aten.empty_like,
    aten.empty_strided, aten.new_zeros, aten.new_ones, aten.new_full, aten.new_empty, aten.new_empty_strided,
    aten.arange, aten.scalar_tensor, aten.lift_fresh, aten.fill_, aten.roll, aten.repeat, aten.is_pinned,
    aten._unsafe_view, aten._reshape_copy, aten.linspace, aten.slice_scatter, aten.index_select, aten.im2col,
    aten.aminmax, aten._local_scalar_dense,  # how indices are checked on some devices
}  # fmt: skip
_EACH = {  # operations for each element
    aten._softmax: 3,  # exp, sum, quotient
    aten._log_softmax: 3,
    aten.native_batch_norm: 2,  # scale and shift
    aten._native_batch_norm_legit_no_training: 2,
    aten._batch_norm_with_update: 2,
    aten.cudnn_batch_norm: 2,
    aten.native_layer_norm: 7,  # mean, differences, squares and their mean, quotient, scale, shift
    aten.native_group_norm: 7,
}
_POOLS = {aten.max_pool2d_with_indices, aten.avg_pool2d}


class OperationCounter(TorchDispatchMode):
    """Counts in `total` what runs while it is entered."""

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.total += _operations(func, args, kwargs or {}, out)
        return out


def count_operations(module: nn.Module, *inputs: object) -> int:
    """Return the operations of one forward pass in evaluation mode; the meta device will do, where nothing is computed.

    Capsule layers take plain steps for it, whatever their implementation is.
    """
    with torch.no_grad(), evaluating(module), plain_steps(module), OperationCounter() as counter:
        module(*inputs)
    return counter.total


def _operations(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    packet = func._overloadpacket
    if packet in flop_registry:
        biased = packet in (aten.addmm, aten.baddbmm) or (packet is aten.convolution and args[2] is not None)
        return flop_registry[packet](*args, **kwargs, out_val=out) + (out.numel() if biased else 0)
    if func.is_view or packet in _MOVES:
        return 0
    if packet in _POOLS:
        written = out[0] if isinstance(out, tuple) else out
        window = args[1] if len(args[1]) == 2 else (*args[1], *args[1])
        return written.numel() * math.prod(window)
    elements = [
        x.numel() for x in (*args, *(out if isinstance(out, tuple | list) else (out,))) if isinstance(x, Tensor)
    ]
    return max(elements, default=0) * _EACH.get(packet, 1)
