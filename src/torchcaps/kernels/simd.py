"""Vectors of 16 numbers for loops in numba, one number for each of 16 images, as values that stay in registers.

numba's own vectorizer takes one innermost loop and keeps its sums in memory. Here a loop names its sums, as many as it
has registers for, and adds products to them. Products are fused into sums; nothing else is reordered, so NaN and
infinity stay what they are. Importing this module imports numba.

To read such a loop, take a vector for a tensor of shape [16] that lives in the processor. With `x` an array [n, 16],
flattened, and `at` = 16 k:

    load(x, at)            x[k]                      store(x, at, v)        x[k] = v
    broadcast(w, k)        w.flatten()[k]            total(v)               v.sum()
    a + b, a * b, a / b    the same, lane by lane    highest(v)             v.max()
    select(x, y, a, b)     torch.where(x > y, a, b)  zeros(x)               torch.zeros(16)

So `a = a + load(x, at) * broadcast(w, k)` is `a += x[k] * w[k]` for 16 lanes at once, in one instruction. What
stands in lanes is said where an array is described: 16 parents (`windows.py`), or 16 images (`lanes.py`). There are
four or eight sums `a0`, `a1`, ... where one would do, because an instruction takes the processor four to five cycles
from operands to result, but a new one may begin in each: sums that do not wait for each other keep it busy.

Every function below that is marked `@inline` tells numba the type of its result, and `emit` writes LLVM's instructions
for it into the function that calls it. `compiled` makes machine code of a loop, `subroutine` of what loops call,
`inlined` a part of either.
"""

from __future__ import annotations

import math
import operator
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NoReturn

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils, config, event
from numba.core.caching import FunctionCache
from numba.core.registry import CPUDispatcher
from numba.core.typing.templates import AbstractTemplate, infer_global
from numba.extending import intrinsic, lower_builtin, models, register_model

from torchcaps.terminal import warn

LANES = 16  # numbers in a vector: a register of AVX-512 in float32; elsewhere LLVM takes two or four registers for one
LOG2 = (0.693359375, -2.121944400546905827679e-4)  # log(2) in two parts, the first so short that n times it is exact
CONTRACT = ("contract",)
_EXP = {types.float32: (7, 23, -86.0), types.float64: (13, 52, -708.0)}  # degree, bits of the mantissa, smallest x


options: Any = config  # of numba's compiler, for all that it compiles next
inline: Any = intrinsic  # numba fills in the first argument of what these decorate
known_to_numba: Any = infer_global


