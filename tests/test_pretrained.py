"""Weights that ship, by name: from a file, a folder, the cache, a checkout and a stand-in for the hub."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import httpx2
import numpy as np
import pytest
import torch
from hub import serving
from PIL import Image
from safetensors import safe_open
from tiny import tiny_config

import torchcaps
from torchcaps import create_model
from torchcaps.cli import main
from torchcaps.config import DataConfig, ModelConfig
from torchcaps.deploy import publish
from torchcaps.deploy.publish import write_card, write_package
from torchcaps.manifest import KEY, from_json
from torchcaps.models import pretrained
from torchcaps.models.pretrained import CHECKOUT, FILE, SHIPPED, create_pretrained, find_weights, list_weights
from torchcaps.tables.records import describe_run
from torchcaps.train import RunFolder, fit, load_run

LIMIT = 24 * 2**20  # bytes in a checkout
SMALL = {"channels": 4, "primary": 2, "kernel": 3, "decoder": False}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = tiny_config(tmp_path_factory.mktemp("pretrained"), model=ModelConfig("capsnet", SMALL), epochs=1,
                         data=DataConfig("digits", limit=128), batch_size=32)  # fmt: skip
    return Path(fit(config).folder)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TORCHCAPS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "weights"


def scores(path: str | Path) -> np.ndarray:
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return np.array([list(each.scores.values()) for each in torchcaps.load(path)(images)])


def test_a_package_says_all_of_itself(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "mine"
    assert main(["publish", str(run), str(place), "--precision", "float32"]) == 0
    assert f"{place}: " in capsys.readouterr().out
    assert {path.name for path in place.iterdir()} == {FILE, "model.json", "run.json", "README.md"}
    line = json.loads((place / "run.json").read_text())
    digest = hashlib.sha256((place / FILE).read_bytes()).hexdigest()
    assert line["weights"] == {"sha256": digest, "bytes": (place / FILE).stat().st_size, "precision": "float32"}
    assert line["config_hash"] == describe_run(run)["config_hash"] and line["environment"]["torch"]
    card = (place / "README.md").read_text()
    result = RunFolder(run).read("result.json")
    assert f"{result['test_accuracy']:.2%}" in card and digest in card and "| `channels` | `4` |" in card
    assert str(run.parent) not in card + json.dumps(line)
    np.testing.assert_array_equal(scores(place), scores(run))
    assert main(["publish", str(run), str(place)]) == 2
    assert "is there already" in capsys.readouterr().err


def test_weights_are_halved_where_the_test_stays_the_same(run: Path, tmp_path: Path) -> None:
    line = describe_run(run)
    whole = write_package(run, tmp_path / "whole", line, "float32")
    half = write_package(run, tmp_path / "half", line, "auto")
    assert (whole.precision, half.precision) == ("float32", "bf16") and half.bytes < 0.75 * whole.bytes
    with safe_open(half.folder / FILE, "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
        assert from_json(file.metadata()[KEY]) == RunFolder(run).read_manifest()
    assert next(torchcaps.load(half.folder).model.parameters()).dtype == torch.float32
    np.testing.assert_allclose(scores(half.folder), scores(run), atol=0.02)


def test_bf16_that_changes_the_test_is_refused(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchcaps.deploy.publish.WITHIN", -1.0)
    assert write_package(run, tmp_path / "auto", describe_run(run)).precision == "float32"
    with pytest.raises(ValueError, match=r"in bf16 the test accuracy is .*: store float32"):
        write_package(run, tmp_path / "half", describe_run(run), "bf16")
    assert not (tmp_path / "half").exists()


def test_a_package_that_fails_leaves_no_half_of_it(run: Path, tmp_path: Path) -> None:
    line = {name: value for name, value in describe_run(run).items() if name != "seconds"}
    with pytest.raises(KeyError, match="seconds"):
        write_package(run, tmp_path / "half", line, "float32")
    assert not (tmp_path / "half").exists()


def test_a_result_that_is_damaged_is_named(run: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged-0"
    shutil.copytree(run, damaged)
    plain = json.loads((damaged / "result.json").read_text())
    (damaged / "result.json").write_text(json.dumps(plain | {"seconds": None}))
    with pytest.raises(ValueError, match=r"damaged-0/result.json is damaged .*: seconds is 'None'; it must be float"):
        describe_run(damaged)


def test_a_card_is_no_markup_of_a_stranger(run: Path) -> None:
    line = {**describe_run(run), "weights": {"bytes": 1, "precision": "float32", "sha256": "0"}}
    line["recipe"] = "a|b`<script>\n# owned"
    manifest = replace(RunFolder(run).read_manifest(), classes=("a\\[b](c)", "*d*", "&lt;", *"3456789"))
    card = write_card(manifest, line, "x\n# owned")
    assert "recipe ``a\\|b`<script>\\x0a# owned``, epoch" in card and "\n# owned" not in card
    assert "\nClasses: a\\\\\\[b\\](c), \\*d\\*, \\&lt;, 3" in card
    for text, code in {
        "a": "`a`",
        "`": "`` ` ``",
        "``a`b": "``` ``a`b ```",
        "a\\|b": "`a\\|b`",
        "[c]": "`[c]`",
    }.items():
        assert publish._code(text) == code


def test_weights_are_found_by_name(run: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written = write_package(run, cache / "mine", describe_run(run), "float32")
    assert find_weights("mine") == find_weights(cache / "mine") == find_weights(written.folder / FILE)
    assert "mine" in list_weights()
    for source in ("mine", run, written.folder / FILE):
        model = torchcaps.create_model(str(source), pretrained=True, num_classes=10)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), load_run(run)[0].parameters(), strict=True))
    np.testing.assert_array_equal(scores("mine"), scores(run))
    with pytest.raises(ValueError, match="num_classes is 3, but the trained model mine has 10: leave it out"):
        create_pretrained("mine", num_classes=3)
    monkeypatch.setattr(pretrained, "CHECKOUT", tmp_path / "checkout")
    with pytest.raises(FileNotFoundError, match=r"no weights 'capsnet': weights by name are mine; those of the hub"):
        torchcaps.create_model("capsnet", pretrained=True)
    with pytest.raises(FileNotFoundError, match="come with a checkout of torchcaps, and not with an installed package"):
        torchcaps.load(SHIPPED[0])
    with pytest.raises(FileNotFoundError, match="holds no weights"):
        torchcaps.load(tmp_path)


def test_a_folder_of_pictures_does_not_hide_weights_of_its_name(
    run: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    written = write_package(run, cache / "mine", describe_run(run), "float32")
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "other"):
        (tmp_path / name).mkdir()
    assert find_weights("mine") == written.folder / FILE
    with pytest.raises(FileNotFoundError, match="other holds no weights"):
        find_weights("other")


def test_a_name_is_no_way_out_of_the_cache(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where each of these would lead there is a file."""
    for folder in (cache, cache.parent, tmp_path, cache / "a" / "b"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).write_bytes(b"")
    (tmp_path / "empty" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "empty" / "here")
    for name in ("weights/../..", "a/b", "../cache", "a/../.."):
        with pytest.raises(FileNotFoundError, match="there is no run, no file and no weights"):
            find_weights(name)


