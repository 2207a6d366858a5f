"""The page as HTML: one file that asks for nothing else. All that comes from a run is escaped here, or is data that the
script shows as text.
"""

from __future__ import annotations

import base64
import gzip
from html import escape
from string import Template
from typing import Any, NamedTuple

import torchcaps
from torchcaps.data.pictures import ground_colour
from torchcaps.explore.examples import Examples, Hand
from torchcaps.explore.graphs import Graphs
from torchcaps.explore.runtime import Runtime
from torchcaps.forms import InputForm, ScoreForm
from torchcaps.inspect.examples import REACH
from torchcaps.manifest import Manifest
from torchcaps.report.markup import embedded_json, read_part, source_hash
from torchcaps.report.terms import Explained
from torchcaps.scores import score_word

SCRIPTS = ("prepare.js", "board.js", "flows.js", "page.js")
HERE = "torchcaps.explore"


class Explored(NamedTuple):
    """What a page shows."""

    manifest: Manifest
    classes: tuple[str, ...]
    form: InputForm
    score: ScoreForm
    graphs: Graphs
    image: tuple[int, int, int]  # channels, height and width of what the network takes
    examples: Examples | None
    hand: Hand | None  # of line art
    dark: bool  # whether drawings are light on black
    absent: dict[str, str]  # "examples": why there are none; and what `Graphs.absent` says


def title(manifest: Manifest) -> str:
    """Return model and data, by which the page names itself."""
    return f"{manifest.name} on {manifest.data.name}" if manifest.data.name else manifest.name


def render(explored: Explored, runtime: Runtime) -> str:
    """Return the page, as HTML."""
    graphs, form, explained = explored.graphs, explored.form, Explained()
    script = "\n".join([read_part("make.js"), *(read_part(name, HERE) for name in SCRIPTS)])
    style = read_part("page.css") + read_part("page.css", HERE)
    word = score_word(explored.score)
    measure = _measure(explored)
    shown = ["capsule", "class capsule", *([measure] if measure else []), word]
    columns = [*([measure] if measure and not graphs.same else []), word]
    return Template(read_part("page.html", HERE)).substitute(
        title=escape(title(explored.manifest)),
        origin="a trained network to play with",
        lead=escape(_lead(explored)),
        version=torchcaps.__version__,
        style=style,
        style_hash=source_hash(style),
        script=script,
        engine=runtime.script,
        script_hashes=" ".join(f"'{source_hash(each)}'" for each in (runtime.script, script)),
        runtime_version=escape(f" {runtime.version}" if runtime.version else ""),
        terms_show=_terms(explained, *(shown if graphs.pose else [word])),
        columns="".join(f"<em>{escape(each)}</em>" for each in columns),
        reading=escape(_reading(explored)),
        board="art" if explored.dark else "",
        hide_file="" if form.mode else " hidden",
        hide_colour="" if form.mode == "RGB" else " hidden",
        hide_fit="" if explored.hand else " hidden",
        drop=" A file may also be dropped on the page or pasted." if form.mode else "",
        examples=_examples(explored),
        capsules=_capsules(explored, explained),
        routing=_routing(explored, explained),
        about=_about(explored),
        data=embedded_json(_data(explored)),
        runtime=_packed(runtime.wasm),
        network=_packed(graphs.network),
        decoder=_packed(graphs.decoder) if graphs.decoder else "",
    )


def _measure(explored: Explored) -> str:
    """Return what is shown of a class capsule beside its score; "" without any."""
    graphs = explored.graphs
    if graphs.pose is None or "activations" in graphs.outputs:
        return "" if graphs.pose is None else "activation"
    return "length" if explored.score.kind == "length" else "norm"


def _lead(explored: Explored) -> str:
    what = "a capsule network" if explored.graphs.pose else "a network"
    several = "" if explored.score.shown == 1 else " A picture may show several classes."
    return (
        f"This is {what} that knows {len(explored.classes):,} classes. Draw, upload a picture or take an example: it "
        f"answers here, in your browser, and nothing that you show it leaves this page.{several}"
    )


def _terms(explained: Explained, *terms: str) -> str:
    """Return a sentence or two on each term that the page has not explained yet."""
    return "".join(
        f'<p class="term"><dfn>{escape(term)}</dfn> {escape(said)}</p>' for term, said in explained.first(*terms)
    )


def _note(text: str) -> str:
    return f'<p class="note">{escape(text)}</p>'


def _reading(explored: Explored) -> str:
    """Return what the numbers of the classes are."""
    score, several = explored.score, ""
    if score.shown is None:
        several = f" Classes with a score above {score.threshold:g} are taken to be there."
    elif score.shown > 1:
        several = f" A picture shows {score.shown} classes: those of the highest scores are the answer."
    choice = " Choose a class to see what its capsule holds." if explored.graphs.pose else ""
    alone = "each class is judged by itself, so the numbers need not add up to 1"
    reading = alone if score.to_probability == "none" else score.reading
    return f"{score_word(score).capitalize()}: {reading}.{several}{choice}"


def _examples(explored: Explored) -> str:
    found = explored.examples
    if found is None:
        return _note(f"There are no examples here: {explored.absent['examples']}.")
    what = f"Examples from the {found.split} split"
    return f'<h3>{what}</h3><div id="examples" class="thumbs"></div>'


