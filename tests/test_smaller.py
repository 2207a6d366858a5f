"""Runs that are pruned and folded: every command takes them, and their networks say what the whole one says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import tiny_config

import torchcaps
from torchcaps.cli import main
from torchcaps.config import DataConfig, ModelConfig
from torchcaps.deploy.smaller import fold_run, prune_run
from torchcaps.manifest import Manifest, Smaller, read
from torchcaps.models import Model
from torchcaps.models.shapes import check_shapes, read_shapes
from torchcaps.models.smaller import count_zeros, fold, prune_to, rebuild, sizes_of
from torchcaps.tables.records import config_hash, find_finished
from torchcaps.train import RunFolder, fit, load_run
from torchcaps.train.checkpoint import save_checkpoint

NETWORK = {"channels": 4, "primary": 5, "kernel": 3, "hidden": (6,), "norm": "rows", "proximal": True}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run some of whose capsules are dead: a whole type, single ones, and one of the hidden ones."""
    data = DataConfig("digits", limit=64)
    config = tiny_config(tmp_path_factory.mktemp("smaller"), model=ModelConfig("discriminative-capsnet", NETWORK),
                         data=data, epochs=1, batch_size=16)  # fmt: skip
    run = RunFolder(fit(config).folder)
    model, _ = load_run(run.path)
    first, second = model.stack.layers
    torch.manual_seed(0)
    with torch.no_grad():
        for layer in (first, second):
            layer.routing.coefficient.normal_(std=0.5)
        places = len(first.routing.coefficient) // 5
        first.routing.coefficient[places : 2 * places] = 0
        first.routing.coefficient[3 * places + 1] = 0
        second.routing.coefficient[2] = 0
    save_checkpoint(run.best, model, manifest=run.read_manifest())
    return run.path


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def probabilities(path: Path, images: torch.Tensor) -> np.ndarray:
    return np.array([list(each.probabilities.values()) for each in torchcaps.load(path)(images)])


