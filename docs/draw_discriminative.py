"""Write the tables of discriminative-routing.md, each between its marks, from the lines of results/*.jsonl.

python docs/draw_discriminative.py
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from starts import BALANCED, PATH, SHARES, Trial, trials

from torchcaps.recipes.lines import read_lines
from torchcaps.recipes.records import read_records

DOCS = Path(__file__).parent
PAGE = DOCS / "discriminative-routing.md"
BENCHMARKS = DOCS.parent / "results" / "benchmarks.jsonl"
SYSTEMS = {"dr": "dynamic routing", "l2": "l2", "l1": "l1", "control": "constant coefficients"}
Row = tuple[str, ...]


def starts() -> Iterator[Row]:
    """Accuracy on validation images by start and step, one seed; how many classes were lost."""
    found = {Trial(*(each[name] for name in Trial._fields)): each for each in read_records(PATH) if not each["seed"]}

    def show(trial: Trial) -> str:
        if trial not in found:
            return ""
        lost = len(found[trial].get("collapsed", ()))
        return f"{100 * found[trial]['validation_accuracy']:.1f}" + (f", {lost} lost" if lost else "")

    yield ("images", "start", "fixed", *(f"step {share:g} *b*₀²" for share in SHARES), f"the last, {BALANCED:.2f}")
    for data, start in dict.fromkeys((each.data, each.start) for each in trials()):
        learnt = [Trial(data, start, share) for share in SHARES]
        each = [Trial(data, start), *learnt, Trial(data, start, SHARES[-1], BALANCED)]
        yield data, f"{start:g}", *map(show, each)


def penalties() -> Iterator[Row]:
    """The same where only lambda differs."""
    found = {Trial(*(each[name] for name in Trial._fields)): each for each in read_records(PATH) if not each["seed"]}
    chosen = sorted({*(each for each in trials() if each.penalty != 0.001), Trial("fashion-mnist", 1.0, 0.4)})
    shown = [each for each in chosen if each in found]
    yield ("λ", "accuracy (%)", "mean of *b*", "standard deviation")
    for each in shown:
        line = found[each]
        mean, std = (f"{line['coefficients'][name]:.2f}" for name in ("mean", "std"))
        yield f"{each.penalty:g}", f"{100 * line['validation_accuracy']:.1f}", mean, std


def folded() -> Iterator[Row]:
    """Times and memory of inference on one core, the newest of each."""
    lines: dict[tuple[int, int], Any] = {}
    for each in read_lines(BENCHMARKS):
        if each["benchmark"].startswith("fold/") and each["threads"] == 1:
            lines[each["batch"], each["passes"]] = each
    forms = {"einsum_dynamic": "dynamic, einsum", "dynamic": "dynamic", "discriminative": "discriminative"}
    yield ("batch", *forms.values(), "folded", "against einsum", "peak memory of einsum, folded")
    for (batch, passes), each in lines.items():
        times = (f"{each[f'{name}_ms']:.2f} ms" for name in (*forms, "folded"))
        peaks = f"{each['einsum_dynamic_peak_mb']:.3g} MiB, {each['folded_peak_mb']:.2g} MiB"
        row = f"{passes} passes in a row" if passes > 1 else "weights out of cache" if batch == 1 else ""
        yield ", ".join(filter(None, (str(batch), row))), *times, f"{each['speed_up']:.1f} x", peaks


def steps() -> Iterator[Row]:
    """Time of 100 training steps as a share of dynamic routing by einsum, the newest line."""
    line = next(each for each in reversed(read_lines(BENCHMARKS)) if each["benchmark"] == "discriminative/figure 4")
    share = line["share_of_einsum"]
    yield ("", "float32", "the library's precision")
    for name, label in SYSTEMS.items():
        yield label, *(f"{share[f'{name}, {precision}']:.0%}" for precision in ("fp32", "auto"))


BLOCKS: dict[str, Callable[[], Iterator[Row]]] = {
    "starts": starts,
    "penalties": penalties,
    "folded": folded,
    "steps": steps,
}


def table(rows: Iterator[Row]) -> str:
    head, *body = rows
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *body))


def page(text: str) -> str:
    """`text` with its tables made anew."""
    for name, rows in BLOCKS.items():
        marks = rf"(<!-- {name}: .*? -->\n).*?(\n<!-- end -->)"
        text, count = re.subn(marks, lambda found, rows=rows: found[1] + table(rows()) + found[2], text, flags=re.S)
        assert count == 1, name
    return text


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
