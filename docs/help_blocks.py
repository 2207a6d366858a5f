"""Blocks of do-capsules-help.md, and what README and which-routing.md say from the same runs; `docs/blocks.py` writes
them.

Whoever claims an order here asks `Gap.side`, so that no sentence can say more than the lines.
"""

from __future__ import annotations

from collections.abc import Iterator
from statistics import mean

from draw_two_cores import core_hours
from help_runs import DATA, ROUTINGS, SHARES, UNIFORM, Rows, Study, better, capsules, chosen, twin_of

from torchcaps.compare.page import ranked, show_accuracy
from torchcaps.compare.rows import Gap, Row, by_side, describe_sides, gap, was_run
from torchcaps.data.catalogue import find
from torchcaps.names import LINEAR, TWIN

NOT_RUN, NONE_RUN = "not run", "Not run."
REPORT = {0.01: (48.12, 39.73), 0.05: (66.12, 62.19), 0.1: (71.43, 68.24), 1.0: (86.11, 85.28)}  # capsules, CNN, in %
REPORTED = "self-attention"  # the routing of its network, Efficient-CapsNet
HELD = 0.1  # of the training split, for validation
Line = tuple[str, ...]


def answer(study: Study) -> str:
    """The two questions in a sentence each, for every share of the images."""
    said = {"Do capsules help?": helps, "Does routing help?": routes}
    return "\n".join(
        f"- **{question}** " + "; ".join(f"{images(share)}: {_say(*read(study.rows(share)))}" for share in SHARES) + "."
        for question, read in said.items()
    )


def _say(verdict: str, head: str, *_: str) -> str:
    return verdict if head == NOT_RUN else f"{verdict} (judged by {head}, the best on validation)"


def verdicts(study: Study) -> Iterator[Line]:
    """Of each share the head with capsules, and the routing, that are best on validation, and what they are above."""
    yield (
        "trained on",
        "capsules, best on validation",
        "to its twin",
        "to `linear`",
        "capsules help",
        "routing, best on validation",
        "to `uniform`",
        "routing helps",
    )
    for share in SHARES:
        help_, route = helps(study.rows(share)), routes(study.rows(share))
        yield f"{images(share)} ({_count(share):,})", *help_[1:], help_[0], *route[1:], route[0]


def helps(rows: Rows) -> Line:
    """The verdict, and the head that is judged, with how far it lies above its twin and the plain head."""
    head = chosen(capsules(rows))
    if head is None:
        return NOT_RUN, NOT_RUN, "", ""
    found = gap(head, twin_of(head.head, rows)), gap(head, rows[LINEAR])
    return better(*found), f"`{head.head}`", *map(_show, found)


def routes(rows: Rows) -> Line:
    head = chosen([row for row in capsules(rows) if row.head != UNIFORM])
    if head is None:
        return NOT_RUN, NOT_RUN, ""
    found = gap(head, rows[UNIFORM])
    return better(found), f"`{head.head}`", _show(found)


def shares(study: Study) -> Iterator[Line]:
    """How far each head lies above its twin, and above `uniform`, with more and more images."""
    against = "its twin", f"`{UNIFORM}`"
    yield "head", *(f"to {each}, {100 * share:g} %" for each in against for share in SHARES)
    for head in (UNIFORM, *ROUTINGS):
        tables = [study.rows(share) for share in SHARES]
        twins = (_show(gap(rows[head], twin_of(head, rows))) for rows in tables)
        others = (_show(gap(rows[head], rows[UNIFORM])) if head != UNIFORM else "" for rows in tables)
        yield f"`{head}`", *twins, *others


def share(study: Study, of: str) -> str | Iterator[Line]:
    """All heads on a share of the images: accuracy, and how far they lie above what they must beat."""
    rows = study.rows(float(of))
    return _share(rows) if any(map(was_run, rows.values())) else NONE_RUN