def _capsules(explored: Explored, explained: Explained) -> str:
    """Return the part on poses, or why there is none."""
    absent = explored.graphs.absent
    if "capsules" in absent:
        return _note(absent["capsules"])
    painted = () if "decoder" in absent else ("decoder", "reconstruction")
    terms = f'<div class="terms">{_terms(explained, "pose", *painted)}</div>'
    if "decoder" in absent:
        return f"{terms}{_note(absent['decoder'])}"
    vague = _note("A class that is not there has a short capsule, which holds little: what it would paint is vague.")
    heading = "<h3>The same picture, as each class capsule would paint it</h3>"
    return f'{terms}<div id="capsule"></div>{heading}{vague}<div id="decoded"></div>'


def _routing(explored: Explored, explained: Explained) -> str:
    """Return the part on routing, or why there is none."""
    absent = explored.graphs.absent
    if "routing" in absent:
        return _note(absent["routing"])
    terms = _terms(explained, "child", "parent", "vote", "routing", "coupling", "iteration")
    hint = "Choose a parent to see its lines, or point at a place of the picture to see where its children go."
    return f'<div class="terms">{terms}</div>{_note(hint)}<div id="flows"></div>'


def _about(explored: Explored) -> str:
    """Return how a picture becomes input, and what is computed."""
    form, manifest = explored.form, explored.manifest
    facts = [
        ("A picture", _prepared(explored)),
        ("The network", f"{title(manifest)}, as {_megabytes(explored.graphs.network)} of ONNX in this file"),
        ("What is sent", "nothing: the page asks for nothing once it is loaded, and works offline"),
    ]
    if form.mode:
        facts.append(
            ("Against torchcaps predict", "resized in the same way, to the same whole numbers; a JPEG's pixels may "
             "differ by a level or two, as decoders do, and 16-bit pictures are read with 8")
        )  # fmt: skip
    listed = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in facts)
    return f'<dl class="facts">{listed}</dl>'


def _prepared(explored: Explored) -> str:
    """Return in words how a picture becomes what the network takes."""
    form = explored.form
    height, width = form.size
    how = {"stretch": "brought", "crop": "cut to its proportions and brought", "pad": f"put on {form.ground}, whole,"}
    colours = {"L": "made grey, ", "RGB": "read as red, green and blue, "}.get(form.mode or "", "")
    steps = [f"{colours}{how[form.fit]} to {width} x {height} pixels"]
    if form.pad is not None:
        steps.append(f"put in the middle of {form.pad} x {form.pad} black pixels")
    cut = f"cut to {form.crop} x {form.crop}" if form.crop is not None else ""
    if cut and form.views > 1:
        cut = f"{cut} at {form.views} places, whose scores are averaged"
    means = {
        "none": "",
        "image": "given mean 0 and variance 1",
        "channel": "each channel given mean 0 and variance 1",
        "dataset": "standardised as the training images",
    }
    first, second = (means[form.standardise], cut) if form.standardise_first else (cut, means[form.standardise])
    steps += [each for each in (first, second) if each]
    if form.enlarge is not None:
        steps.append(f"enlarged to {form.enlarge} x {form.enlarge}")
    if form.mode is None:
        steps = [f"of {form.channels} channels, so that only examples can be shown", *steps[1:]]
    return ", then ".join(steps)


def _megabytes(content: bytes) -> str:
    return f"{len(content) / 1e6:,.1f} MB"


def _packed(content: bytes) -> str:
    """Return bytes as the script unpacks them; the same bytes always give the same text."""
    return base64.b64encode(gzip.compress(content, 9, mtime=0)).decode()


def _data(explored: Explored) -> dict[str, Any]:
    """Return what the script reads."""
    form, graphs, score, hand = explored.form, explored.graphs, explored.score, explored.hand
    under = ground_colour(form.ground, 3)
    ground = ground_colour(form.ground, form.channels) if form.mode else (255,) * form.channels
    found = explored.examples
    return {
        "classes": explored.classes,
        "word": score_word(score),
        "score": {"to_probability": score.to_probability, "threshold": score.threshold, "shown": score.shown},
        "image": explored.image,
        "form": {
            "size": form.size,
            "channels": form.channels,
            "pictures": form.mode is not None,
            "fit": form.fit,
            "ground": ground,
            "under": under,
            "pad": form.pad,
            "crop": form.crop,
            "views": form.views,
            "standardise": form.standardise,
            "standardise_first": form.standardise_first,
            "mean": form.mean,
            "std": form.std,
            "enlarge": form.enlarge,
        },
        "capsules": graphs.pose is not None,
        "decodes": graphs.decoder is not None,
        "pose": graphs.pose,
        "same": graphs.same,
        "reach": REACH,
        "dark": explored.dark,
        "hand": hand and {"pen": hand.pen, "frame": hand.frame},
        "layers": [
            {
                "routing": layer.routing,
                "iterations": layer.iterations,
                "parents": layer.parents,
                "places": layer.places,
                "box": layer.box,
                "top": layer.top,
                "strength": layer.strength,
            }
            for layer in graphs.layers
        ],
        "examples": []
        if found is None
        else [
            {"pixels": base64.b64encode(image.numpy().tobytes()).decode(), "targets": targets}
            for image, targets in zip(found.pixels, found.targets, strict=True)
        ],
    }
