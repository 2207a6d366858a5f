"""A trained network as others get it: its weights, a card made of the run's own records, and the run's line.

The files are `model.safetensors`, whose metadata say what the model is, `model.json`, the same to be read by people,
`run.json`, the line of the run, and `README.md`, the card. No folder of the machine is named in them.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors.torch import save_model

from torchcaps.deploy.module import choose_device
from torchcaps.extras import missing_extra
from torchcaps.files import replace_text, replacing
from torchcaps.manifest import KEY, Manifest
from torchcaps.markdown import markdown_table
from torchcaps.models import Model
from torchcaps.models.pretrained import FILE, HUB, network_errors, repository
from torchcaps.terminal import printable
from torchcaps.train.evaluation import evaluate
from torchcaps.train.opened import load_run, open_run
from torchcaps.train.run import RunFolder

Precision = Literal["auto", "float32", "bf16"]
MOST = 50  # classes that a card names
WITHIN = 0.0002  # share of the test images by which rounded weights may differ
_PATH = re.compile(r"(folder|npz|list):.*[/\\]")
_NAME = re.compile(r".*[/\\]")  # all before the name of a file
_START = "model.options.pretrained="  # of a change by a flag: a file of weights


class Package(NamedTuple):
    """What was written."""

    folder: Path
    bytes: int  # of the weights
    sha256: str  # of the weights
    precision: str  # that they are stored in


def write_package(
    path: str | Path,
    folder: str | Path,
    line: Mapping[str, Any],
    precision: Precision = "auto",
    name: str = "",
    device: str = "auto",
) -> Package:
    """Write the files of a finished run to `folder`, which is made.

    Args:
        path: the folder of the run.
        folder: that the files are written to.
        line: of the run, as `results/runs.jsonl` has it.
        precision: that the weights are stored in; auto: bf16 where the test split is there and its accuracy stays
            within 0.02 points, else float32.
        name: by which `torchcaps.load` will find it, for the card; "": that of the folder.
        device: on which accuracy is measured: auto, cpu, cuda or mps.

    Raises:
        FileNotFoundError: when `path` is not the folder of a run.
        ValueError: for a device that is not there, when the run is not finished, is of format 1, when `folder` is
            there already, and for bf16 where accuracy changes by more.
    """
    choose_device(device)  # raises for one that is not there
    run, folder = RunFolder(Path(path)), Path(folder)
    manifest = run.read_manifest()
    manifest = replace(manifest, model=_named(manifest.model))
    if not run.finished:
        raise ValueError(f"{path} is not finished: it has no result to publish")
    if manifest.format == 1:
        raise ValueError(f"{path} does not say {', '.join(manifest.missing)}: train it again to publish it")
    if folder.exists():
        raise ValueError(f"{folder} is there already: name another folder")
    model, _ = load_run(path)
    stored, chosen = _round(run, model, precision, device)
    folder.mkdir(parents=True)
    try:
        with replacing(folder / FILE) as temporary:
            save_model(stored, str(temporary), {KEY: manifest.to_json()})
        content = (folder / FILE).read_bytes()
        written = Package(folder, len(content), hashlib.sha256(content).hexdigest(), chosen)
        known = _plain(line) | {"weights": {"sha256": written.sha256, "bytes": written.bytes, "precision": chosen}}
        replace_text(folder / "model.json", json.dumps(manifest.to_plain(), indent=2) + "\n")
        replace_text(folder / "run.json", json.dumps(known, indent=2) + "\n")
        replace_text(folder / "README.md", write_card(manifest, known, name or folder.name))
    except BaseException:  # half a package would be taken for one, and the next attempt refused
        shutil.rmtree(folder)
        raise
    return written


def publish_hub(package: Package, target: str, private: bool = False) -> str:
    """Put the files of a package on the hub as `hf-hub:OWNER/NAME`; whoever is logged in there must be its owner.

    Args:
        package: what `write_package` wrote.
        target: the place, which is made where it is not there.
        private: make it so that its owner alone can see it.

    Returns:
        The address.

    Raises:
        ValueError: for another form of `target`, and where huggingface_hub is not installed.
        OSError: when the hub cannot be reached, or refuses.
    """
    name, revision = repository(target)
    if revision is not None:
        raise ValueError(f"{target} names a revision: what is published is the newest one, {HUB}{name}")
    try:
        from huggingface_hub import HfApi
    except ModuleNotFoundError as error:
        raise ValueError(missing_extra(error)) from error
    try:
        api = HfApi()
        api.create_repo(name, private=private, exist_ok=True)  # which leaves one that is there as it is
        if private and not api.repo_info(name).private:
            raise ValueError(f"{target} is there already, and public: nothing was put there; make it private first")
        done = api.upload_folder(repo_id=name, folder_path=package.folder, commit_message="A network of torchcaps")
    except network_errors() as error:
        raise OSError(f"{target} cannot be published: {' '.join(str(error).split())}") from error
    return str(done.repo_url)


def write_card(manifest: Manifest, line: Mapping[str, Any], name: str) -> str:
    """Return the card of a network in Markdown, with what the hub reads at its head."""
    classes = ", ".join(_text(each) for each in manifest.classes[:MOST]) + (", ..." * (len(manifest.classes) > MOST))
    options = {f"`{key}`": _code(value) for key, value in manifest.model.items() if key != "name"}
    return f"""---
