"""The section of a report that says what routing does, where the run was examined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING

from torchcaps.examine.found import CapsuleLayerFacts, Examination
from torchcaps.report.markup import plot, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PLACEBOS = (
    "The same network with couplings that its routing did not choose. Where hardly an answer changes, it does not use "
    "them."
)
LAYERS = (
    "At the last iteration. T: 1 each child goes to one parent, 0 to all equally. From the image: share of the "
    "couplings' variance, 0 where routing is static. D: largest standard deviation of an activation over images. Dead "
    "capsules never exceed a tenth of the layer's largest activation, starved ones have at most a hundredth of its "
    "mean gradient: where there is no gradient, none is starved beside others."
)
TREES = "Shares of all children in the class that wins, rounded to a tenth, are a tree; entropy in bits."
NEGATION = "Parents of a layer's children beside those of their negatives: cosine of -1 and no change, it cannot tell."
CURVES = (
    "Images turned, moved, scaled, sheared: accuracy, and what is kept of the images that are right unchanged, where "
    "there are such."
)
POSES = "How well the winning pose tells by how much an image was changed: 1 exactly, 0 not at all, on held-out images."
_COLUMNS = ("layer", "routing", "T", "from the image", "D", "activation", "dead", "gradient", "starved")


def examined(found: Examination, plots: Mapping[str, Figure]) -> tuple[str, str, str]:
    """Return the section: id, heading, HTML."""
    note = f"On {found.images:,} images of the {found.split} split, {found.accuracy:.2%} of them right."
    trees = [(each.shown, f"{each.images:,}", f"{each.distinct:,}", f"{each.entropy:.2f}") for each in found.trees]
    negation = [(each.name, f"{each.cosine:.3f}", f"{each.difference:.1%}") for each in found.negation]
    poses = [(each.by, "too few images" if each.r2 is None else f"{each.r2:.3f}") for each in found.equivariance]
    parts = [
        _titled("Placebos", PLACEBOS, _placebo_rows(found), ("couplings", "accuracy", "changed answers", "images")),
        _titled("Capsules", LAYERS, [_layer_row(each) for each in found.layers], _COLUMNS),
        _titled("Parse trees", TREES, trees, ("class", "images", "distinct trees", "entropy")),
        _titled("Negation", NEGATION, negation, ("layer", "cosine", "change of activation")),
        _titled("Poses", POSES, poses, ("change", "R² held out")),
        plot(plots["robustness"], "Changed images", CURVES) if "robustness" in plots else "",
    ]
    absent = "".join(f'<p class="note">{escape(f"{name}: {why}.")}</p>' for name, why in found.absent.items())
    return "examined", "What routing does", f'<p class="note">{escape(note)}</p>{"".join(parts)}{absent}'


def _titled(caption: str, note: str, rows: Sequence[tuple[str, ...]], header: tuple[str, ...]) -> str:
    """Return a table below its caption; nothing without rows."""
    if not rows:
        return ""
    inside = f"{escape(caption)}<small>{escape(note)}</small>"
    return f"<figure><figcaption>{inside}</figcaption>{table(rows, header)}</figure>"


def _placebo_rows(found: Examination) -> list[tuple[str, ...]]:
    if not found.placebos:
        return []
    own = ("its own", f"{found.accuracy:.2%}", "", f"{found.images:,}")
    return [own, *((p.name, f"{p.accuracy:.2%}", f"{p.changed:.1%}", f"{p.images:,}") for p in found.placebos)]


def _layer_row(layer: CapsuleLayerFacts) -> tuple[str, ...]:
    def number(values: tuple[float | None, ...]) -> str:
        return f"{values[-1]:.3f}" if values and values[-1] is not None else ""

    return (
        layer.name,
        layer.routing,
        number(layer.t_score),
        number(layer.image_share),
        number(layer.d_score),
        f"{layer.activation:.3g}",
        f"{layer.dead:.1%}",
        "none" if layer.gradient is None else f"{layer.gradient:.2g}",
        "no gradient" if layer.starved is None else f"{layer.starved:.1%}",
    )
