"""Blocks of discriminative-routing.md that no other page has; `docs/blocks.py` writes them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torchcaps.tables.lines import read_lines

RESULTS = Path(__file__).parent.parent / "results"
SHARES, BALANCED, PENALTY = (0.004, 0.4, 4.0), 1 / 9, 0.001  # steps by the start's square, of absent classes, lambda
SYSTEMS = {"dr": "dynamic routing", "l2": "l2", "l1": "l1", "control": "constant coefficients"}
SETS = {"fashion-mnist": "Fashion-MNIST", "cifar10": "CIFAR-10"}
Row = tuple[str, ...]


def _trials() -> dict[tuple, dict[str, Any]]:
    """Lines of benchmarks/starts.py by what was tried, seed 0."""
    names = ("data", "start", "share", "absent", "penalty")
    return {
        tuple(each[name] for name in names): each for each in read_lines(RESULTS / "starts.jsonl") if not each["seed"]
    }


def starts() -> Iterator[Row]:
    """Accuracy on validation images by start and step, and how many classes were lost."""
    trials = _trials()

    def show(*trial: object) -> str:
        line = trials.get((*trial, PENALTY), {})
        if "validation_accuracy" not in line:
            return "failed" if line else ""
        return f"{100 * line['validation_accuracy']:.1f}" + (
            f", {len(line['collapsed'])} lost" * bool(line["collapsed"])
        )

    yield "images", "start", "fixed", *(f"step {share:g}" for share in SHARES), f"step {SHARES[-1]:g}, absent 1/9"
    for data, name in SETS.items():
        for start in sorted({key[1] for key in trials if key[0] == data}):
            learnt = (show(data, start, share, 1.0) for share in SHARES)
            yield name, f"{start:g}", show(data, start, None, 1.0), *learnt, show(data, start, SHARES[-1], BALANCED)


def penalties() -> Iterator[Row]:
    """Accuracy and coefficients where lambda alone differs: from start 1 by step 0.4."""
    yield "λ", "accuracy (%)", "mean of *b*", "standard deviation of *b*"
    for (*trial, penalty), line in sorted(_trials().items(), key=lambda item: item[0][-1]):
        if trial == ["fashion-mnist", 1.0, 0.4, 1.0]:
            moments = (f"{line['coefficients'][name]:.2f}" for name in ("mean", "std"))
            yield f"{penalty:g}", f"{100 * line['validation_accuracy']:.1f}", *moments


def folded() -> Iterator[Row]:
    """Times and memory of inference on one core, the newest of each."""
    newest: dict[tuple[int, int], dict[str, Any]] = {}
    for each in read_lines(RESULTS / "benchmarks.jsonl"):
        if each["benchmark"].startswith("fold/") and each["threads"] == 1:
            newest[each["batch"], each["passes"]] = each
    forms = {"einsum_dynamic": "dynamic, einsum", "dynamic": "dynamic", "discriminative": "discriminative"}
    yield "batch", *forms.values(), "folded", "against einsum", "peak memory of einsum, folded"
    for (batch, passes), each in newest.items():
        times = (f"{each[f'{name}_ms']:.2f} ms" for name in (*forms, "folded"))
        peaks = f"{each['einsum_dynamic_peak_mb']:.3g} MiB, {each['folded_peak_mb']:.2g} MiB"
        how = f", {passes} passes in a row" if passes > 1 else ", weights out of cache" if batch == 1 else ""
        yield f"{batch}{how}", *times, f"{each['speed_up']:.1f} x", peaks


def steps() -> Iterator[Row]:
    """Time of 100 training steps as a share of that of dynamic routing by einsum, the newest line."""
    lines = read_lines(RESULTS / "benchmarks.jsonl")
    share = next(each for each in reversed(lines) if each["benchmark"] == "discriminative/figure 4")["share_of_einsum"]
    yield "", "float32", "the library's precision"
    for name, label in SYSTEMS.items():
        yield label, *(f"{share[f'{name}, {precision}']:.0%}" for precision in ("fp32", "auto"))


def transplants() -> Iterator[Row] | str:
    """Squared error of capsules through another network's decoder, the newest of each; a sentence without lines."""
    newest = {each["capsules"]: each for each in read_lines(RESULTS / "transplants.jsonl")}
    if not newest:
        return "Errors are not measured yet: `python docs/draw_transplants.py` makes lines of them, from runs."
    return _transplants(newest)


def _transplants(newest: dict[str, dict[str, Any]]) -> Iterator[Row]:
    yield "capsules of", "squared error", "rightly classified (%)"
    for name, each in newest.items():
        yield name, f"{each['error']:.1f}", f"{100 * each['right']:.1f}"


def newest_kept() -> list[dict[str, Any]]:
    """The newest line of benchmarks/kept.py for each lambda, from the smallest on."""
    newest = {each["penalty"]: each for each in read_lines(RESULTS / "kept.jsonl")}
    return [newest[penalty] for penalty in sorted(newest)]


def kept() -> Iterator[Row]:
    """Capsules that a penalty leaves, and accuracy, beside as many of the first network, chosen afterwards."""
    lines = newest_kept()
    afterwards = dict(lines[0]["taken_away"])
    yield "λ", "capsules left", "trained so (%)", "taken away afterwards (%)"
    for each in lines:
        accuracies = (each["test_accuracy"], afterwards[each["kept"]])
        yield f"{each['penalty']:g}", str(each["kept"]), *(f"{100 * accuracy:.2f}" for accuracy in accuracies)
