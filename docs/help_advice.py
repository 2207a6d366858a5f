"""What README and which-routing.md advise, from the same runs as do-capsules-help.md; `docs/blocks.py` writes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from draw_compared import DATA as SETS
from help_blocks import NOT_RUN, helps, images, routes
from help_runs import DATA, SHARES, UNIFORM, Rows, Study, chosen

from torchcaps.compare.heads import is_control
from torchcaps.compare.rows import Gap, Row, by_side, describe_sides, gap, names, was_run
from torchcaps.names import LINEAR, TWIN

NAMES = {data: head.partition(" (")[0] for data, head in SETS.items()}
WHAT = {
    LINEAR: "the plain head",
    TWIN: "the convolutional network of a capsule head's size",
    UNIFORM: "capsules and one pass without agreement",
}


def start(rows: Rows) -> tuple[Row, str]:
    """What to start with, and what is said of it: plain head, twin, capsules, routing, each taken where it is decided
    that it lies above what is taken so far. The routing is the one that is best on validation.
    """
    routed = chosen(_routed(rows))
    taken, above = rows[LINEAR], ""
    for row in (rows[TWIN], rows[UNIFORM], *([routed] if routed else [])):
        found = gap(row, taken)
        if found is not None and found.side == 1:
            taken, above = row, f", on all of {NAMES[DATA]} {found} points above `{taken.head}`"
    return taken, f"`{taken.head}`, {WHAT.get(taken.head, 'a routing')}{above}"


def _routed(rows: Rows) -> list[Row]:
    return [row for row in rows.values() if not is_control(row.head) and was_run(row)]


def advice(study: Study) -> str:
    """Of which-routing.md: all heads on all images, whatever they cost."""
    lines = [f"- **Start with** {start(study.whole(DATA))[1]}."]
    for other in (UNIFORM, LINEAR):
        said = (f"on {name} {describe_sides(_against(study.whole(data), other))}" for data, name in NAMES.items())
        lines.append(f"- **Against `{other}`**: " + "; ".join(said) + ".")
    binary = ((name, gap(study.whole(data)["xnodr"], study.whole(data)["dynamic"])) for data, name in NAMES.items())
    shown = ", ".join(f"on {name} {found}" for name, found in binary if found is not None)
    return "\n".join([*lines, f"- **Binary weights**: points of `xnodr` above `dynamic`: {shown or NOT_RUN}."])


def _against(rows: Rows, other: str) -> dict[int | None, list[str]]:
    """Heads with capsules, by the side of `other` on which they lie."""
    plain = [rows[UNIFORM]] if other != UNIFORM and was_run(rows[UNIFORM]) else []
    return by_side([*plain, *_routed(rows)], lambda row: rows[other])


def readme(study: Study) -> str:
    """Of the README: where to start, which routings are better, and the answers of do-capsules-help.md."""
    found = {name: _against(study.whole(data), UNIFORM) for data, name in NAMES.items()}
    better = (f"on {name} {names(sides[1])}" for name, sides in found.items())
    tests = sum(_judged(study.whole(data)) for data in NAMES)
    taken, said = start(study.whole(DATA))
    twin = gap(taken, study.whole(DATA)[TWIN]) if taken.head != TWIN else None
    beside = f", and {_counted(twin)} above `{TWIN}`" if twin else ""
    return (
        f"Start with {said}{beside}. Routings above `{UNIFORM}`: {'; '.join(better)}; of these {tests} comparisons "
        f"each is judged alone, so one in twenty comes out by chance.\n\n"
        f"Do capsules help, that is, lie above `{LINEAR}` and a twin? {_answered(study, helps)} Does routing, above "
        f"`{UNIFORM}`? {_answered(study, routes)}{_above_all(study)}"
    )


def _judged(rows: Rows) -> int:
    """How many routings have seeds enough to be judged beside `uniform`."""
    found = (gap(row, rows[UNIFORM]) for row in _routed(rows))
    return sum(each is not None and each.interval is not None for each in found)


def _counted(found: Gap) -> str:
    """A gap as text that says what the number in parentheses counts."""
    count = len(found.differences)
    return str(found).replace(f"({count})", f"({count} seed{'s' * (count != 1)})")


def _answered(study: Study, read: Callable[[Rows], tuple[str, ...]]) -> str:
    """A verdict for every share of the images; those that are alike in one."""
    said: dict[str, list[str]] = {}
    for share in SHARES:
        said.setdefault(read(study.rows(share))[0], []).append(images(share))
    return "; ".join(f"{verdict} on {_listed(shares)}" for verdict, shares in said.items()).capitalize() + "."


def _listed(words: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))


def _above_all(study: Study) -> str:
    """How many heads the plain one is decided to lie above, by share; empty where there are none."""
    below = {share: len(_against(study.rows(share), LINEAR)[-1]) for share in SHARES}
    said = [f"{count} on {images(share)}" for share, count in below.items() if count]
    return f" `{LINEAR}` is decided to lie above heads with capsules: {_listed(said)}." if said else ""
