"""Work on ranges of children, one range a thread, as many threads as torch has.

Torch's own threads do it where its OpenMP can be called: those wait for more work with a busy loop, some milliseconds
long, and would take half of a core from any other pool.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache, lru_cache
from itertools import pairwise

import torch

Work = Callable[[int, int, int], object]


def ranges(count: int, least: int = 1) -> list[tuple[int, int]]:
    """Return `count` things in one range for each of torch's threads, or in fewer of at least `least`."""
    parts = max(1, min(torch.get_num_threads(), count // least))
    edges = [count * part // parts for part in range(parts + 1)]
    return list(pairwise(edges))


def run(work: Work, spans: list[tuple[int, int]]) -> None:
    """Call `work(part, first, end)` for each range, at the same time; the work must release Python's lock."""
    if len(spans) == 1:
        work(0, *spans[0])
    elif _openmp() is not None:
        _run_on_openmp(work, spans)
    else:
        list(_pool(os.getpid()).map(lambda part: work(part, *spans[part]), range(len(spans))))


def in_each_thread(work: Callable[[], object]) -> None:
    """Call `work()` in each of torch's threads, one after the other as far as Python's lock has it.

    Where their OpenMP cannot be called it is the thread at hand alone.
    """
    threads = torch.get_num_threads() if _openmp() is not None else 1
    run(lambda *_: work(), [(0, 0)] * threads)


@cache
def _openmp() -> ctypes.CDLL | None:
    """Return the OpenMP that torch has loaded, GNU's or one that has its entry points."""
    try:
        library = ctypes.CDLL(None)
        return library if library.GOMP_parallel and library.omp_get_thread_num else None
    except (AttributeError, OSError, TypeError):  # another runtime, or none
        return None


def _run_on_openmp(work: Work, spans: list[tuple[int, int]]) -> None:
    library, faults = _openmp(), []
    assert library is not None

    def call(_: int | None) -> None:
        try:
            for part in range(library.omp_get_thread_num(), len(spans), library.omp_get_num_threads()):
                work(part, *spans[part])
        except BaseException as fault:  # may not leave a thread of OpenMP
            faults.append(fault)

    library.GOMP_parallel(ctypes.CFUNCTYPE(None, ctypes.c_void_p)(call), None, len(spans), 0)
    if faults:
        raise faults[0]


@lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor:
    """Return threads of this process: those of a parent do not live on after a fork."""
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="torchcaps")
