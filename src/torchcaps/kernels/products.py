"""Products of small matrices for loops in numba: 16 images side by side, the sums in registers.

Written as LLVM's own loops: as Python they are a hundred statements, each of which numba infers, types and lowers
wherever they are used, and a first step waits for that. Importing this module imports numba.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from torchcaps.kernels.simd import CONTRACT, LANES, Lanes, data_of, inline, splat, sum_lanes, sum_lanes_of_four

WIDTHS = (8, 4, 1)  # sums at once: as many products as a core has under way until the first of them is there


@inline
def multiply(typingctx, x, left, length, w, to, down, along, out, into, width, add):
    """Compute: out [width, 16] = or += x [length, 16] times a matrix whose rows are `down` and columns `along` apart.

    Of `x` from `left` on, of `w` from `to` on, of `out` from `into` on, all counted in numbers; `add` chooses +=.
    """

    def emit(context, builder, signature, args):
        xs, ws, outs = (data_of(context, builder, *of) for of in ((x, args[0]), (w, args[3]), (out, args[7])))
        left, length, to, down, along, into, width, add = (args[k] for k in (1, 2, 4, 5, 6, 8, 9, 10))
        vector = context.get_value_type(Lanes(out.dtype))
        align = out.dtype.bitwidth // 8

        def block(first: Any, wide: int) -> None:
            """Emit `wide` columns of out from `first` on.

            For k < wide: sum_k = 0, or out[first + k]; for each row c: sum_k += x[c] w[c, first + k]; out[first + k] =
            sum_k. A vector x[c] is read once for all `wide` columns, and w[c, .] is one number for all 16 images.
            """
            place = _add(builder, into, builder.mul(first, _number(LANES)))
            column = _add(builder, to, builder.mul(first, along))
            sums = [cgutils.alloca_once(builder, vector) for _ in range(wide)]  # LLVM makes registers of them
            wheres = [_at(builder, outs, _add(builder, place, _number(k * LANES)), vector) for k in range(wide)]
            with builder.if_else(add) as (then, otherwise):
                with then:
                    for held, where in zip(sums, wheres, strict=True):
                        builder.store(builder.load(where, align=align), held)
                with otherwise:
                    for held in sums:
                        builder.store(ir.Constant(vector, [0.0] * LANES), held)
            with cgutils.for_range(builder, length) as row:
                one = _at(builder, xs, _add(builder, left, builder.mul(row.index, _number(LANES))), vector)
                one = builder.load(one, align=align)
                q = _add(builder, column, builder.mul(row.index, down))
                for held in sums:
                    number = splat(builder, builder.load(builder.gep(ws, [q])))
                    _accumulate(builder, held, one, number)
                    q = _add(builder, q, along)
            for held, where in zip(sums, wheres, strict=True):
                builder.store(builder.load(held), where, align=align)

        _in_blocks(builder, width, block)
        return context.get_dummy_value()

    arguments = (x, types.intp, types.intp, w, *[types.intp] * 3, out, types.intp, types.intp, types.boolean)
    return types.void(*arguments), emit


@inline
def outer_row(typingctx, u, at, apart, v, count, m, out, into):
    """Compute: out [m] = the sums over images and `count` vectors of u [16] times v [m, 16].

    Of `u` from `at` on, `apart` numbers from one to the next, of `v` from the first, of `out` from `into` on.
    """

    def emit(context, builder, signature, args):
        us, vs, outs = (data_of(context, builder, *of) for of in ((u, args[0]), (v, args[3]), (out, args[6])))
        at, apart, count, m, into = (args[k] for k in (1, 2, 4, 5, 7))
        vector = context.get_value_type(Lanes(v.dtype))
        align = v.dtype.bitwidth // 8

        def block(first: Any, wide: int) -> None:
            """Emit out[first + k] = sum over rows r and lanes of u[r] v[r, first + k], for k < wide.

            Lanes are kept apart in `wide` sums until all rows are done, and four of them are summed across at a time.
            """
            sums = [cgutils.alloca_once(builder, vector) for _ in range(wide)]
            for held in sums:
                builder.store(ir.Constant(vector, [0.0] * LANES), held)
            with cgutils.for_range(builder, count) as row:
                one = _at(builder, us, _add(builder, at, builder.mul(row.index, apart)), vector)
                one = builder.load(one, align=align)
                k = builder.mul(_add(builder, builder.mul(row.index, m), first), _number(LANES))
                for held in sums:
                    _accumulate(builder, held, one, builder.load(_at(builder, vs, k, vector), align=align))
                    k = _add(builder, k, _number(LANES))
            place = _add(builder, into, first)
            if wide == 1:
                builder.store(sum_lanes(builder, builder.load(sums[0])), builder.gep(outs, [place]))
                return
            for k in range(0, wide, 4):
                four = sum_lanes_of_four(builder, *(builder.load(held) for held in sums[k : k + 4]))
                where = builder.gep(outs, [_add(builder, place, _number(k))])
                builder.store(four, builder.bitcast(where, four.type.as_pointer()), align=align)

        _in_blocks(builder, m, block)
        return context.get_dummy_value()

    arguments = (u, types.intp, types.intp, v, types.intp, types.intp, out, types.intp)
    return types.void(*arguments), emit


def _in_blocks(builder: Any, count: Any, block: Callable[[Any, int], None]) -> None:
    """Emit `block(first, wide)` for ranges that make up 0 to `count`: of the widest as many as fit."""
    done = _number(0)
    for wide in WIDTHS:
        blocks = builder.udiv(builder.sub(count, done), _number(wide))
        with cgutils.for_range(builder, blocks) as loop:
            block(_add(builder, done, builder.mul(loop.index, _number(wide))), wide)
        done = _add(builder, done, builder.mul(blocks, _number(wide)))


def _number(value: int) -> ir.Constant:
    return ir.Constant(ir.IntType(64), value)


def _add(builder: Any, x: Any, y: Any) -> Any:
    return builder.add(x, y)


def _at(builder: Any, data: Any, index: Any, vector: Any) -> Any:
    return builder.bitcast(builder.gep(data, [index]), vector.as_pointer())


def _accumulate(builder: Any, held: Any, x: Any, y: Any) -> None:
    """Add the product of two vectors to what is held, by one operation where the machine has it."""
    product = builder.fmul(x, y, flags=CONTRACT)
    builder.store(builder.fadd(builder.load(held), product, flags=CONTRACT), held)