@pytest.mark.slow
def test_a_pruned_and_folded_run_is_a_run(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = torch.rand(4, 1, 8, 8)
    wanted = probabilities(copy, images)
    assert main(["prune", str(copy)]) == 0
    assert main(["fold", f"{copy}-pruned", "--out", f"{copy}-small"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith(f"{copy}-pruned: ") and " parameters, " in said[0] and said[1].startswith(f"{copy}-small")
    model = load_run(copy)[0]
    counts = [sum(each.numel() for each in load_run(path)[0].parameters())
              for path in (copy, f"{copy}-pruned", f"{copy}-small")]  # fmt: skip
    assert counts[0] > counts[1] > counts[2]
    pruned, small = (load_run(f"{copy}-{name}")[0] for name in ("pruned", "small"))
    assert all(each.dead == 0 for each in count_zeros(pruned)) and count_zeros(small) == []
    assert [layer.routing.spec.name for layer in small.stack.layers] == ["uniform", "uniform"]
    assert sizes_of(pruned)[0] == sizes_of(model)[0] - 1 and sizes_of(pruned)[2] == 5
    for name in ("pruned", "small"):
        place = Path(f"{copy}-{name}")
        np.testing.assert_allclose(probabilities(place, images), wanted, atol=1e-6)
        alone = place / "best" / "model.safetensors"
        np.testing.assert_allclose(probabilities(alone, images), wanted, atol=1e-6)
        for command in (["evaluate"], ["inspect"], ["export", "--format", "pt2"]):
            assert main([command[0], str(place), *command[1:]]) == 0, command
        written = capsys.readouterr().out
        measured = json.loads((place / "evaluation.json").read_text())
        assert f"test: accuracy {measured['accuracy']:.2%}" in written and "scores differ by at most" in written
        assert (place / "report.html").exists()
    result = RunFolder(Path(f"{copy}-small")).read("result.json")
    assert result["parameters"] == counts[2]


def test_a_folded_run_of_a_timm_head_is_one_too(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, model=ModelConfig("small-resnet.discriminative", {"width": 4}), epochs=1,
                         data=DataConfig("digits", limit=32, image_size=16), batch_size=16)  # fmt: skip
    folder = fit(config).folder
    done = fold_run(folder)
    assert done.difference < 1e-5 and done.parameters[1] < done.parameters[0]
    images = torch.rand(2, 1, 16, 16)
    np.testing.assert_allclose(probabilities(done.folder, images), probabilities(folder, images), atol=1e-5)
    with pytest.raises(ValueError, match="a HeadedModel cannot be pruned"):
        prune_run(folder)


def test_a_run_of_format_1_is_made_smaller_too(copy: Path) -> None:
    """What was written of it could not be read again."""
    images, run = torch.rand(2, 1, 8, 8), RunFolder(copy)
    wanted = probabilities(copy, images)
    run.write("model.json", run.read("model.json")["model"])
    assert run.read_manifest().format == 1
    folded = fold_run(copy).folder
    np.testing.assert_allclose(probabilities(folded, images), wanted, atol=1e-6)
    assert RunFolder(folded).read_manifest().format == 2


def test_what_was_made_smaller_is_no_run_of_its_config(copy: Path) -> None:
    """Its line would give the whole network's cell another network's parameters and scores."""
    run = RunFolder(copy)
    name, seed = config_hash(run.read_config()), run.read_config().seed
    assert find_finished(copy.parent, name, seed) == copy
    pruned = prune_run(copy).folder
    fold_run(pruned)
    small = RunFolder(pruned).read("model.json")
    assert find_finished(copy.parent, name, seed) == copy
    run.write("model.json", small)  # read before, and seen to have changed
    assert find_finished(copy.parent, name, seed) is None


def test_what_cannot_be_made_smaller_is_said(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(ValueError, match="there is there already: give another folder with --out"):
        prune_run(copy, tmp_path / "there")
    pruned = prune_run(copy).folder
    with pytest.raises(ValueError, match=r"no child capsule of .* is dead"):
        prune_run(pruned)
    folded = fold_run(pruned).folder
    with pytest.raises(ValueError, match="no layer has constant couplings to fold"):
        fold_run(folded)
    plain = fit(tiny_config(tmp_path / "plain", epochs=1, data=DataConfig("digits", limit=32), batch_size=16)).folder
    with pytest.raises(ValueError, match="no layer has constant couplings to fold"):
        fold_run(plain)
    with pytest.raises(ValueError, match="a Tiny cannot be pruned"):
        prune_run(plain)


@pytest.mark.parametrize("sizes", [(), (5,), (6, 10, 6), (5, 3, 6), (5, 46, 6), (5, 20, 7), (0, 0, 6), (1, 10, 6)])
def test_sizes_that_a_network_cannot_be_pruned_to_are_refused(copy: Path, sizes: tuple[int, ...]) -> None:
    model = load_run(copy)[0]
    assert sizes_of(model) == (5, 20, 6)
    with pytest.raises(ValueError, match="pruned to"):
        prune_to(model, sizes)


@pytest.mark.parametrize("change", [{"channels": 60_000}, {"hidden": [60_000]}, {"primary": 60_000}])
def test_a_record_that_says_pruned_is_checked_too_and_its_whole_network_takes_no_memory(
    copy: Path, change: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    pruned = prune_run(copy).folder
    plain = json.loads((pruned / "model.json").read_text())
    plain["model"].update(change)
    (pruned / "model.json").write_text(json.dumps(plain))
    run = RunFolder(pruned)
    monkeypatch.setattr(torch.Tensor, "normal_", lambda x, *args, **options: _on_meta(x))
    shapes = read_shapes(run.selected / "model.safetensors")
    if "channels" in change:
        with pytest.raises(ValueError, match=r"its model has .* 60000, .* but its weights have"):
            check_shapes(run.rebuild, shapes, run.read_manifest())
    else:
        check_shapes(run.rebuild, shapes, run.read_manifest())
        rebuilt = run.rebuild()
        assert {name: tuple(each.shape) for name, each in rebuilt.state_dict().items()} == shapes
        assert sum(each.numel() for each in rebuilt.state_dict().values()) < 100_000


def _on_meta(x: torch.Tensor) -> torch.Tensor:
    assert x.is_meta or x.numel() < 100_000, "the whole network took memory"
    return x


def test_no_mask_is_made_of_capsules_that_no_network_has(copy: Path) -> None:
    plain = RunFolder(prune_run(copy).folder).read_manifest().to_plain()
    plain["model"]["image_size"] = [60_000, 60_000]
    del plain["input"]
    with pytest.raises(ValueError, match=r"a network of 4,\d{3},\d{3},\d{3} capsules is too large to have been pruned"):
        rebuild(read(plain))


def test_a_model_that_only_memory_can_build_may_take_no_more_than_its_weights() -> None:
    def build(rows: int) -> Model:
        model = Model()
        model.steps = [float(x) for x in torch.linspace(0, 1, 3)]  # which the meta device cannot tell
        torch.rand(2, generator=torch.Generator().manual_seed(0))
        model.large = torch.nn.Parameter(torch.empty(rows, 2**20))
        return model

    manifest = Manifest({"name": "own"})
    check_shapes(lambda: build(2), {"large": (2, 2**20)}, manifest)
    with pytest.raises(ValueError, match=r"large of \[2, 1048576\], but its weights have \[1, 1048576\]"):
        check_shapes(lambda: build(2), {"large": (1, 2**20)}, manifest)
    with pytest.raises(ValueError, match=r"its model takes 4\.4e[+]03 GB, which its weights do not"):
        check_shapes(lambda: build(2**20), {"large": (2**20, 1)}, manifest)


def test_a_manifest_says_how_small_a_network_is(copy: Path) -> None:
    pruned = RunFolder(prune_run(copy).folder)
    held = pruned.read_manifest()
    assert held.smaller == Smaller((4, 15, 5), False)
    again = rebuild(read(json.loads((pruned.path / "model.json").read_text())))
    assert {name: each.shape for name, each in again.state_dict().items()} == {
        name: each.shape for name, each in load_run(pruned.path)[0].state_dict().items()
    }
    assert fold(again).origin is None
