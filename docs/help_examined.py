"""Blocks of do-capsules-help.md that tell what routing does in the trained networks; `docs/blocks.py` writes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import sqrt
from statistics import mean

from help_blocks import NOT_RUN, Line, images
from help_runs import ROUTINGS, SHARES, Rows, Study

from torchcaps.compare.examined import COLUMNS
from torchcaps.compare.rows import Gap, names
from torchcaps.examine.found import Examination, Placebo
from torchcaps.examine.placebos import ONE, OTHER, RANDOM, SAME, UNIFORM

PLACEBOS = {
    ONE: "R = 1",
    UNIFORM: "uniform",
    RANDOM: "random",
    SAME: "another image's, same class",
    OTHER: "another class's",
}
MEASURES = ("T", "from the image", "told from its negative", "trees a class", "kept at 30° (%)", "at scale 0.8 (%)")
POSE = "R² of the angle"
NORMAL_95 = 1.96  # deviations, within which 95 % lie
Read = Callable[[Examination], float | None]
CAPSULES: Mapping[str, tuple[Read, str]] = {  # of the class capsules, and of their children
    "D": (lambda found: found.layers[-1].d_score[-1] if found.layers else None, ".3f"),
    "dead children (%)": (lambda found: 100 * found.layers[0].dead if found.layers else None, ".1f"),
    "starved children (%)": (lambda found: _starved(found), ".1f"),
}
SHOWN = {name: COLUMNS[name] for name in MEASURES} | CAPSULES | {POSE: COLUMNS[POSE]}


def _starved(found: Examination) -> float | None:
    starved = found.layers[0].starved if found.layers else None
    return None if starved is None else 100 * starved


def placebos(study: Study, of: str) -> str | Iterator[Line]:
    """Accuracy of each network with couplings that its routing did not choose, and the share of answers they change."""
    return _table(study, of, _placebos)


def _table(study: Study, of: str, make: Callable[[Rows], Iterator[Line]]) -> str | Iterator[Line]:
    rows = study.rows(float(of))
    return make(rows) if any(row.examined for row in rows.values()) else "Not examined."


def _placebos(rows: Rows) -> Iterator[Line]:
    yield "routing", "runs", "as it is (%)", *PLACEBOS.values(), "lost by another class's"
    for head in ROUTINGS:
        examined = rows[head].examined
        if not examined:
            yield f"`{head}`", NOT_RUN, *[""] * (len(PLACEBOS) + 2)
            continue
        own = f"{100 * mean(each.accuracy for each in examined):.1f}"
        lost = _lost(examined)
        shown = (_placebo(examined, name) for name in PLACEBOS)
        yield f"`{head}`", str(len(examined)), own, *shown, "" if lost is None else _bold(lost, _side(examined))


def _placebo(examined: Sequence[Examination], name: str) -> str:
    found = [each for one in examined for each in one.placebos if each.name == name]
    if not found:
        return ""
    return f"{100 * mean(each.accuracy for each in found):.1f} ({100 * mean(each.changed for each in found):.1f})"


def _bold(lost: Gap, side: int) -> str:
    """What is lost as text, in bold only where it is decided on the images too."""
    return str(lost) if side else str(lost).replace("**", "")


def _others(examined: Sequence[Examination]) -> list[tuple[Examination, Placebo]]:
    return [(one, each) for one in examined for each in one.placebos if each.name == OTHER]


def _lost(examined: Sequence[Examination]) -> Gap | None:
    """Points of accuracy that are lost by the couplings of another class; None where there are none."""
    found = _others(examined)
    return Gap(tuple(100 * (one.accuracy - each.accuracy) for one, each in found)) if found else None


def _side(examined: Sequence[Examination]) -> int:
    """1: accuracy is lost, -1: gained, 0: not decided. Decided is what both the seeds and the number of images say.

    At most each answer that changed is right in one of the two cases alone, so that by chance the images lost, of all
    runs together, deviate by no more than the root of the number of answers that changed.
    """
    found, lost = _others(examined), _lost(examined)
    changed = sum(each.changed * one.images for one, each in found)
    images_lost = sum((one.accuracy - each.accuracy) * one.images for one, each in found)
    sure = abs(images_lost) > NORMAL_95 * sqrt(changed)
    return lost.side if lost is not None and sure else 0


def couplings(study: Study) -> str:
    """Whether trained networks read their couplings, in a sentence for each share of the images."""
    said = (f"  - {images(share)}: {_read(study.rows(share))}." for share in SHARES)
    question = "- **Does a trained network read its couplings?** With those of an image of another class:"
    return "\n".join([question, *said])


def _read(rows: Rows) -> str:
    examined = {head: rows[head].examined for head in ROUTINGS if _others(rows[head].examined)}
    if not examined:
        return NOT_RUN
    changed = {head: 100 * mean(each.changed for _, each in _others(found)) for head, found in examined.items()}
    low, high = min(changed, key=changed.__getitem__), max(changed, key=changed.__getitem__)
    said = f"{changed[low]:.1f} % of the answers change (`{low}`)"
    if low != high:
        said = f"from {changed[low]:.1f} % (`{low}`) to {changed[high]:.1f} % (`{high}`) of the answers change"
    sides = {head: _side(each) for head, each in examined.items()}
    lose, gain, open_ = ([head for head, side in sides.items() if side == which] for which in (1, -1, 0))
    return f"{said}, accuracy falls in {names(lose)}, rises in {names(gain)}; not decided: {names(open_)}"


def measures(study: Study, of: str) -> str | Iterator[Line]:
    """What else `torchcaps examine` measures, of every head: means over the runs."""
    return _table(study, of, _measures)


def _measures(rows: Rows) -> Iterator[Line]:
    yield "head", *SHOWN
    for head, row in rows.items():
        if not row.examined:
            yield f"`{head}`", NOT_RUN, *[""] * (len(SHOWN) - 1)
            continue
        yield f"`{head}`", *(_mean(row.examined, *column) for column in SHOWN.values())


def _mean(examined: Sequence[Examination], read: Read, how: str) -> str:
    values = [value for value in map(read, examined) if value is not None]
    return format(mean(values), how) if values else ""
