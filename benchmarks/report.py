"""What every benchmark shares: repeated timing, and JSON lines that say where a number comes from."""

from __future__ import annotations

import ctypes
import gc
import json
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple

import torch

from torchcaps.memory import kept
from torchcaps.tables.lines import append_line
from torchcaps.tables.measure import peak_memory, reset_peak
from torchcaps.train.machine import describe_machine

RESULTS = Path(__file__).parent.parent / "results"
TURN = 0.05  # seconds
BASELINE = 2  # of lines since einsum leaves out what reaches nothing, and memory is kept while it is timed


def interleaved(
    functions: Sequence[Callable[[], object]], repeats: int, warmup: int = 1, calls: int | None = None
) -> list[list[float]]:
    """Seconds of a call of each function, [function][repeat], taken in turn so that a drift of the machine meets all.

    A turn is `calls` in a row; without a number as many as last `TURN` seconds, and at least one: else a short call
    would be charged with waking the threads that slept while a long one ended on one of them, which takes milliseconds
    on a virtual machine. On a CPU what is freed is kept meanwhile, as in training (`torchcaps.memory.kept`): else
    whatever takes large pieces would mostly be charged with the system's clearing of them.
    """
    counts = [calls or 1 for _ in functions]
    with kept("cuda" if torch.cuda.is_available() else "cpu"):
        for k, function in enumerate(functions):
            for _ in range(warmup):
                taken = _seconds(function, 1)
                counts[k] = calls or max(1, int(TURN / taken))
        turns = [[_seconds(*each) for each in zip(functions, counts, strict=True)] for _ in range(repeats)]
    return [list(seconds) for seconds in zip(*turns, strict=True)]


def _seconds(function: Callable[[], object], calls: int) -> float:
    """Of one call, the mean over `calls` in a row."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / calls


def median_ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Median over the repeats of how many times longer `slow` took than the `fast` beside it."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def step(forward: Callable[[], torch.Tensor]) -> None:
    """Take a training step without an optimiser: forward, and backward from the sum."""
    forward().sum().backward()


class Allocated(NamedTuple):
    """Bytes that torch has allocated on CPU: the most that lived at once, and of the largest piece."""

    peak: int
    largest: int


def allocated_bytes(function: Callable[[], object]) -> Allocated:
    """Of a call; what was there before does not count, nor does scratch memory that a kernel takes without torch."""
    with torch.profiler.profile(profile_memory=True) as profile:
        function()
    results: Any = profile.profiler.kineto_results  # pyright: ignore[reportOptionalMemberAccess]
    events = [event for event in results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return Allocated(peak, max((event.nbytes() for event in events), default=0))


def resident_bytes(function: Callable[[], object], repeats: int = 5) -> int:
    """The most that a call adds to what the process holds in memory, scratch of kernels and its result included.

    Of the second call on, the median; in pages, and 0 where the allocator had kept enough. Linux with glibc.
    """
    function()
    added = []
    for _ in range(repeats):
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        reset_peak("cpu")
        before = peak_memory("cpu")
        result = function()
        added.append(peak_memory("cpu") - before)
        del result
    return int(statistics.median(added))


def record(benchmark: str, values: dict) -> None:
    """Append a line to results/benchmarks.jsonl, and print it."""
    line = {
        "benchmark": benchmark,
        **values,
        "baseline": BASELINE,
        "date": date.today().isoformat(),
        "environment": describe_machine(),
    }
    append_line(RESULTS / "benchmarks.jsonl", line)
    print(json.dumps({"benchmark": benchmark, **values}, indent=2))