class Lanes(types.Type):
    """The type of a vector of 16 `scalar`s."""

    def __init__(self, scalar: types.Float):
        self.scalar = scalar
        super().__init__(f"Lanes({scalar})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, lanes: Lanes):
        super().__init__(manager, lanes, ir.VectorType(manager.lookup(lanes.scalar).get_value_type(), LANES))


def compiled(function: Callable) -> Any:
    """Return `function` in machine code, which runs without Python's lock and is kept on disk where there is a
    place.
    """
    return _kept(function, no_cfunc_wrapper=True)


def subroutine(function: Callable) -> Any:
    """Return `function` in machine code for compiled functions to call, kept as theirs is; Python cannot.

    What makes a function's arguments of Python's objects would take a quarter of the time of compiling it.
    """
    dispatcher = _kept(function, no_cfunc_wrapper=True, no_cpython_wrapper=True)
    if isinstance(dispatcher, CPUDispatcher):  # NUMBA_DISABLE_JIT leaves the function as it is
        dispatcher.__class__ = _Subroutine
    return dispatcher


class _Subroutine(CPUDispatcher):
    """What numba compiles a subroutine by; called from Python it would run into nothing."""

    def __call__(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(f"{self.py_func.__qualname__} is a subroutine of compiled functions; Python cannot call it")


def _kept(function: Callable, **settings: bool) -> Any:
    """Return what `settings` of numba's make of `function`, with a place for it on disk where there is one."""
    make = partial(njit, nogil=True, error_model="numpy", **settings)
    try:
        dispatcher: Any = make(cache=True)(function)
    except RuntimeError:  # neither the folder of the source nor the user's cache can be written
        _say_not_kept("neither its folder nor the user's cache can be written")
        return make()(function)
    # what is kept holds the code of other files too, and numba looks at the function's own file only
    store: Any = getattr(dispatcher, "_cache", None)
    kept: Any = getattr(store, "_cache_file", None)
    if not hasattr(kept, "_source_stamp"):  # another numba: rather nothing is kept than code of an older file taken
        return make()(function)
    kept._source_stamp = _source(Path(function.__code__.co_filename).parent)
    if type(store) is FunctionCache:
        store.__class__ = _Cache
    return dispatcher


class _Cache(FunctionCache):
    """What numba keeps of a function; where it cannot be read, or nothing be added, the function is compiled anew."""

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        try:
            return super().load_overload(sig, target_context)
        except (OSError, MemoryError):  # which say nothing of the file
            return None
        except Exception:  # of a file that is cut short or overwritten, anything
            self._forget()
            return None

    def save_overload(self, sig: Any, data: Any) -> None:
        try:
            super().save_overload(sig, data)
        except Exception as error:  # no room, no longer writable, or an index that is damaged and cannot be replaced
            self._forget()
            said = error.strerror if isinstance(error, OSError) else None  # without the file's name, which is a new one
            _say_not_kept(said or type(error).__name__)

    def _forget(self) -> None:
        """Remove the index: it is written first, and would else promise code of this source in a file of an older one,
        which bears the same name.
        """
        index: Any = self._cache_file
        with suppress(OSError):
            Path(index._index_path).unlink(missing_ok=True)


@cache
def _say_not_kept(reason: str) -> None:
    warn(
        f"compiled kernels are not kept on disk, so each process compiles them anew: {reason}; "
        "NUMBA_CACHE_DIR names another place"
    )


def inlined(function: Callable) -> Any:
    """Return `function` as a part of the compiled functions that call it."""
    return njit(inline="always", error_model="numpy")(function)


class _Compilation(event.Listener):
    """Has ours compiled at `LEVEL`, and says once a process that kernels are, to whom looks at a terminal or at a
    notebook.

    Loops are vectors already, so numba's vectorizer and what LLVM does beyond the second level only take time: a sixth
    of EM's. A level that the user's NUMBA_OPT asks for stands. Numba compiles in one thread at a time, and tells here
    while it does.
    """

    LEVEL = 2

    def __init__(self) -> None:
        self.said = False
        self.before: list[tuple[Any, int]] = []  # of each compilation that is under way, one inside the other

    def on_start(self, event: Any) -> None:
        self.before.append((options.OPT, options.LOOP_VECTORIZE))
        module = event.data["dispatcher"].py_func.__module__  # None where generated code has no name
        if not (module or "").startswith("torchcaps."):
            return
        if "NUMBA_OPT" not in os.environ:
            options.OPT, options.LOOP_VECTORIZE = type(options.OPT)(self.LEVEL), 0
        if not self.said and (sys.stderr.isatty() or "ipykernel" in sys.modules):
            self.said = True
            warn(
                "compiling kernels for this processor, once per machine: some seconds a routing "
                "(torchcaps warm does it ahead)"
            )

    def on_end(self, event: Any) -> None:
        options.OPT, options.LOOP_VECTORIZE = self.before.pop()


event.register("numba:compile", _Compilation())


@cache
def _source(folder: Path) -> str:
    """Return a digest of the files that a function in `folder` may be made of."""
    files = {*Path(__file__).parent.glob("*.py"), *folder.glob("*.py")}
    return sha256(b"".join(file.read_bytes() for file in sorted(files))).hexdigest()


def splat(builder: Any, scalar: Any) -> Any:
    vector = ir.VectorType(scalar.type, LANES)
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(ir.IntType(32), LANES), [0] * LANES))


def _constant(vector: ir.VectorType, value: float) -> ir.Constant:
    return ir.Constant(vector, [value] * LANES)


def data_of(context: Any, builder: Any, array: types.Array, value: Any) -> Any:
    """Return the address of the first number of a contiguous array."""
    return context.make_array(array)(context, builder, value).data


def _pointer(context: Any, builder: Any, array: types.Array, value: Any, index: Any) -> Any:
    return builder.gep(data_of(context, builder, array, value), [index])


def _operator(op: Callable, emit: Callable[[Any, Any, Any], Any]) -> None:
    """Let `op` take two vectors, or a vector and a number that stands for all 16."""

    @known_to_numba(op)
    class _(AbstractTemplate):
        def generic(self, args: tuple, kws: dict) -> Any:
            # what numba asks of `x op y`: the type of its result and of each side, or None where it is not ours
            lanes = [x for x in args if isinstance(x, Lanes)]
            if len(args) == 2 and lanes:
                return lanes[0](*(x if isinstance(x, Lanes) else lanes[0].scalar for x in args))

    def lower(context: Any, builder: Any, signature: Any, args: list) -> Any:
        # then the instructions: a single number goes to all 16 lanes first
        wide = [
            x if isinstance(kind, Lanes) else splat(builder, x) for x, kind in zip(args, signature.args, strict=True)
        ]
        return emit(builder, *wide)

    for kinds in ((Lanes, Lanes), (Lanes, types.Float), (types.Float, Lanes)):
        lower_builtin(op, *kinds)(lower)


