"""The report of a run: what its folder says, what its model does with images, and the page that shows both."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from torchcaps.config import Config
from torchcaps.cost import measure_cost
from torchcaps.examine.examination import read_examination
from torchcaps.examine.figures import draw_robustness
from torchcaps.files import check_plain, own_folder
from torchcaps.inspect import figures
from torchcaps.inspect.agreement import read_agreement
from torchcaps.inspect.drawings import (
    draw_agreement,
    draw_overlaps,
    draw_pairs,
    draw_reconstructions,
    draw_segmentations,
)
from torchcaps.inspect.evaluation import holds_images_of
from torchcaps.inspect.examples import Example, look_into, pick_images
from torchcaps.inspect.measured import Measured, calibrate_measured, class_accuracy, confusion, measure, worst
from torchcaps.inspect.measures import describe_measured, write_measures
from torchcaps.losses import score_form
from torchcaps.report.page import SEEN, render
from torchcaps.report.story import Sight, Story
from torchcaps.scores import score_word
from torchcaps.train.checkpoint import damaged, write_text
from torchcaps.train.devices import choose_device
from torchcaps.train.opened import open_run, usual_split
from torchcaps.train.run import RunFolder

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from torchcaps.models import Model

PAGE, FIGURES = "report.html", "figures"
MISTAKES = 24  # that a page shows
FEW = 12  # columns of a figure of examples


class ReportKept(ValueError):
    """A report was not written, since the one that is there, `page`, shows more."""

    def __init__(self, page: Path, why: str):
        super().__init__(f"{page} stays as it was, since a new one would show less: {why}")
        self.page = page


def write_report(path: str | Path, reason: str = "", out: str | Path | None = None) -> Path:
    """Write report.html, figures/ and what was measured as JSON and CSV, of a run, finished or not.

    Of an unfinished run the images are those of the validation split: the test split is for the end. What cannot be
    shown (no checkpoint yet, data that are not there) the page says; but a page that shows it already is kept.

    Args:
        path: the folder.
        reason: why the run ended early, for the page.
        out: folder that is written to; None: that of the run.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError: when `path` is not the folder of a run.
        ValueError: when the folder of the run, or one in it that is written to, is a link, or a file in it is none.
        ReportKept: when the page would have shown less than the one that is there, which is kept, and its figures too.
    """
    story = read_story(Path(path), reason)
    home = own_folder(story.folder if out is None else Path(out), make=out is not None)
    page = home / PAGE
    check_plain(page)
    try:
        sight = look(story)
    except (FileNotFoundError, ValueError, RuntimeError) as error:
        sight = " ".join(str(error).split())
        if page.exists() and SEEN.encode() in page.read_bytes():
            raise ReportKept(page, sight) from error
    plots = draw_history(story) | draw_examined(story)
    folder = own_folder(home / FIGURES, make=True)
    for name, figure in (plots | (sight.figures if isinstance(sight, Sight) else {})).items():
        figures.save_figure(figure, folder / name)
    if isinstance(sight, Sight):
        record = describe_measured(sight.measured, sight.classes, sight.split, sight.images)
        write_measures(home, record | {"of_run": sight.of_run}, sight.measured, sight.classes)
    write_text(page, render(story, plots, sight))
    return page


def read_story(path: Path, reason: str = "") -> Story:
    """Return what the folder of a run says; only its config must be there."""
    run = RunFolder(path)
    history = run.read_history()
    try:
        read_agreement(history)
    except ValueError as error:
        raise damaged(path / "metrics.jsonl", error) from error
    return Story(
        folder=path,
        config=run.read_config(),
        environment=run.read("environment.json") if (path / "environment.json").exists() else {},
        history=history,
        result=run.read_result() if run.finished else None,
        reason=reason,
        examination=read_examination(path),
    )


def look(story: Story) -> Sight:
    """Load the model and the images of a run, and see what the one makes of the other.

    Raises:
        FileNotFoundError: when there is no checkpoint yet, or the data are not there.
        ValueError: when the data cannot be read.
    """
    model, config, fabric, data = open_run(story.folder, _device(story.config.device))
    manifest, split = RunFolder(story.folder).read_manifest(), usual_split(story.folder, data)
    batches = data.evaluation(split, config.batch_size)
    fabric.to_device(model)
    measured = measure(fabric, model, batches, config.loss)
    decoder = _reconstructs(model, config)
    examples = look_into(model, batches, measured, decoder)
    classes = data.train.classes
    wrong = measured.indices[worst(measured, MISTAKES)]
    mistakes = pick_images(batches, wrong)[0].cpu() if len(wrong) else None
    cost = measure_cost(model, data.image_size, data.channels)
    word = score_word(score_form(config.loss, scores=model.scores))
    with figures.style():
        plots = draw_measured(measured, classes, word) | draw_examples(model, examples, classes, fabric.device)
    of_run = holds_images_of(manifest, data, [split])
    return Sight(split, len(batches.images), of_run, classes, measured, examples, mistakes, cost, word, plots)


def draw_history(story: Story) -> dict[str, Figure]:
    """Return figures, by name, of how training went; none before the first epoch has ended."""
    if not story.history:
        return {}
    rows = read_agreement(story.history)
    with figures.style():
        return {
            **({"agreement": draw_agreement(rows)} if rows else {}),
            "loss": figures.draw_curves(story.history, "loss", story.selected),
            "accuracy": figures.draw_curves(story.history, "accuracy", story.selected),
            "timing": figures.draw_timing(story.history),
        }


def draw_examined(story: Story) -> dict[str, Figure]:
    """Return the figure of the curves, where the run was examined."""
    return {} if story.examination is None else {"robustness": draw_robustness(story.examination.robustness)}


def draw_measured(measured: Measured, classes: tuple[str, ...], word: str = "probability") -> dict[str, Figure]:
    """Return figures, by name, of what was measured; `word` is what a score is called."""
    targets, predicted = measured.targets, measured.predicted
    return {
        "confusion": figures.draw_confusion(confusion(targets, predicted), classes),
        "class-accuracy": figures.draw_class_accuracy(class_accuracy(targets, predicted), classes),
        "calibration": figures.draw_calibration(calibrate_measured(measured), word),
    }


def draw_examples(
    model: Model, examples: list[Example], classes: tuple[str, ...], device: torch.device
) -> dict[str, Figure]:
    """Return figures, by name, of what was decoded of images, of where their parts went, and of which parts agreed."""
    found: dict[str, Callable[[], Figure]] = {}
    decoded = [each for each in examples if each.decoded is not None]
    few = ([each for each in decoded if each.right][: FEW // 2] + [each for each in decoded if not each.right])[:FEW]
    if few:
        images = torch.stack([each.image for each in few]).to(device)
        sets = [[n in which for n in range(len(classes))] for each in few for which in (each.targets, each.predicted)]
        targets, predicted = torch.tensor(sets).unflatten(0, (-1, 2)).unbind(1)
        if few[0].parts is not None:
            both = targets.to(device), predicted.to(device)
            found["overlaps"] = lambda: draw_overlaps(model, images, *both, classes=classes)
            found["segmentations"] = lambda: draw_segmentations(model, images, *both, classes=classes)
        else:
            labels = targets.long().argmax(1).to(device)
            found["reconstructions"] = lambda: draw_reconstructions(model, images, labels, classes=classes)
    for layer in examples[0].routed if examples else []:
        names = name_parents(examples[0], layer.parents, classes if layer.top else ())
        found[f"routing-{layer.name.replace('.', '-')}"] = lambda layer=layer, names=names: figures.draw_couplings(
            examples[0].image, layer.maps, names, layer.box, layer.equal
        )
    for layer in examples[0].agreed if examples else []:
        names = name_parents(examples[0], layer.parents, classes if layer.top else ())
        found[f"pairs-{layer.name.replace('.', '-')}"] = lambda layer=layer, names=names: draw_pairs(
            examples[0].image, layer.products, layer.places, names, layer.ring
        )
    return {name: draw() for name, draw in found.items()}


def name_parents(example: Example, parents: list[int], classes: tuple[str, ...]) -> list[str]:
    """Return names for the parents of a layer, those of `classes` where there are any; what the image shows is
    ticked.
    """
    if not classes:
        return [f"parent {n + 1}" for n in parents]
    return [f"{classes[n]} \u2713" if n in example.targets else classes[n] for n in parents]


def _device(name: str) -> str:
    """Return the device that a run asked for, where it is there; else "auto"."""
    try:
        return choose_device(name)
    except ValueError:
        return "auto"


def _reconstructs(model: Model, config: Config) -> bool:
    """Return whether the model was taught to reconstruct: a decoder that no loss has reached decodes nothing."""
    return config.loss.reconstruction > 0 and config.data.standardise == "none"
