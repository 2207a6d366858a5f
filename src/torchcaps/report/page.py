"""The page of a report: one HTML file that needs nothing else. All that it shows is escaped here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from html import escape
from pathlib import PurePath
from string import Template
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import torchcaps
from torchcaps.config import Config, to_plain
from torchcaps.inspect.examples import REACH, Agreed, Example, Routed
from torchcaps.inspect.figures import SHOWN
from torchcaps.inspect.measured import calibrate_measured, confusion, explain_scores, worst
from torchcaps.inspect.pictures import COLOURS, data_uri, heat, is_line_art, shrink, to_bytes, to_sheet
from torchcaps.report.examined import examined
from torchcaps.report.markup import embedded_json, plot, read_part, source_hash, table
from torchcaps.report.reproduce import reproduce_command
from torchcaps.report.story import Sight, Story
from torchcaps.report.terms import Explained
from torchcaps.scores import show_score
from torchcaps.terminal import show_time

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LIKELIEST = 3  # classes of a mistake
BYTES = ("B", "KiB", "MiB", "GiB")
TELLING = 8  # dimensions of a pose that the page opens on
PAIRS = 8  # of confused classes
SEEN = '<section id="measured">'  # stands in pages that show what the model does

Section = tuple[str, str, str]  # id, heading, HTML


def render(story: Story, plots: Mapping[str, Figure], sight: Sight | str) -> str:
    """Return the page, as HTML.

    Args:
        story: of the run.
        plots: figures of the history.
        sight: what the model does, or why that cannot be shown.
    """
    seen = None if isinstance(sight, str) else sight
    explained = Explained()
    numbers = _numbers(story, seen)
    meant = _details("What these numbers are", _explain(explained, *_used(story, seen)))
    sections = [
        *([_inside(seen, explained)] if seen and seen.examples else []),
        *([_learning(plots, explained)] if "loss" in plots else []),
        *([_measured(seen, story, explained)] if seen else []),
        *([_mistakes(seen, seen.mistakes)] if seen and seen.mistakes is not None else []),
        *([examined(story.examination, plots)] if story.examination is not None else []),
        _time(story, plots),
        _reproduction(story, explained),
    ]
    script = read_part("make.js") + read_part("page.js")
    ended = (
        "finished" if story.result is not None else f"unfinished, {len(story.history)} of {story.config.epochs} epochs"
    )
    reasons = [reason for reason in (story.reason, sight if isinstance(sight, str) else "") if reason]
    if seen and seen.of_run is False:
        reasons.append(f"The {seen.split} images are not those of the run: they were changed since.")
    return Template(read_part("page.html")).substitute(
        title=escape(_title(story.config)),
        origin=escape(f"recipe {story.config.recipe}, " if story.config.recipe else "")
        + escape(f"seed {story.config.seed}"),
        meant=meant,
        status=f'<span class="state{"" if story.result is not None else " open"}">{ended}</span>',
        reason="".join(f'<p class="warn">{escape(reason)}</p>' for reason in reasons),
        numbers="".join(
            f'<div class="number"><b>{escape(n)}</b><span>{escape(name)}</span></div>' for name, n in numbers
        ),
        contents="".join(f'<a href="#{name}">{escape(heading)}</a>' for name, heading, _ in sections),
        sections="\n".join(
            f'<section id="{name}"><h2>{escape(heading)}</h2>{body}</section>' for name, heading, body in sections
        ),
        style=read_part("page.css"),
        script=script,
        script_hash=source_hash(script),
        data=_data(seen, _parts_explained(seen, explained)),
        version=torchcaps.__version__,
    )


def _title(config: Config) -> str:
    """Return model and data; of a folder or a file its own name, not where it lies."""
    kind, _, path = config.data.name.partition(":")
    return f"{config.model.name} on {PurePath(path).name or path if path else kind}"


def _explain(explained: Explained, *terms: str) -> str:
    """Return a sentence or two on each of `terms` that the page has not explained yet."""
    return "".join(
        f'<p class="term"><dfn>{escape(term)}</dfn> {escape(said)}</p>' for term, said in explained.first(*terms)
    )


def _details(summary: str, body: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{body}</details>"


def _numbers(story: Story, sight: Sight | None) -> list[tuple[str, str]]:
    """Return what the page begins with: (name, value)."""
    result, found = story.result, []
    if result is not None:
        errors = f"test accuracy: {result['test_errors']:,} of {result['test_images']:,} wrong"
        found.append((errors, f"{result['test_accuracy']:.2%}"))
        validation = result["validation_accuracy"]
    else:
        validation = next((r["validation_accuracy"] for r in story.history if r["epoch"] == story.selected), None)
    if validation is not None:
        found.append((f"validation accuracy, epoch {story.selected}", f"{validation:.2%}"))
    if sight is not None:
        cost = sight.cost
        found += [
            (f"parameters, {_scaled(cost.weight_memory, 1024, BYTES)}", f"{cost.parameters:,}"),
            ("multiply-adds an image", _scaled(cost.multiply_adds, 1000, ("", "k", "M", "G", "T"))),
            ("held for backward an image", _scaled(cost.activation_memory, 1024, BYTES)),
        ]
    seconds = result["seconds"] if result is not None else sum(record["seconds"] for record in story.history)
    return [*found, ("training and validation", show_time(seconds))]


def _used(story: Story, sight: Sight | None) -> list[str]:
    """Return the terms that the numbers which the page begins with need."""
    return [
        *(["test split"] if story.result is not None else []),
        "validation split",
        *(["multiply-adds"] if sight is not None else []),
    ]


def _scaled(value: float, base: int, units: tuple[str, ...]) -> str:
    for unit in units[:-1]:
        if value < base:
            return f"{value:.3g} {unit}".rstrip() if value < 100 else f"{value:.0f} {unit}".rstrip()
        value /= base
    return f"{value:,.3g} {units[-1]}"


def _inside(sight: Sight, explained: Explained) -> Section:
    what = f"Images of the {sight.split} split that came out right, one of each class in turn, then the worst mistakes."
    terms = _explain(explained, "capsule", "pose") if any(map(_has_capsules, sight.examples)) else ""
    return "inside", "Look inside", f'{terms}<p class="note">{what}</p><div id="examples"></div>'


def _has_capsules(example: Example) -> bool:
    return bool(example.decoded is not None or example.routed or example.agreed)


def _parts_explained(sight: Sight | None, explained: Explained) -> dict[str, list[tuple[str, str]]]:
    """Return the terms that each part of "Look inside" explains, in the order in which the script shows the parts."""
    if sight is None:
        return {}
    examples = sight.examples
    return {
        "sweep": explained.first("pose sweep", "decoder") if any(e.sweep is not None for e in examples) else [],
        "detail": explained.first(
            sight.word, *(["class capsule", "reconstruction"] if any(e.decoded is not None for e in examples) else [])
        ),
        "routing": explained.first("parent", "child", "vote", "routing", "coupling", "iteration")
        if any(e.routed for e in examples)
        else [],
        "agreement": explained.first("parent", "vote", "agreement") if any(e.agreed for e in examples) else [],
    }


def _learning(plots: Mapping[str, Figure], explained: Explained) -> Section:
    figures = plot(plots["loss"], "Loss") + plot(plots["accuracy"], "Accuracy")
    wide = ""
    if "agreement" in plots:
        note = "For each cosine of a vote and its parent: the share of votes that have it, and their mean length."
        wide = _explain(explained, "vote", "parent", "agreement") + plot(plots["agreement"], "Agreement", note)
    terms = _explain(explained, "epoch", "loss")
    return "learning", "Learning", f'{terms}<div class="plots">{figures}</div>{wide}'


def _measured(sight: Sight, story: Story, explained: Explained) -> Section:
    measured, plots = sight.measured, sight.figures
    of = "all" if len(measured.targets) == sight.images else f"{len(measured.targets):,}, evenly spaced, of the"
    note = f"On {of} {sight.images:,} images of the {sight.split} split: {measured.right.float().mean():.2%} right."
    unit = "Each missed class counts with each that was found in its place. " if measured.several else ""
    what = "every class of every image" if measured.several else "the likeliest class of every image"
    which = f"The {SHOWN} worst. " if len(sight.classes) > SHOWN else ""
    error = calibrate_measured(measured).error
    said = "not a number, as scores of these images are none" if math.isnan(error) else f"mean error {error:.1%}"
    found = [
        plot(plots["confusion"], "Confusion", unit + "Shaded by the square root of the share of its row."),
        _pairs(sight),
        plot(
            plots["class-accuracy"],
            "Accuracy by class",
            which + "Share of the images that show a class in which it is found.",
        ),
        plot(
            plots["calibration"],
            f"Calibration, {said}",
            f"Of {what}; on the diagonal all comes true as often as the {sight.word} says.",
        ),
    ]
    reading = explain_scores(measured, story.config.loss.name)
    first, last = (f'<p class="note">{escape(text)}</p>' for text in (note, reading))
    terms = _explain(explained, "confusion", "calibration")
    return "measured", "Right and wrong", f'{first}{terms}<div class="plots flow">{"".join(found)}</div>{last}'


def _pairs(sight: Sight) -> str:
    """Return a table of the classes that are confused most often."""
    counts = confusion(sight.measured.targets, sight.measured.predicted).fill_diagonal_(0)
    top = counts.flatten().topk(min(PAIRS, counts.numel()))
    rows = [(divmod(place, len(counts)), n) for n, place in zip(*(x.tolist() for x in top), strict=True) if n]
    if not rows:
        return ""
    names = sight.classes
    cells = [(f"{names[shown]} taken for {names[found]}", f"{n:,}") for (shown, found), n in rows]
    return f"<figure><figcaption>Most often confused</figcaption>{table(cells)}</figure>"


def _mistakes(sight: Sight, images: Tensor) -> Section:
    """Return the worst mistakes, each with its likeliest classes."""
    measured, names = sight.measured, sight.classes
    art = " art" if is_line_art(images) else ""
    cells = []
    for image, row in zip(to_bytes(shrink(images)), worst(measured, len(images)).tolist(), strict=True):
        p, there = measured.probabilities[row], measured.targets[row]
        likeliest = measured.scores[row].argsort(descending=True, stable=True)[:LIKELIEST].tolist()
        shown = likeliest + [n for n in there.nonzero().flatten().tolist() if n not in likeliest]
        picture = f"background-image:url({data_uri(image.movedim(0, -1))});background-size:100% 100%"
        ratio = f"aspect-ratio:{image.shape[2]}/{image.shape[1]}"
        listed = "".join(
            f"<li><span{' class=bad' if measured.predicted[row, n] and not there[n] else ''}>{escape(names[n])}"
            f"{' ✓' if there[n] else ''}</span>{show_score(p[n].item(), sight.word)}</li>"
            for n in shown
        )
        tile = f'<div class="tile{art}" style="{ratio}"><i class="picture" style="{picture}"></i></div>'
        cells.append(
            f'<div class="mistake"><div>{tile}<small>image {measured.indices[row]}</small></div><ol>{listed}</ol></div>'
        )
    note = f"The likeliest classes of each; ✓ is there. {int((~measured.right).sum()):,} images are wrong in all."
    return (
        "mistakes",
        "Worst mistakes",
        f'<p class="note">{escape(note)}</p><div class="mistakes">{"".join(cells)}</div>',
    )


def _time(story: Story, plots: Mapping[str, Figure]) -> Section:
    environment, history = story.environment, story.history
    rows = [("epochs", f"{len(history)} of {story.config.epochs}")]
    if history:
        seconds, rates = (sorted(record[name] for record in history) for name in ("seconds", "images_per_second"))
        rows += [
            (
                "an epoch, validation included",
                f"{seconds[len(seconds) // 2]:.2f} s (median), {seconds[-1]:.2f} s at most",
            ),
            ("training", f"{rates[len(rates) // 2]:,.0f} images/s (median)"),
        ]
    rows += [
        (name, _said(environment[name]))
        for name in ("device", "gpu", "cpu", "threads", "precision")
        if environment.get(name)
    ]
    speed = plot(plots["timing"], "Speed") if "timing" in plots else ""
    return "time", "Time", f'<div class="plots">{speed}<div>{table(rows)}</div></div>'


def _reproduction(story: Story, explained: Explained) -> Section:
    command, whole = reproduce_command(story.config, story.folder), json.dumps(to_plain(story.config), indent=2)
    versions = table([(name, _said(value)) for name, value in story.environment.items()])
    return (
        "reproduce",
        "Do it again",
        f"{_explain(explained, *(['recipe'] if story.config.recipe else []), 'seed')}"
        f'<pre id="command">{escape(command)}</pre>'
        f"{_details('Versions and machine', versions)}"
        f"{_details('Whole configuration', f'<pre>{escape(whole)}</pre>')}",
    )


def _said(value: Any) -> str:
    """Return a value of environment.json in words."""
    if isinstance(value, dict) and "hash" not in value:
        return ", ".join(
            f"{name}: {each.get('form') if isinstance(each, dict) else each}" for name, each in value.items()
        )
    if isinstance(value, dict):
        return f"{value.get('hash', '')}{', with changes that are not in it' if value.get('dirty') else ''}"
    return "none" if value is None else str(value)


def _data(sight: Sight | None, terms: Mapping[str, list[tuple[str, str]]]) -> str:
    """Return what the script reads, as JSON that no browser takes for markup."""
    examples = sight.examples if sight else []
    found: dict[str, Any] = {
        "word": sight.word if sight else "",
        "terms": terms,
        "classes": list(sight.classes) if sight else [],
        "examples": [],
        "reach": REACH,
        "telling": TELLING,
        "colours": COLOURS,
    }
    if examples:
        images = torch.stack([each.image for each in examples])
        found |= {"art": is_line_art(images), "aspect": f"{images.shape[3]} / {images.shape[2]}"}
        found["examples"] = [_example(each) for each in examples]
    return embedded_json(found)


def _example(example: Example) -> dict[str, Any]:
    image = shrink(example.image)[None]
    decoded = image if example.decoded is None else torch.cat([image, shrink(example.decoded)])
    return {
        "index": example.index,
        "right": example.right,
        "targets": example.targets,
        "predicted": example.predicted,
        "winner": example.winner,
        "classes": example.classes,
        "probabilities": [round(p, 4) for p in example.probabilities[example.classes].tolist()],
        "decodes": example.decoded is not None,
        "absent": example.absent,
        "sheet": _sheet(to_bytes(decoded[None])),
        "parts": None if example.parts is None else _sheet(to_bytes(shrink(example.parts)[None])),
        "sweep": None if example.sweep is None else _sheet(to_bytes(example.sweep)),
        "telling": [] if example.sweep is None else _telling(example.sweep),
        "routed": [_routed(layer) for layer in example.routed],
        "agreed": [_agreed(layer) for layer in example.agreed],
    }


def _telling(sweep: Tensor) -> list[int]:
    """Return the dimensions of a sweep [d, steps, c, h, w], those first whose ends differ most."""
    change = (sweep[:, -1] - sweep[:, 0]).float().abs().flatten(1).mean(1)
    return change.argsort(descending=True, stable=True).tolist()


def _routed(layer: Routed) -> dict[str, Any]:
    above = layer.maps - layer.equal
    largest = above.abs().max().item()
    return {
        "name": layer.name,
        "routing": layer.routing,
        "top": layer.top,
        "parents": layer.parents,
        "strength": [[round(s, 4) for s in row] for row in layer.strength.tolist()],
        "equal": layer.equal,
        "largest": largest,
        "box": layer.box,
        "sheet": _sheet(heat(above, largest)),
    }


def _agreed(layer: Agreed) -> dict[str, Any]:
    """Return lines as [x1, y1, x2, y2, strength] of each pair, in shares of the image and of the largest product.

    `ring` is [x, y] of each child that stands on a circle, as those have it that stand nowhere in the image.
    """
    share = (layer.products / layer.products.max().clamp_min(1e-9)).clamp_min(0)
    lines = torch.cat([layer.places.flip(-1).flatten(2), share.unsqueeze(-1)], -1)  # [k, m, 5]
    return {
        "name": layer.name,
        "top": layer.top,
        "parents": layer.parents,
        "activations": [round(a, 4) for a in layer.activations],
        "lines": [[[round(x, 3) for x in pair] for pair in parent] for parent in lines.tolist()],
        "ring": None
        if layer.ring is None
        else [[round(x, 3) for x in place] for place in layer.ring.flip(-1).tolist()],
    }


def _sheet(tiles: Tensor) -> dict[str, Any]:
    """Return tiles uint8 [rows, columns, c, h, w] as a picture that holds them all."""
    return {"uri": data_uri(to_sheet(tiles)), "rows": tiles.shape[0], "columns": tiles.shape[1]}