@pytest.mark.parametrize("name", ["hf-hub:", "hf-hub:owner", "hf-hub:owner/../x", "hf-hub:a/b/c", "hf-hub:a/b@c@d"])
def test_names_of_the_hub_have_one_form(name: str) -> None:
    with pytest.raises(ValueError, match="it must be hf-hub:OWNER/NAME"):
        find_weights(name)


def test_damaged_weights_are_refused_however_they_are_named(run: Path, tmp_path: Path) -> None:
    """By the file, and by the folder in `pretrained`: their sums stand beside them."""
    damaged = shutil.copytree(run, tmp_path / "damaged")
    file = damaged / "best" / FILE
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    for read in (lambda: torchcaps.load(file), lambda: create_model(str(damaged), pretrained=True)):
        with pytest.raises(ValueError, match="do not match SHA256SUMS"):
            read()
    shutil.copy(file, tmp_path / "alone.safetensors")  # a file without sums, as published ones are
    torchcaps.load(tmp_path / "alone.safetensors")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """The folder of a hub, and the environment of a process that takes it for the real one."""
    with serving(tmp_path / "hub") as address:
        yield tmp_path / "hub", os.environ | {
            "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "hf_of_nobody",
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
            "TORCHCAPS_CACHE": str(tmp_path / "cache"),
        }  # fmt: skip


def command(environment: dict[str, str], *words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "torchcaps", *map(str, words)], env=environment, capture_output=True,
                          text=True)  # fmt: skip


@pytest.mark.slow
def test_the_hub_gives_what_was_published(run: Path, hub: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    place, environment = hub
    done = command(environment, "publish", run, "hf-hub:someone/digits", "--precision", "float32")
    assert done.returncode == 0, done.stderr
    assert "/someone/digits: " in done.stdout
    assert {path.name for path in (place / "someone" / "digits").iterdir()} == {
        FILE, "model.json", "run.json", "README.md"}  # fmt: skip
    assert 'torchcaps.load("hf-hub:someone/digits")' in (place / "someone" / "digits" / "README.md").read_text()
    (tmp_path / "new").mkdir()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "new" / "a.png")
    said = command(environment, "predict", "hf-hub:someone/digits", tmp_path / "new", "--json", "--top", "10")
    assert said.returncode == 0, said.stderr
    wanted = torchcaps.load(run)(tmp_path / "new" / "a.png")
    found = {each["label"]: each["probability"] for each in json.loads(said.stdout)[0]["top"]}
    assert found == pytest.approx(wanted.probabilities, abs=1e-6)
    shutil.rmtree(place / "someone")
    gone = command(
        environment | {"HF_HOME": str(tmp_path / "fresh")}, "predict", "hf-hub:someone/digits", tmp_path / "new"
    )
    assert gone.returncode == 1 and "hf-hub:someone/digits cannot be fetched" in gone.stderr
    assert len(gone.stderr.splitlines()) == 1