_operator(operator.add, lambda builder, x, y: builder.fadd(x, y, flags=CONTRACT))
_operator(operator.sub, lambda builder, x, y: builder.fsub(x, y, flags=CONTRACT))
_operator(operator.mul, lambda builder, x, y: builder.fmul(x, y, flags=CONTRACT))
_operator(operator.truediv, lambda builder, x, y: builder.fdiv(x, y))


@inline
def load(typingctx, array, index):
    """Return the 16 numbers of a contiguous `array` from `index` on, counted through all its dimensions."""
    lanes = Lanes(array.dtype)  # here `array` and `index` are types: this runs while a loop is compiled

    def emit(context, builder, signature, args):
        pointer = _pointer(context, builder, array, *args)
        vector = context.get_value_type(lanes)
        # aligned as one number is: a vector may begin anywhere in an array
        return builder.load(builder.bitcast(pointer, vector.as_pointer()), align=array.dtype.bitwidth // 8)

    return lanes(array, types.intp), emit


@inline
def store(typingctx, array, index, value):
    """Put 16 numbers into a contiguous `array` from `index` on."""

    def emit(context, builder, signature, args):
        pointer = _pointer(context, builder, array, *args[:2])
        builder.store(args[2], builder.bitcast(pointer, args[2].type.as_pointer()), align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), emit


@inline
def broadcast(typingctx, array, index):
    """Return 16 times the one number of a contiguous `array` at `index`."""
    lanes = Lanes(array.dtype)

    def emit(context, builder, signature, args):
        return splat(builder, builder.load(_pointer(context, builder, array, *args)))

    return lanes(array, types.intp), emit


@inline
def put(typingctx, array, index, number):
    """Put one number into a contiguous `array` at `index`."""

    def emit(context, builder, signature, args):
        builder.store(args[2], _pointer(context, builder, array, *args[:2]))
        return context.get_dummy_value()

    return types.void(array, types.intp, array.dtype), emit


@inline
def zeros(typingctx, array):
    """Return 16 zeros of the type of `array`."""
    lanes = Lanes(array.dtype)
    return lanes(array), lambda context, builder, signature, args: _constant(context.get_value_type(lanes), 0.0)


@inline
def select(typingctx, x, y, above, below):
    """Return `above` where x > y, and `below` elsewhere and where one of them is NaN."""

    def emit(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered(">", args[0], args[1]), args[2], args[3])

    return above(x, x, x, x), emit


@inline
def root(typingctx, x):
    """Return square roots."""

    def emit(context, builder, signature, args):
        return _call(builder, "sqrt", args[0])

    return x(x), emit


@inline
def magnitude(typingctx, x):
    """Return absolute values."""

    def emit(context, builder, signature, args):
        return _call(builder, "fabs", args[0])

    return x(x), emit


@inline
def total(typingctx, x):
    """Return the sum of the 16 numbers."""

    def emit(context, builder, signature, args):
        return sum_lanes(builder, args[0])

    return x.scalar(x), emit


@inline
def store_totals(typingctx, array, index, a, b, c, d):
    """Put the sums of four vectors into a contiguous `array` from `index` on."""

    def emit(context, builder, signature, args):
        pointer, sums = _pointer(context, builder, array, *args[:2]), sum_lanes_of_four(builder, *args[2:])
        builder.store(sums, builder.bitcast(pointer, sums.type.as_pointer()), align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, a, a, a, a), emit


def sum_lanes(builder: Any, x: Any) -> Any:
    """Return the sum of the 16 numbers of a vector, in any order."""
    return _call(builder, "vector.reduce.fadd", x, ir.Constant(x.type.element, -0.0))


def sum_lanes_of_four(builder: Any, a: Any, b: Any, c: Any, d: Any) -> Any:
    """Return the sums of four vectors, as one vector of four."""

    def pick(x: Any, y: Any, places: list[int]) -> Any:
        return builder.shuffle_vector(x, y, ir.Constant(ir.VectorType(ir.IntType(32), len(places)), places))

    def fold(x: Any, y: Any, low: list[int]) -> Any:
        """Return x and y halved: `low` names the first two of every four places, 16 and more for those of y."""
        first = [four + k for four in range(0, LANES, 4) for k in low]
        return builder.fadd(pick(x, y, first), pick(x, y, [k + 2 for k in first]))

    # sums over half as many places in each step, while twice as many of the four share a vector
    pairs = [fold(x, y, [0, LANES, 1, LANES + 1]) for x, y in ((a, b), (c, d))]  # a b a b, c d c d
    fours = fold(pairs[0], pairs[1], [0, 1, LANES, LANES + 1])  # a b c d, four times
    eight = builder.fadd(pick(fours, fours, [*range(8)]), pick(fours, fours, [*range(8, 16)]))
    return builder.fadd(pick(eight, eight, [*range(4)]), pick(eight, eight, [*range(4, 8)]))


@inline
def transpose(typingctx, source, at, step, target, to, stride):
    """Put 16 vectors of `source`, from `at` on and `step` apart, as columns into `target`, from `to`, `stride` apart.

    Each of four rounds interleaves every vector with the one eight further on, which turns the place of a number,
    4 bits of its vector and 4 of its lane, by one bit.
    """
    lanes = Lanes(source.dtype)

    def emit(context, builder, signature, args):
        vector, align = context.get_value_type(lanes), source.dtype.bitwidth // 8

        def place(kind: types.Array, array: Any, first: Any, apart: Any, r: int) -> Any:
            index = builder.add(first, builder.mul(apart, ir.Constant(apart.type, r)))
            return builder.bitcast(_pointer(context, builder, kind, array, index), vector.as_pointer())

        rows = [builder.load(place(source, args[0], args[1], args[2], r), align=align) for r in range(LANES)]
        halves = [[k // 2 + half + LANES * (k % 2) for k in range(LANES)] for half in (0, LANES // 2)]
        masks = [ir.Constant(ir.VectorType(ir.IntType(32), LANES), half) for half in halves]
        for _ in range(4):
            rows = [builder.shuffle_vector(rows[r // 2], rows[r // 2 + 8], masks[r % 2]) for r in range(LANES)]
        for r, row in enumerate(rows):
            builder.store(row, place(target, args[3], args[4], args[5], r), align=align)
        return context.get_dummy_value()

    return types.void(source, types.intp, types.intp, target, types.intp, types.intp), emit


@inline
def highest(typingctx, x):
    """Return the largest of the 16 numbers, of those that are not NaN."""

    def emit(context, builder, signature, args):
        (value,) = args
        for half in (8, 4, 2, 1):  # each lane against the one `half` further on: after four rounds each has seen all
            order = [(k + half) % LANES for k in range(LANES)]
            other = builder.shuffle_vector(value, value, ir.Constant(ir.VectorType(ir.IntType(32), LANES), order))
            value = builder.select(builder.fcmp_ordered(">", other, value), other, value)
        return builder.extract_element(value, ir.Constant(ir.IntType(32), 0))

    return x.scalar(x), emit


@inline
def exp(typingctx, x):
    """Return e to the power of x <= 0, within two units of the last place; e^-86 (float32) or e^-708 where x is below.

    2^n e^r with |r| <= log(2) / 2, by its series. Adding 1.5 2^bits rounds to the whole number n, whose bits then are
    the lowest ones.
    """
    degree, bits, smallest = _EXP[x.scalar]

    def emit(context, builder, signature, args):
        (value,) = args
        vector = value.type
        whole = ir.VectorType(ir.IntType(x.scalar.bitwidth), LANES)

        def number(constant: float) -> ir.Constant:
            return _constant(vector, constant)

        value = builder.select(builder.fcmp_ordered("<", value, number(smallest)), number(smallest), value)
        # x = n log 2 + r: the sum with 1.5 2^bits has no room for a fraction, so that n is left in its lowest bits
        magic = number(1.5 * 2.0**bits)
        shifted = builder.fadd(builder.fmul(value, number(1 / math.log(2))), magic)
        n = builder.fsub(shifted, magic)
        r = builder.fsub(value, builder.fmul(n, number(LOG2[0])))  # exact, since the first part is short
        r = builder.fsub(r, builder.fmul(n, number(LOG2[1]), flags=CONTRACT), flags=CONTRACT)
        # e^r = 1 + r (1 + r / 2 (1 + r / 3 ...)), from the innermost bracket outwards
        series = number(1 / math.factorial(degree))
        for k in reversed(range(degree)):
            product = builder.fmul(series, r, flags=CONTRACT)
            series = builder.fadd(product, number(1 / math.factorial(k)), flags=CONTRACT)
        # times 2^n: a float's exponent stands above its mantissa, so n, moved up by as many bits, is added to its bits
        power = builder.shl(builder.bitcast(shifted, whole), ir.Constant(whole, [bits] * LANES))
        return builder.bitcast(builder.add(builder.bitcast(series, whole), power), vector)

    return x(x), emit


def _call(builder: Any, name: str, vector: Any, *before: Any) -> Any:
    """Return LLVM's own function `name` of a vector, after a number where it takes one; a sum may take any order."""
    suffix = f"v{LANES}{'f32' if isinstance(vector.type.element, ir.FloatType) else 'f64'}"
    result = vector.type.element if before else vector.type
    kind = ir.FunctionType(result, [*(x.type for x in before), vector.type])
    function = cgutils.get_or_insert_function(builder.module, kind, f"llvm.{name}.{suffix}")
    return builder.call(function, [*before, vector], fastmath=("reassoc",) if before else ())
