"""The picture of each routing: its couplings over iterations on one and the same image, by a network made for it here.

All are the same small network but for the routing, trained on the digits for a few seconds while the site is built.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from torchcaps.config import DataConfig
from torchcaps.data import Data, load_data
from torchcaps.inspect import figures
from torchcaps.inspect.couplings import Box, trace_routing
from torchcaps.inspect.drawings import draw_pairs
from torchcaps.inspect.pairs import trace_pairs
from torchcaps.losses import cross_entropy, multi_hot
from torchcaps.models import CapsuleHead, HeadedModel
from torchcaps.routing import Spec

IMAGE = 16  # of the test split, the same on every page: a 3
EPOCHS, BATCH, RATE, STEP = 3, 64, 6e-3, 2e-4


def _get_sg_image_scraper() -> Callable[[object, dict[str, Any], dict[str, Any]], str]:
    """What sphinx-gallery takes pictures of tutorials by: it asks the module for it under this name."""
    return scrape_figure


def scrape_figure(block: object, variables: dict[str, Any], gallery: dict[str, Any]) -> str:
    """Save what a block of a tutorial leaves as `figure`; returns the reStructuredText that shows it."""
    from sphinx_gallery.scrapers import figure_rst

    figure = variables["example_globals"].pop("figure", None)
    if figure is None:
        return ""
    path = next(variables["image_path_iterator"])
    figure.savefig(path, dpi=120)
    return figure_rst([path], gallery["src_dir"])


def draw_routing(spec: Spec, out: Path) -> None:
    """Write OUT/couplings-NAME.svg, and `_couplings-NAME.md`, which shows it; kept where nothing has changed since."""
    picture, part = out / f"couplings-{spec.name}.svg", out / f"_couplings-{spec.name}.md"
    network = inspect.getsource(train) + inspect.getsource(draw)
    mark = f"<!-- {sha256(repr((asdict(spec), IMAGE, EPOCHS, BATCH, RATE, STEP, network)).encode()).hexdigest()} -->"
    if picture.exists() and part.exists() and mark in part.read_text(encoding="utf-8"):
        return
    data = load_data(DataConfig("digits", image_size=16), torch.device("cpu"))
    model = train(spec, data)
    image = data.test.fetch(torch.tensor([IMAGE])).float() / 255
    label = int(data.test.targets(torch.tensor([IMAGE])))
    right = accuracy(model, data)
    figure, said = draw(model, image, [str(n) for n in range(10)], label)
    figures.save_svg(figure, picture)
    part.write_text(
        f"{mark}\n![{said}](../generated/{picture.name})\n\n*{said} The image shows a {label}. Drawn while this site "
        f"was built, of a network that was trained for {EPOCHS} epochs of the digits and has {right:.0%} of the test "
        "images right.*\n",
        encoding="utf-8",
    )


def train(spec: Spec, data: Data) -> HeadedModel:
    """Sixty-four places of two capsules each, routed to ten classes."""
    torch.manual_seed(0)
    stem = [nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, padding=1), nn.ReLU()]
    head = CapsuleHead(spec.name, (64, 8, 8), 10, primary=2, scaled=True)
    model = HeadedModel(nn.Sequential(*stem), head).train()
    coefficients = model.coefficients()
    own = {id(each) for each in coefficients}
    weights = torch.optim.Adam([each for each in model.parameters() if id(each) not in own], RATE)
    ascent = torch.optim.SGD(coefficients, STEP * BATCH, maximize=True) if coefficients else None
    for _ in range(EPOCHS):
        for picked in torch.randperm(len(data.train)).split(BATCH):
            images, targets = data.train.fetch(picked).float() / 255, multi_hot(data.train.targets(picked), 10)
            output = model(images)
            loss = cross_entropy(output.scores, targets)
            weights.zero_grad()
            loss.backward()
            weights.step()
            if ascent is not None:
                ascent.zero_grad()
                gradients = torch.autograd.grad(model.objective(model(images), targets), coefficients)
                for each, gradient in zip(coefficients, gradients, strict=True):
                    each.grad = gradient
                ascent.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: HeadedModel, data: Data) -> float:
    places = torch.arange(len(data.test))
    found = model(data.test.fetch(places).float() / 255).scores.argmax(1)
    return (found == data.test.targets(places)).float().mean().item()


def draw(model: HeadedModel, image: Tensor, names: list[str], label: int) -> tuple[Figure, str]:
    """The picture of what a routing did with an image [1, c, h, w], and what is said of it."""
    names[label] += " \N{CHECK MARK}"
    with figures.style():
        if layers := trace_routing(model, image):
            layer = layers[-1]
            shares = layer.maps[:, 0]
            return (
                figures.draw_couplings(image[0], shares, names, layer.box, 1 / shares.shape[1]),
                "Which class each place of the image goes to: orange more than an equal share, blue less.",
            )
        if pairs := trace_pairs(model, image):
            layer = pairs[-1]
            shown = [names[n] for n in layer.parents[0].tolist()]
            ring = None if layer.ring is None else layer.ring
            return (
                draw_pairs(image[0], layer.products[0], layer.places[0], shown, ring),
                "The pairs of places whose votes for a class agree most; the classes of the highest activation.",
            )
        equal = torch.full((1, 10, 8, 8), 0.1)
        return (
            figures.draw_couplings(image[0], equal, names, Box(), 0.1),
            "Every place gives every class the same share, so there is nothing to see.",
        )