library_name: torchcaps
pipeline_tag: image-classification
tags: [capsule-network, {json.dumps(manifest.name)}]
---

# {_text(name)}

A capsule network for images, trained and written by torchcaps; all that stands here comes from the records of its run.

{markdown_table(("", ""), _facts(manifest, line).items())}

Classes: {classes}.

```python
import torchcaps

classifier = torchcaps.load({json.dumps(name)})
print(classifier("picture.png").top(3))
```

`run.json` is the line of the run, with its whole configuration; `model.json` says how a picture becomes input, and what
a score is. The digests in it tell which images were trained and tested on.

{markdown_table(("option", "value"), options.items())}
"""


def _facts(manifest: Manifest, line: Mapping[str, Any]) -> dict[str, str]:
    """Return what the run says of itself, by what it is."""
    weights, environment, data = line["weights"], line.get("environment", {}), manifest.data
    machine = environment.get("gpu") or environment.get("cpu") or "a machine that is not named"
    held = f", {data.validation.images:,} to select on" if data.validation.images else ""
    wrong = f"{line['test_errors']:,} of {line['test_images']:,} wrong"
    done = [word for word, is_so in (("pruned", manifest.smaller.pruned), ("folded", manifest.smaller.folded)) if is_so]
    return {
        "model": f"`{manifest.name}`, {line['parameters']:,} trainable parameters",
        **({"afterwards": f"{' and '.join(done)}, with equal scores"} if done else {}),
        "data": f"{_code(data.name)}, {data.train.images:,} training images{held}",
        "test accuracy": f"{line['test_accuracy']:.2%} ({wrong}), one seed ({line['seed']})",
        **({} if manifest.score is None else {"probabilities": manifest.score.reading}),
        "weights": f"{weights['bytes']:,} bytes of {weights['precision']}, SHA-256 `{weights['sha256']}`",
        "trained": f"recipe {_code(line['recipe'])}, epoch {line['selected_epoch']} kept, {line['seconds']:.0f} s on "
        f"{_text(machine)}",
        "versions": _text(", ".join(f"{library} {number}" for library, number in manifest.versions.items())),
    }


def _round(run: RunFolder, model: Model, precision: Precision, device: str) -> tuple[Model, str]:
    """Return the model as it is stored, and in what precision."""
    if precision == "float32":
        return model, "float32"
    rounded = copy.deepcopy(model).to(torch.bfloat16)
    try:
        before, after = measure_accuracy(run.path, model, copy.deepcopy(rounded).float(), device=device)
    except (FileNotFoundError, ValueError) as error:
        if precision == "auto":
            return model, "float32"
        raise ValueError(f"bf16 is tested on the test split, which cannot be read: {error}") from error
    if abs(after - before) <= WITHIN:
        return rounded, "bf16"
    if precision == "auto":
        return model, "float32"
    raise ValueError(f"in bf16 the test accuracy is {after:.2%}, not {before:.2%}: store float32")


def measure_accuracy(path: Path, *models: Model, device: str = "auto") -> list[float]:
    """Return the accuracy of each of `models` in place of the run's, as a share; the test split is read as the run
    says.

    Raises:
        FileNotFoundError: when it is not there.
        ValueError: when it is damaged or is none of the run's.
    """
    _, config, fabric, data = open_run(path, device)
    batches = data.evaluation("test", config.batch_size)
    placed = (fabric.to_device(copy.deepcopy(model)) for model in models)
    return [evaluate(fabric, model, batches, config.loss, data.num_classes).accuracy for model in placed]


def _plain(value: Any) -> Any:
    """Return a line without the folders of the machine that it was trained on."""
    if isinstance(value, Mapping):
        return _named({key: _plain(each) for key, each in value.items() if key not in ("root", "out")})
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, str) and value.startswith(_START):
        return _START + _NAME.sub("", value.removeprefix(_START))
    return _PATH.sub(r"\1:", value) if isinstance(value, str) else value


def _named(options: dict[str, Any]) -> dict[str, Any]:
    """Return options of a model, of a file of weights that it began with the name alone."""
    weights = options.get("pretrained")
    return options | ({"pretrained": _NAME.sub("", weights)} if isinstance(weights, str) else {})


def _text(value: object) -> str:
    """Return a value inside a table of Markdown: one line, and no markup of its own."""
    return re.sub(r"([\\|`<>\[\]*_~&])", r"\\\1", printable(str(value)))


def _code(value: object) -> str:
    """Return a value as code inside a table of Markdown, where nothing is escaped but |, and a fence is longer than any
    in it.
    """
    text = re.sub(r"\\*\|", r"\\|", printable(str(value)))
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    room = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{fence}{room}{text}{room}{fence}"