@pytest.mark.slow
def test_nothing_is_published_by_nobody(run: Path, hub: tuple[Path, dict[str, str]], tmp_path: Path) -> None:
    place, environment = hub
    done = command(environment | {"HF_TOKEN": ""}, "publish", run, "hf-hub:someone/digits", "--precision", "float32")
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert "hf-hub:someone/digits cannot be published" in done.stderr and not (place / "someone").exists()
    done = command(environment, "publish", run, "hf-hub:someone")
    assert done.returncode == 2 and "it must be hf-hub:OWNER/NAME" in done.stderr


def test_what_ships_is_small_and_is_what_its_card_says() -> None:
    assert sorted(path.name for path in CHECKOUT.iterdir() if path.is_dir()) == sorted(SHIPPED)
    assert sum(path.stat().st_size for path in CHECKOUT.rglob("*") if path.is_file()) <= LIMIT
    for name in SHIPPED:
        weights = CHECKOUT / name / FILE
        line = json.loads((CHECKOUT / name / "run.json").read_text())
        assert line["weights"]["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
        classifier = torchcaps.load(weights)
        assert classifier.manifest == from_json((CHECKOUT / name / "model.json").read_text())
        card = (CHECKOUT / name / "README.md").read_text()
        assert card == write_card(classifier.manifest, line, name)


def test_a_package_names_no_folder_of_the_machine_that_it_was_made_on(run: Path, tmp_path: Path) -> None:
    """The file of weights that a backbone began with had been named with all its folders."""
    mine = "/home/anna/w/x.safetensors"
    shutil.copytree(run, tmp_path / "run")
    for name, keys in (("config.json", ("model", "options")), ("model.json", ("model",))):
        plain = json.loads((tmp_path / "run" / name).read_text())
        place = plain
        for key in keys:
            place = place[key]
        place["pretrained"] = mine
        (tmp_path / "run" / name).write_text(json.dumps(plain))
    line = {"config": {"model": {"options": {"pretrained": mine}}, "changed": [f"model.options.pretrained={mine}"]}}
    assert publish._plain(line) == {
        "config": {
            "model": {"options": {"pretrained": "x.safetensors"}},
            "changed": ["model.options.pretrained=x.safetensors"],
        }
    }
    manifest = RunFolder(tmp_path / "run").read_manifest()
    assert "anna" in manifest.to_json()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(publish, "load_run", lambda path: load_run(run))
        patch.setattr(publish, "_round", lambda run, model, *others: (model, "float32"))
        write_package(tmp_path / "run", tmp_path / "out", {**describe_run(run), **line})
    written = [path.read_bytes() for path in (tmp_path / "out").iterdir()]
    assert len(written) == 4 and not any(b"anna" in each for each in written)


def test_a_network_that_fails_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise httpx2.ConnectError("no route\nto host")

    monkeypatch.setattr("huggingface_hub.HfApi", lambda: SimpleNamespace(create_repo=fail))
    with pytest.raises(OSError, match="hf-hub:a/b cannot be published: no route to host"):
        publish.publish_hub(publish.Package(tmp_path, 1, "", "float32"), "hf-hub:a/b")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(OSError, match="hf-hub:a/b cannot be fetched: no route to host"):
        find_weights("hf-hub:a/b")


def test_accuracy_is_measured_on_the_device_that_is_named(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="device is 'tpu'"):
        write_package(run, tmp_path / "half", describe_run(run), "bf16", device="tpu")


def test_what_is_to_be_private_is_put_into_no_public_place(run: Path, tmp_path: Path) -> None:
    class Api:
        put = False

        def create_repo(self, name: str, private: bool, exist_ok: bool) -> None:
            assert exist_ok  # and leaves the one that is there as it is

        def repo_info(self, name: str) -> SimpleNamespace:
            return SimpleNamespace(private=False)

        def upload_folder(self, **_: object) -> SimpleNamespace:
            self.put = True
            return SimpleNamespace(repo_url="there")

    api, package = Api(), publish.Package(tmp_path, 1, "", "float32")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("huggingface_hub.HfApi", lambda: api)
        with pytest.raises(ValueError, match="hf-hub:a/b is there already, and public"):
            publish.publish_hub(package, "hf-hub:a/b", private=True)
        assert not api.put and publish.publish_hub(package, "hf-hub:a/b") == "there"
