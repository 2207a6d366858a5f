"""The networks of the tables at full size: a step as the paper trains, saved and read again; and a run of each data set
that cannot be had everywhere, on files that are written here in the published formats."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import test_data_formats as formats
import torch
from scipy.io import savemat
from torch.nn.utils import convert_conv2d_weight_memory_format

from torchcaps.config import Config, to_plain
from torchcaps.data.catalogue import find
from torchcaps.data.entries import MNIST_FILES
from torchcaps.data.overlap import Parts
from torchcaps.losses import multi_hot
from torchcaps.models import Model
from torchcaps.papers import find_cell, list_tables
from torchcaps.tables.arguments import image_shape, model_arguments
from torchcaps.tables.budgets import apply_budget
from torchcaps.tables.cells import Cell
from torchcaps.tables.network import build_network
from torchcaps.train import fit
from torchcaps.train.checkpoint import load_weights, save_checkpoint
from torchcaps.train.phases import Batch, LossModule, build_phases, step_phases
from torchcaps.train.processes import build_fabric

SIZE = 2  # of the batch: EM routing among 2,048 parents takes half a minute for each image
LONG = (pytest.mark.slow, pytest.mark.timeout(1200))
QUICK = (
    "discriminative/table2/mnist-l2",
    "encapnet/table1/master-size",
    "encapnet/table3/resnet-ot",
    "fm/table3/fm-stored",
    "fm/table6/em-r2",
    "inverted-attention/table1/attention-simple-cifar10-parameters",
    "inverted-attention/figure5/matrix",
    "xnodr/table4/mobilenet-xnidr-plain-multimnist",
)


def networks() -> dict[str, Cell]:
    """The first cell of each network with its loss, by what tells them apart."""
    found: dict[str, Cell] = {}
    for cell in (cell for table in list_tables() for cell in table.cells):
        if cell.build is not None:
            config = cell.build()
            parts = model_arguments(config) | {"image_size": image_shape(config), "loss": to_plain(config.loss)}
            found.setdefault(json.dumps(parts, sort_keys=True), cell)
    return found


assert set(QUICK) <= {cell.id for cell in networks().values()}, "a quick cell is no network's first any more"
CELLS = [pytest.param(cell, id=cell.id, marks=() if cell.id in QUICK else LONG) for cell in networks().values()]


def draw_batch(config: Config) -> Batch:
    """Noise with labels: of overlapped objects two each and, where there is a decoder, the parts that it is to draw."""
    shape, classes = image_shape(config), model_arguments(config)["num_classes"]
    images, labels = torch.rand(SIZE, *shape), torch.arange(SIZE)
    entry, _ = find(config.data.name)
    if entry.compose is None or entry.compose.objects == 1:
        return Batch(images, labels, multi_hot(labels, classes), 0.5)
    both = torch.stack([labels, (labels + 1) % classes], 1)
    sets = torch.zeros(SIZE, classes, dtype=torch.uint8).scatter_(1, both, 1)
    parts = Parts(torch.rand(SIZE, 2, *shape), both, both) if config.loss.reconstruction else None
    return Batch(images, sets, multi_hot(sets, classes), 0.5, parts)


def fresh(config: Config, seed: int) -> Model:
    torch.manual_seed(seed)
    return convert_conv2d_weight_memory_format(build_network(config), torch.channels_last)


def scores(model: Model, images: torch.Tensor) -> torch.Tensor:
    torch.manual_seed(3)  # a routing may start at random
    with torch.no_grad():
        return model.eval()(images).scores


@pytest.mark.parametrize("cell", CELLS)
def test_network_takes_a_step_and_is_saved(cell: Cell, tmp_path: Path) -> None:
    assert cell.build is not None
    config = replace(cell.build(), device="cpu")
    model = fresh(config, 0)
    batch = draw_batch(config)
    fabric = build_fabric(config)
    phases = build_phases(model, config)
    wrapped, optimizer = fabric.setup(LossModule(model, *phases), phases[0].optimizer)
    before = [[each.detach().clone() for each in phase.parameters] for phase in phases]
    loss, found, _ = step_phases(fabric, model, wrapped, optimizer, phases, batch, config.clip)
    assert loss.isfinite() and found.shape == batch.targets.shape
    for phase, values in zip(phases, before, strict=True):
        assert all(each.isfinite().all() for each in phase.parameters), phase.name
        assert any(not torch.equal(*pair) for pair in zip(phase.parameters, values, strict=True)), phase.name
    save_checkpoint(tmp_path / "last", model)
    again = fresh(config, 1)
    load_weights(tmp_path / "last", again)
    expected = scores(model, batch.images)
    assert expected.isfinite().all() and torch.equal(scores(again, batch.images), expected)


def write_svhn(root: Path, patch: pytest.MonkeyPatch) -> None:
    """Twenty house numbers a split; the published checksums become those of these files."""
    from torchvision.datasets import SVHN

    sums = {}
    for split in ("train", "test"):
        path = root / "SVHN" / f"{split}_32x32.mat"
        path.parent.mkdir(exist_ok=True)
        pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 20), dtype=np.uint8)
        savemat(path, {"X": pixels, "y": np.arange(20, dtype=np.uint8)[:, None] % 10 + 1})
        sums[split] = ["", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    patch.setattr(SVHN, "split_list", sums)


def write_affnist(root: Path, patch: pytest.MonkeyPatch) -> None:
    """affNIST to test on, and the MNIST that the recipe trains on."""
    formats.TestAffnist().fill(root, copies=32)
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    (root / "MNIST/raw").mkdir(parents=True)
    for (name, *_), number in zip(MNIST_FILES, (0, 1, 0, 1), strict=True):
        array = (np.arange(20) % 10).astype(np.uint8) if number else images
        sizes = struct.pack(f">{array.ndim}i", *array.shape)
        (root / name).write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())


def write_smallnorb(root: Path, patch: pytest.MonkeyPatch) -> None:
    formats.TestSmallnorb().fill(root)


def write_imagenet(root: Path, patch: pytest.MonkeyPatch) -> None:
    formats.TestImagenet().fill(root)


WRITERS: dict[str, Callable[[Path, pytest.MonkeyPatch], None]] = {
    "fm/table2/ours-svhn": write_svhn,
    "encapnet/table4/encapnet-strong-svhn": write_svhn,
    "fm/table3/fm": write_affnist,
    "fm/table6/fm": write_smallnorb,
    "encapnet/table4/h-imagenet-v1": write_imagenet,
    "encapnet/table4/h-imagenet-resnet-101": write_imagenet,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_recipe_trains_on_files_of_the_published_format(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    WRITERS[name](tmp_path, monkeypatch)
    cell = find_cell(name)
    assert cell.build is not None
    config = apply_budget(cell.build(), "full", cell)
    data = replace(config.data, root=tmp_path, limit=4)
    result = fit(replace(config, data=data, epochs=1, batch_size=2, device="cpu", out=tmp_path / "runs"))
    (line,) = (result.folder / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["step"] == 2 and np.isfinite(json.loads(line)["train_loss"])
    assert result.test_images > 0
