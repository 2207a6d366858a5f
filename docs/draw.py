"""Draw the pictures of the README and of these pages from a finished run.

python docs/draw.py [RUN]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from torchcaps.data import load_data
from torchcaps.inspect import draw_reconstructions
from torchcaps.inspect.toy import (
    draw_toy_agreement,
    draw_toy_coefficients,
    draw_toy_couplings,
    draw_toy_transport,
)
from torchcaps.train import load_run

PICTURES = Path(__file__).parent / "pictures"


TOYS = {"dynamic": {}, "em": {"temperature": 5.0}, "inverted-attention": {}, "xnidr": {}}


def draw_run(run: Path) -> None:
    """One test image of each class, its reconstruction, and the pose sweep of one."""
    model, config = load_run(run)
    data = load_data(config.data)
    labels = data.test.targets(torch.arange(len(data.test)))
    picked = torch.stack([(labels == label).nonzero()[0, 0] for label in range(data.num_classes)])
    images = data.test.fetch(picked).float() / 255
    figure = draw_reconstructions(model, images, labels[picked], sweep=5)
    figure.savefig(PICTURES / "reconstructions.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", nargs="?", help="with a decoder; without one: the toy scenes")
    flags = parser.parse_args()
    PICTURES.mkdir(exist_ok=True)
    for routing, options in TOYS.items():
        draw_toy_couplings(routing, **options).savefig(PICTURES / f"couplings-{routing}.png", dpi=90)
    draw_toy_agreement().savefig(PICTURES / "agreement-fm.png", dpi=90)
    draw_toy_coefficients().savefig(PICTURES / "coefficients-discriminative.png", dpi=90)
    draw_toy_transport().savefig(PICTURES / "transport-encapnet.png", dpi=90)
    if flags.run is not None:
        draw_run(flags.run)


if __name__ == "__main__":
    main()
