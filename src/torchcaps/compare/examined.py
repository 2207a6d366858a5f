"""What routing does in the networks of a comparison: each finished run is examined once, and has a line of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any

from torchcaps.config import Config, from_plain, to_plain
from torchcaps.examine.found import ONE, OTHER, RANDOM, SAME, UNIFORM, Examination
from torchcaps.markdown import markdown_table
from torchcaps.tables.budget_names import COUNT, EXAMINED
from torchcaps.tables.fill import Settings
from torchcaps.tables.metrics import Record
from torchcaps.tables.plan import Job
from torchcaps.tables.records import append_record, config_hash, find_finished, read_records

FAR = {"angle": 30.0, "scale": 0.8}  # where the curves are shown
Number = Callable[[Examination], float | None]


def _placebo(name: str) -> Number:
    return lambda found: next((100 * each.changed for each in found.placebos if each.name == name), None)


def _top(value: str) -> Number:
    """Return the layer of the class capsules in the last iteration, or the one nearest to it."""

    def read(found: Examination) -> float | None:
        values = getattr(found.layers[-1], value) if found.layers else ()
        return values[-1] if values else None

    return read


def _kept(by: str) -> Number:
    def read(found: Examination) -> float | None:
        points = {value: kept for curve in found.robustness if curve.by == by for value, kept in _points(curve)}
        share = points.get(FAR[by])
        return None if share is None else 100 * share

    return read


def _points(curve: Any) -> list[tuple[float, float | None]]:
    return list(zip(curve.values, curve.kept, strict=True))


COLUMNS: Mapping[str, tuple[Number, str]] = {  # name: (value, format)
    "changed by R = 1 (%)": (_placebo(ONE), ".1f"),
    "by uniform": (_placebo(UNIFORM), ".1f"),
    "by random": (_placebo(RANDOM), ".1f"),
    "by its class's": (_placebo(SAME), ".1f"),
    "by another class's": (_placebo(OTHER), ".1f"),
    "T": (_top("t_score"), ".3f"),
    "from the image": (_top("image_share"), ".3f"),
    "told from its negative": (lambda found: found.negation[-1].difference if found.negation else None, ".3f"),
    "trees a class": (lambda found: mean(each.distinct for each in found.trees) if found.trees else None, ".1f"),
    f"kept at {FAR['angle']:g}\u00b0 (%)": (_kept("angle"), ".1f"),
    f"at scale {FAR['scale']:g} (%)": (_kept("scale"), ".1f"),
    "R\u00b2 of the angle": (
        lambda found: next((each.r2 for each in found.equivariance if each.by == "angle"), None),
        ".3f",
    ),
}
LEGEND = (
    "Answers changed by couplings that the routing did not choose: of one iteration, uniform, random, another image's "
    "of the same and of another class. T of the class capsules: 1 a tree, 0 uniform; the share of their couplings' "
    "variance that is from the image; how much their activations change for negative children; distinct parse trees of "
    "a class. Kept: of the images that are right unchanged, those that stay right turned by "
    f"{FAR['angle']:g} degrees and at {FAR['scale']:g} of their size, as if all heads were right on images as they "
    "are. R\u00b2 of the angle from the winning pose, held out. Empty: does not apply. Means over the runs."
)


def record_examinations(jobs: Sequence[Job], settings: Settings) -> None:
    """Examine the finished run of each of `jobs` that has no line of it yet, and append one; what cannot be examined is
    named and left out.
    """
    from torchcaps.examine.examination import examine_run

    for job in jobs:
        if job.budget == COUNT or find_examinations(read_records(settings.records), job.config, [job.config.seed]):
            continue
        folder = find_finished(settings.out, config_hash(job.config), job.config.seed)
        if folder is None:
            settings.say(f"{job.label}: there is no finished run in {settings.out} to examine")
            continue
        try:
            found = to_plain(examine_run(folder, device=settings.device, root=settings.root))
        except ValueError as error:  # such as of a network whose scores are not finite
            settings.say(f"{job.label}: cannot be examined: {error}")
            continue
        line = {
            "cell": job.cell.id,
            "budget": EXAMINED,
            "config_hash": config_hash(job.config),
            "seed": job.config.seed,
        }
        append_record(settings.records, line | {"examination": found})
        settings.say(f"{job.label}: examined")


def find_examinations(
    records: Sequence[Record], config: Config, seeds: Sequence[int] | None = None
) -> list[Examination]:
    """Return what was found in runs of `config`, by seed, the newest of each; of `seeds` alone, where they are
    given.
    """
    wanted = config_hash(config)
    by_seed = {
        each["seed"]: each["examination"]
        for each in records
        if each.get("budget") == EXAMINED and each.get("config_hash") == wanted and (not seeds or each["seed"] in seeds)
    }
    return [from_plain(Examination, by_seed[seed]) for seed in sorted(by_seed)]


def describe_examinations(found: Mapping[str, Sequence[Examination]]) -> list[str]:
    """Return the lines of a table of them, by head; none where no head was examined."""
    if not any(found.values()):
        return []

    def show(examinations: Sequence[Examination], column: str) -> str:
        read, how = COLUMNS[column]
        values = [value for value in map(read, examinations) if value is not None]
        return format(mean(values), how) if values else ""

    rows = [[head, *(show(each, column) for column in COLUMNS)] for head, each in found.items() if each]
    return ["## What routing does", "", LEGEND, "", *markdown_table(["head", *COLUMNS], rows).split("\n")]


def describe_depth(found: Mapping[str, Sequence[Examination]]) -> list[str]:
    """Return the lines of a table of each layer of capsules, bottom first, of each row that was examined: means over
    the runs.
    """
    rows = []
    for head, examinations in found.items():
        layers = [each.layers for each in examinations if each.layers]
        for same in zip(*layers, strict=False):
            gradients = [each.gradient for each in same if each.gradient is not None]
            gradient = f"{mean(gradients):.2g}" if gradients else ""
            rows.append([head, same[0].name, f"{mean(each.activation for each in same):.3g}", gradient])
    if not rows:
        return []
    table = markdown_table(("head", "layer", "mean activation", "mean gradient norm"), rows)
    return ["## By layer", "", *table.split("\n")]
