"""What each head costs: counted, and timed on this machine while nothing else should run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torchcaps.config import Config
from torchcaps.plugins import import_handed_on
from torchcaps.tables.arguments import image_shape
from torchcaps.tables.budget_names import COST
from torchcaps.tables.cells import Cell, Train
from torchcaps.tables.measure import alone, latency, peak_memory, reset_peak, step_memory, step_seconds
from torchcaps.tables.metrics import Record
from torchcaps.tables.records import append_record, count_hash, read_records

BATCH = 128
FEW = 8  # images, and so many that a kernel is taken that leaves a handful to plain steps


def record_costs(cells: Sequence[Cell], path: Path, device: str = "auto") -> None:
    """Measure each cell's network and append a line for it to the file `path`.

    Each is measured in a process of its own, so that its peak of memory is not another's.

    Raises:
        ValueError: when such a process was ended, as where memory runs out; and what `measure_costs` raises.
    """
    for cell in cells:
        assert isinstance(cell.how, Train)
        config = cell.how.build()
        measured = alone(measure_costs, config, device=device)
        append_record(path, {"cell": cell.id, "budget": COST, "config_hash": count_hash(config), **measured})


def record_missing(cells: Sequence[Cell], path: Path, device: str, say: Callable[[str], None]) -> dict[str, str]:
    """Record the costs of those of `cells` that have none, or older counts; returns why, by name, where that failed.

    One that fails, as where memory runs out, keeps no other from being measured.
    """
    failed: dict[str, str] = {}
    for cell in cells:
        cost = find_costs(read_records(path), cell)
        if cost is not None and counts_are_current(cost):
            continue
        try:
            record_costs([cell], path, device)
        except (MemoryError, RuntimeError, ValueError) as error:
            failed[cell.name] = " ".join(str(error).split()) or type(error).__name__
            say(f"{cell.name}: its costs cannot be measured, and it is left out: {failed[cell.name]}")
    return failed


def measure_costs(config: Config, device: str = "auto") -> dict[str, Any]:
    """Return the parameters, multiply-adds of an image, times in ms and memory in MB; imports torch.

    The memory is that of a training step of 128 images, beyond what the process held before it.
    """
    import torch

    from torchcaps.cost import measure_cost
    from torchcaps.cost.operations import CONVENTION
    from torchcaps.tables.network import build_network
    from torchcaps.train.devices import choose_device
    from torchcaps.train.machine import describe_machine

    import_handed_on()
    place = choose_device(device)
    step_memory(config, FEW, device)  # so that what is loaded once for all is there before, the kernels too
    reset_peak(place)
    before = peak_memory(place)
    memory = step_memory(config, BATCH, device) - before / 1e6
    channels, height, width = image_shape(config)
    cost = measure_cost(build_network(config), (height, width), channels)
    return {
        "parameters": cost.parameters,
        "multiply_adds": cost.multiply_adds,
        "operations": cost.operations,
        "convention": CONVENTION,
        "step_memory_mb": round(memory, 1),
        "held_kb": round(cost.activation_memory / 1e3, 1),
        "step_ms": round(1000 * step_seconds(config, BATCH, device), 2),
        "latency_1_ms": round(latency(config, 1, device), 3),
        "latency_128_ms": round(latency(config, BATCH, device), 2),
        "threads": torch.get_num_threads(),
        "environment": {**describe_machine(), "device": place},
    }


def counts_are_current(cost: Record) -> bool:
    """Return whether multiply-adds and operations are those of plain steps; before, they were of what the machine
    ran.
    """
    return "convention" in cost


def find_costs(records: Sequence[Record], cell: Cell) -> Record | None:
    """Return the newest line of `cell`'s costs; None where there is none."""
    assert isinstance(cell.how, Train)
    wanted = (cell.id, COST, count_hash(cell.how.build()))
    found = [each for each in records if (each.get("cell"), each.get("budget"), each.get("config_hash")) == wanted]
    return found[-1] if found else None
