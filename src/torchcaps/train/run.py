"""The folder of a run: what it was asked, where it ran, how it went, what came out.

- config.json: the whole `Config`
- environment.json: versions, commit, hardware and precision of the process that wrote last
- model.json: what is needed to use the model anywhere, see `torchcaps.manifest`
- metrics.jsonl: one line per epoch
- last/, best/: checkpoints: model.safetensors; in last/ also state.pt, from which the run continues
- result.json: there once the run is finished
- .lock: empty, held while a process trains here
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from torch import nn

from torchcaps import manifest as manifests
from torchcaps.config import EXTERNAL, SHAPE, Config, from_plain
from torchcaps.files import read_plain, remove_folder
from torchcaps.locking import hold
from torchcaps.manifest import Manifest, Smaller
from torchcaps.models import Model
from torchcaps.models.external import as_model
from torchcaps.models.smaller import rebuild
from torchcaps.names import check_fields
from torchcaps.plugins import check_imports
from torchcaps.revisions import check_same
from torchcaps.train.check import check_names
from torchcaps.train.checkpoint import damaged, present, write_text
from torchcaps.train.describe import complete

LOCK = ".lock"
METRICS: dict[str, Any] = {  # of a line of metrics.jsonl
    "epoch": int,
    "step": int,
    "train_loss": float,
    "train_accuracy": float,
    "validation_loss": float | None,
    "validation_accuracy": float | None,
    "validation_mean_class_accuracy": float | None,
    "test_accuracy": float | None,
    "train_penalty": float,
    "penalties": dict,
    "lr": float,
    "seconds": float,
    "images_per_second": float,
    "agreement": dict,
}
NEEDED = ("epoch", "validation_loss", "validation_accuracy", "seconds", "images_per_second")  # of these, in each line


class Result(NamedTuple):
    """What a finished run says; accuracies are shares in [0, 1]."""

    test_accuracy: float
    test_errors: int
    test_images: int
    validation_accuracy: float | None  # of the selected epoch; None where nothing was held out
    selected_epoch: int  # counted from 1
    parameters: int  # trainable
    seconds: float  # training and validation, without set-up and test
    folder: Path  # where the run lies; not in result.json, since folders move
    test_label_accuracy: float | None = None  # of label sets, see `Score`; None of single labels
    test_xnodr_top2: float | None = None  # likewise
    test_top5_accuracy: float | None = None  # of single labels; None of label sets
    cpu_seconds: float | None = None  # of the same, all threads of the first process; None of runs without the record
    statistics_batches: int | None = (
        None  # that batch norm is measured on for evaluations; None: statistics are running
    )
    test_mean_class_accuracy: float | None = None  # where it selects, see `Config.select`


class InUse(ValueError):
    """A run that another process is training."""


class RunFolder(NamedTuple):
    path: Path

    @property
    def last(self) -> Path:
        return self.path / "last"

    @property
    def best(self) -> Path:
        return self.path / "best"

    @property
    def selected(self) -> Path:
        """Return the folder of the weights that the run selected: of an unfinished one the best so far, or the last.

        Raises:
            FileNotFoundError: where there are none yet.
        """
        folder = self.best if present(self.best) else self.last
        found = present(folder)
        if found is None:
            raise FileNotFoundError(f"no checkpoint in {folder}")
        return found

    @property
    def finished(self) -> bool:
        return (self.path / "result.json").exists()

    def read_config(self) -> Config:
        """Return the config of the run.

        Raises:
            FileNotFoundError: when the folder is not one of a run.
            ValueError: when it is damaged.
        """
        plain = self.read("config.json")
        try:
            config = from_plain(Config, plain)
            check_names(config)
            return config
        except ValueError as error:
            raise damaged(self.path / "config.json", error) from error

    def read(self, name: str) -> dict[str, Any]:
        """Return the JSON file `name` of the folder; raises as `read_config`."""
        if not (self.path / name).exists():
            raise FileNotFoundError(f"{self.path} is not the folder of a run: it has no {name}")
        try:
            content = json.loads(read_plain(self.path / name))
            if not isinstance(content, dict):
                raise ValueError(f"it holds a {type(content).__name__}, not an object")
        except (RecursionError, ValueError) as error:
            raise damaged(self.path / name, error) from error
        return content

    def read_manifest(self) -> Manifest:
        """Return what the run says of its model in model.json; of a run of format 1, what follows from its config too.

        Raises:
            FileNotFoundError: when the folder is not one of a run.
            ValueError: when it is damaged, or of a later format.
        """
        plain = self.read("model.json")
        try:
            manifest = manifests.read(plain)
            return complete(manifest, self.read_config()) if manifest.format == 1 else manifest
        except ValueError as error:
            raise damaged(self.path / "model.json", error) from error

    def rebuild(self, module: nn.Module | None = None) -> Model:
        """Return the model of the run, as the run computed it, to load weights into; `module` where the run was
        given one.

        Raises as `read_manifest`, and ValueError for a revision that is no longer to be had, and for code of the
        user's own that was not imported, or a module that was not given.
        """
        manifest = self.read_manifest()
        if manifest.name == EXTERNAL:
            if module is None:
                raise ValueError(
                    f"{self.path} was trained with a module that was handed to fit: in Python, give it again, as "
                    f"torchcaps.load({str(self.path)!r}, model=...) or torchcaps.train.load_run(...)"
                )
            return as_model(module, {name: manifest.model[name] for name in SHAPE if name in manifest.model})
        if module is not None:
            raise ValueError(
                f"{self.path} was trained with {manifest.name}, which is built from its record: give no model"
            )
        check_imports(self.read_config().imports, str(self.path))
        try:
            return rebuild(manifest)
        except ValueError as error:
            raise ValueError(f"{self.path / 'model.json'}: {error}") from error

    def read_revisions(self) -> dict[str, int]:
        """Return the revisions above 1 that the run was made with; none before model.json is written, as nothing is
        then.
        """
        written = self._read_written()
        return {} if written is None else written.revisions

    def is_smaller(self) -> bool:
        """Return whether this is no run of its config, but one that was pruned or folded, see `torchcaps.deploy`."""
        written = self._read_written()
        return written is not None and written.smaller != Smaller()

    def _read_written(self) -> Manifest | None:
        """Return what model.json says and no more; None before it is written. Raises ValueError when it is damaged."""
        if not (self.path / "model.json").exists():
            return None
        try:
            return manifests.read(self.read("model.json"))
        except ValueError as error:
            raise damaged(self.path / "model.json", error) from error

    def check_revisions(self) -> None:
        """Raise ValueError unless the run would go on as it began, see `torchcaps.revisions`."""
        if (self.path / "model.json").exists():
            try:
                check_same(self.read_revisions(), self.read_config())
            except ValueError as error:
                raise ValueError(f"cannot resume {self.path}: {error}") from error

    def read_result(self) -> dict[str, Any]:
        """Return the fields of result.json; raises as `read_config`."""
        plain = self.read("result.json")
        try:
            kinds = {name: kind for name, kind in get_type_hints(Result).items() if name != "folder"}
            check_fields(plain, kinds, kinds.keys() - Result._field_defaults.keys())
        except ValueError as error:
            raise damaged(self.path / "result.json", error) from error
        return plain

    def read_history(self, needed: Collection[str] = ()) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl, one for each epoch that is done; none where it is not there.

        `needed` are fields that each must have, beside those that every line has had from the first version on.

        Raises:
            ValueError: when it is damaged.
        """
        path = self.path / "metrics.jsonl"
        try:
            lines = [json.loads(line) for line in read_plain(path).splitlines()] if path.exists() else []
            for line in lines:
                if not isinstance(line, dict):
                    raise ValueError(f"it holds a {type(line).__name__}, not an object")
                check_fields(line, METRICS, (*NEEDED, *needed))
                if line["validation_loss"] is not None and line["validation_accuracy"] is None:
                    raise ValueError("it has a validation_loss, and no validation_accuracy")
        except (RecursionError, ValueError) as error:
            raise damaged(path, error) from error
        return lines

    def hold(self) -> AbstractContextManager:
        """Keep other processes from training in this folder until the context that is returned ends.

        Raises:
            InUse: when one does; it is a `ValueError`.
        """
        held = hold(self.path / LOCK, seconds=1)  # who only asks whether it is held lets go at once
        if held is None:
            raise InUse(
                f"{self.path} is being trained by another process; wait for it (one that was killed lets go in seconds)"
            )
        return held

    @property
    def in_use(self) -> bool:
        """Return whether a process is training in this folder; False where that cannot be asked, as where it may only
        be read.
        """
        if not (self.path / LOCK).exists():
            return False
        try:
            held = hold(self.path / LOCK)
        except OSError:
            return False
        with held or nullcontext():
            return held is None

    def remove(self) -> None:
        """Take the folder away: of a run that could not begin."""
        remove_folder(self.path)

    def write(self, name: str, content: Any) -> None:
        """Replace the JSON file `name` of the folder."""
        write_text(self.path / name, json.dumps(content, indent=2) + "\n")

    def write_metrics(self, history: list[dict]) -> None:
        """Replace `metrics.jsonl` by `history`, one line each: written whole, so that a cut leaves no half line."""
        write_text(self.path / "metrics.jsonl", "".join(json.dumps(record) + "\n" for record in history))

    def write_result(self, result: Result) -> None:
        self.write("result.json", {key: value for key, value in result._asdict().items() if key != "folder"})


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Put `path`, a file of a run, before what is wrong with the values that it gave to the block."""
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else ValueError
        raise kind(f"{path}: {error}") from error