def _share(rows: Rows) -> Iterator[Line]:
    yield "head", "accuracy (%)", "to its twin", "to `linear`", "to `uniform`", "parameters", "core-minutes a run"
    for row in ranked(list(rows.values())):
        twin = twin_of(row.head, rows)
        others = [row if row.head.endswith(TWIN) else twin, rows[LINEAR], rows[UNIFORM]]
        gaps = (_show(gap(row, other)) if other is not row else "" for other in others)
        yield f"`{row.head}`", _accuracy(row), *(gaps if was_run(row) else ("", "", "")), *_size(row)


def _accuracy(row: Row) -> str:
    failures = row.accuracy.failures if row.accuracy is not None else []
    shown = show_accuracy(row) if was_run(row) or not failures else ""
    return "; ".join(filter(None, (shown, f"{len(failures)} failed: {failures[0]}" if failures else "")))


def _size(row: Row) -> Line:
    if row.accuracy is None or not was_run(row):
        return "", ""
    ended = [each for each in row.accuracy.records if "failure" not in each]
    return f"{ended[-1]['parameters']:,}", f"{60 * mean(map(core_hours, ended)):.1f}"


def against(study: Study, of: str) -> str:
    """Which heads lie above what they must beat, which below, and of which it is not decided."""
    rows = study.rows(float(of))
    if not capsules(rows):
        return NONE_RUN
    said = {
        "Against the twin": by_side(capsules(rows), lambda row: twin_of(row.head, rows)),
        f"Against `{LINEAR}`": by_side(capsules(rows), lambda row: rows[LINEAR]),
        f"Against `{UNIFORM}`": by_side(
            [row for row in capsules(rows) if row.head != UNIFORM], lambda row: rows[UNIFORM]
        ),
    }
    return "\n".join(f"- {what}: {describe_sides(found)}." for what, found in said.items())


def report(study: Study) -> Iterator[Line]:
    """What the report has, and what is here: of its own routing, and of what is best on validation."""
    yield (
        "images",
        "its capsules",
        "its CNN",
        "apart",
        f"`{REPORTED}` here",
        "is it so?",
        "best here",
        "apart",
        "is it so?",
    )
    for of, (theirs, other) in REPORT.items():
        rows, claim = study.rows(of), theirs - other
        own, best = rows[REPORTED], chosen(capsules(rows))
        first = gap(own, twin_of(own.head, rows))
        last = None if best is None else gap(best, twin_of(best.head, rows))
        name = NOT_RUN if best is None else f"`{best.head}`"
        shown = f"{100 * of:g} %", f"{theirs:.2f}", f"{other:.2f}", f"{claim:+.2f}"
        yield *shown, _show(first), judge(first, claim), name, _show(last), judge(last, claim)


def reported(study: Study) -> str:
    """The claim at a hundredth of the images, and what becomes of it here."""
    of, (theirs, other) = next(iter(REPORT.items()))
    rows, claim = study.rows(of), theirs - other
    best = chosen(capsules(rows))
    found = {head: gap(rows[head], twin_of(head, rows)) for head in (REPORTED, *([best.head] if best else []))}
    said = "; ".join(f"`{head}`: {judge(each, claim)}{_points(each)}" for head, each in found.items())
    return f"It has capsules {claim:.2f} points above a CNN with {images(of)}. Here, against the twin, {said}."


def judge(found: Gap | None, claim: float) -> str:
    """Whether a difference of `claim` points is what was found."""
    if found is None:
        return NOT_RUN
    if found.interval is None:
        return "not decided (too few seeds)"
    low, high = found.interval
    if high < claim:
        return "refuted in size, capsules lie above" if low > 0 else "refuted"
    return "confirmed" if low > 0 else "not decided"


def images(of: float) -> str:
    return "all images" if of == 1 else f"{100 * of:g} % of the images"


def _count(of: float) -> int:
    return round(of * (1 - HELD) * find(DATA)[0].train)


def _show(found: Gap | None) -> str:
    return NOT_RUN if found is None else str(found)


def _points(found: Gap | None) -> str:
    return "" if found is None else f" ({found} points)"
