"""Draw pictures/transplants-discriminative.png, figure 2 of Yang, Li and Yu 2021, and its control, on the test split.

python docs/draw_transplants.py RUNS

Each row of the picture is a line of results/transplants.jsonl, with its squared error.

RUNS is where this has put its runs:

torchcaps reproduce discriminative/table2 --cells 'fashion-mnist-*' --budget cpu --seeds 2 --out RUNS
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from torchcaps.data import load_data
from torchcaps.inspect import draw_transplants, transplant
from torchcaps.inspect.figures import style
from torchcaps.tables.lines import append_line
from torchcaps.tables.records import config_hash
from torchcaps.train import RunFolder, load_run
from torchcaps.train.machine import describe_machine

PICTURES = Path(__file__).parent / "pictures"
LINES = Path(__file__).parent.parent / "results" / "transplants.jsonl"
DECODER = "dr.cpu.16-filters-8-types-0"
NETWORKS = {
    "dynamic,\nanother seed": "dr.cpu.16-filters-8-types-1",
    "l2,\nwithout a decoder": "l2-fc.cpu.16-filters-8-types-0",
    "l1,\nwithout a decoder": "l1-fc.cpu.16-filters-8-types-0",
    "l2, with a\ndecoder of its own": "l2.cpu.16-filters-8-types-0",
}
IMAGES = 2000


def main(runs: Path) -> None:
    folders = {name: runs / f"discriminative.table2.fashion-mnist-{run}" for name, run in NETWORKS.items()}
    own = runs / f"discriminative.table2.fashion-mnist-{DECODER}"
    decoder, config = load_run(own)
    networks = {name: load_run(folder)[0] for name, folder in folders.items()}
    data = load_data(config.data)
    picked = torch.arange(IMAGES)
    images, labels = data.test.fetch(picked).float() / 255, data.test.targets(picked)
    for name, network in {"its own": decoder, **networks}.items():
        found, run = transplant(network, decoder, images, labels), RunFolder(folders.get(name, own))
        made = run.read_config()
        line = {
            "capsules": " ".join(name.split()),
            "seed": made.seed,
            "config_hash": config_hash(made, run.read_revisions()),
            "images": IMAGES,
            "error": found.error,
            "right": found.right.float().mean().item(),
            "environment": describe_machine(),
        }
        append_line(LINES, line)
        print(f"{line['capsules']}: squared error {found.error:.1f}, {line['right']:.1%} right")
    with style():
        figure = draw_transplants(decoder, networks, images, labels)
    figure.savefig(PICTURES / "transplants-discriminative.png", dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
