"""Binary dot products in vectors: 16 words of signs against one, by XNOR and popcount. Importing this imports numba.

Of d signs a and d signs b, each a bit that is set for +1, the product of two is -1 where the bits differ. So their dot
product is (d - n) - n = d - 2 n, of n = popcount(a xor b), the number of places that differ: one XOR and one popcount
in place of d multiplications, for 16 pairs of words in one instruction each.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from torchcaps.kernels.simd import LANES, Lanes, compiled, inline, splat


def _address(context: Any, builder: Any, array: types.Array, value: Any, index: Any, scalar: ir.Type) -> Any:
    """Return the address of 16 `scalar`s in a contiguous array, from its element `index` on, counted through all
    dimensions.
    """
    data = builder.bitcast(context.make_array(array)(context, builder, value).data, scalar.as_pointer())
    return builder.bitcast(builder.gep(data, [index]), ir.VectorType(scalar, LANES).as_pointer())


@compiled
def find_middles(poses, out):
    """Compute: out [b] = the middle between the smallest and the largest number of each image's children [b, i, c].

    As `torchcaps.capsules.midpoint`, which for one image takes as long as a small layer.
    """
    images, children, length = poses.shape
    for b in range(images):
        low = high = poses[b, 0, 0]
        for i in range(children):
            for c in range(length):
                low, high = min(low, poses[b, i, c]), max(high, poses[b, i, c])
        out[b] = (low + high) / np.float32(2)


@compiled
def binarize(poses, middles, first, count, signs, sizes):
    """Compute: `count` images of children [b, i, c], from `first` on -> their signs as words [i, image] and mean sizes.

    A set bit, the lowest for the first element, is one above the image's own of `middles` [b].
    """
    _, children, length = poses.shape
    for b in range(count):
        for i in range(children):
            word, size = np.uint64(0), np.float32(0)
            for c in range(length):  # u becomes sign(u) mean|u|: the signs as bits, the mean size as a number
                x = poses[first + b, i, c]
                size += abs(x)
                word |= np.uint64(x > middles[first + b]) << np.uint64(c)
            signs[i, b] = word
            sizes[i, b] = size / length


@inline
def dots(typingctx, words, index, word, length):
    """Return 16 dot products of `length` signs each: `words` [..., n], unsigned, from `index` on, with `word`.

    A set bit is +1; bits beyond `length` are 0 in both. length - 2 popcount(a xor b), as float32.
    """

    def emit(context, builder, signature, args):
        array, at, one, count = args
        scalar = context.get_value_type(words.dtype)
        vector, wide = ir.VectorType(scalar, LANES), ir.VectorType(ir.IntType(32), LANES)
        there = builder.load(_address(context, builder, words, array, at, scalar), align=scalar.width // 8)
        differ = builder.xor(there, splat(builder, one))
        kind = ir.FunctionType(vector, [vector])
        popcount = cgutils.get_or_insert_function(builder.module, kind, f"llvm.ctpop.v{LANES}i{scalar.width}")
        apart, whole = builder.call(popcount, [differ]), splat(builder, _resized(builder, count, scalar))
        dot = builder.sub(whole, builder.add(apart, apart))  # d - 2 n, within a word's own width: -64 to 64
        return builder.sitofp(_resized(builder, dot, wide), ir.VectorType(ir.FloatType(), LANES))

    return Lanes(types.float32)(words, types.intp, words.dtype, types.intp), emit


@inline
def scale(typingctx, scales, index):
    """Return 16 scales from `index` on as float32; an array of uint16 holds halves by their bits."""

    def emit(context, builder, signature, args):
        array, at = args
        half = scales.dtype == types.uint16
        scalar = ir.HalfType() if half else ir.FloatType()
        loaded = builder.load(_address(context, builder, scales, array, at, scalar), align=2 if half else 4)
        return builder.fpext(loaded, ir.VectorType(ir.FloatType(), LANES)) if half else loaded

    return Lanes(types.float32)(scales, types.intp), emit


@inline
def every(typingctx, number):
    """Return a float32 in all 16 lanes."""

    def emit(context, builder, signature, args):
        return splat(builder, args[0])

    return Lanes(types.float32)(types.float32), emit


def _resized(builder: Any, value: Any, kind: Any) -> Any:
    """Return whole numbers, which may be negative, with as many bits as `kind` has."""
    width, wanted = (getattr(each, "element", each).width for each in (value.type, kind))
    return value if width == wanted else builder.sext(value, kind) if width < wanted else builder.trunc(value, kind)
