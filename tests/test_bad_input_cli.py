"""What a user can get wrong on the command line: one line that names the value and the mend, status 2, nothing touched.

Each row is a command for the recipe "tiny", what has to be there before it, and what must be said.
"""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import re
import shutil
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_config

import torchcaps
from torchcaps.cli import main, reporting
from torchcaps.config import DataConfig
from torchcaps.data import load_data
from torchcaps.papers import registry
from torchcaps.train import fit, learner


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run."""
    return fit(tiny_config(tmp_path_factory.mktemp("runs"), epochs=1)).folder


@pytest.fixture
def place(tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a copy of that run, finished in `run` and unfinished in `runs/tiny-0`; the recipe is registered."""
    config = tiny_config(tmp_path / "runs", epochs=1)
    monkeypatch.setitem(registry._RECIPES, "tiny", lambda: config)
    monkeypatch.setattr(reporting, "report", lambda *args, **kwargs: None)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run, tmp_path / "run")
    shutil.copytree(run, tmp_path / "runs" / "tiny-0")
    (tmp_path / "runs" / "tiny-0" / "result.json").unlink()
    plain = json.loads((tmp_path / "runs/tiny-0/config.json").read_text())
    (tmp_path / "runs/tiny-0/config.json").write_text(json.dumps(plain | {"out": str(tmp_path / "runs")}))
    return tmp_path


def arrays(**changes: np.ndarray) -> Callable[[Path], object]:
    """Write own.npz: twelve images of three classes with `changes`."""
    images, labels = np.zeros((12, 8, 8), np.uint8), np.arange(12) % 3
    content = {"x_train": images, "y_train": labels, "x_test": images, "y_test": labels} | changes
    return lambda place: np.savez(place / "own.npz", **content)  # pyright: ignore[reportArgumentType]


def spoilt(value: float) -> np.ndarray:
    images = np.zeros((12, 8, 8), np.float32)
    images[5, 2, 3] = value
    return images


def truncated(name: str, keep: int) -> Callable[[Path], object]:
    return lambda place: (place / name).write_bytes((place / name).read_bytes()[:keep])


def flipped(name: str) -> Callable[[Path], object]:
    """Another bit in the middle of a file, as a bad disk leaves it."""

    def flip(place: Path) -> None:
        content = bytearray((place / name).read_bytes())
        content[len(content) // 2] ^= 4
        (place / name).write_bytes(content)

    return flip


def text(name: str, content: str) -> Callable[[Path], object]:
    return lambda place: (place / name).write_text(content)


def truncated_npz(place: Path) -> None:
    arrays()(place)
    truncated("own.npz", 700)(place)


def objects_npz(place: Path) -> None:
    arrays(y_train=np.array([{}] * 12, dtype=object))(place)


def images(place: Path, sizes: tuple[int, ...] = (8,) * 12) -> None:
    for split in ("train", "test"):
        for number, side in enumerate(sizes):
            path = place / "pictures" / split / "ab"[number % 2] / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (side, side), number).save(path)


def unreadable(place: Path) -> None:
    images(place)
    (place / "pictures/train/a/4.png").write_bytes(b"\x89PNG no")


def small_idx(place: Path) -> None:
    """An MNIST that is cut in the middle of its images."""
    folder = place / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part, count in (("train", 20), ("t10k", 10)):
        header = bytes([0, 0, 8, 3]) + b"".join(size.to_bytes(4) for size in (count, 28, 28))
        (folder / f"{part}-images-idx3-ubyte").write_bytes(header + bytes(count * 28 * 28 - 5))
        labels = bytes([0, 0, 8, 1]) + count.to_bytes(4) + bytes(count)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(labels)


def labels_idx(place: Path) -> None:
    """A whole MNIST with a label that no digit has."""
    small_idx(place)
    for path in (place / "MNIST" / "raw").glob("*images*"):
        path.write_bytes(path.read_bytes() + bytes(5))
    path = place / "MNIST/raw/train-labels-idx1-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"\x0b")


def nothing(place: Path) -> None:
    pass


TRAIN_NPZ, TRAIN_FOLDER = "train tiny --data.name npz:own.npz --batch-size 4", "train tiny --data.name folder:pictures"
TRAIN_LIST = "train tiny --data.name list:own.csv"
TRAIN_MNIST = "train tiny --data.name mnist --data.root ."
LAST, BEST = "runs/tiny-0/last", "run/best"
ROWS = {
    "command": ("trian tiny", nothing, "no command is named 'trian'; the nearest is 'train'"),
    "recipe": ("train tinny", nothing, "no recipe is named 'tinny'; the nearest is 'tiny'"),
    "flag": ("train tiny --epoch 3", nothing, "--epoch, 3; the nearest is --epochs"),
    "value": ("train tiny --epochs many", nothing, "'many'"),
    "no-value": ("train tiny --epochs", nothing, "Missing value for argument '--epochs'"),
    "choice": ("train tiny --precision fp8", nothing, "'fp8' for argument '--precision'. Expected one of ('auto',"),
    "nothing": ("", nothing, "Expected one of {train, evaluate,"),
    "data-name": ("train tiny --data.name mnits", nothing, "no data set is named 'mnits'; the nearest is 'mnist'"),
    "model-name": ("train tiny --model.name tinny", nothing, "no model is named 'tinny'; the nearest is 'tiny'"),
    "option-name": ("train tiny --model.options widht 3", nothing, "'widht'; the nearest is 'width'"),
    "option-type": ("train tiny --model.options width wide", nothing, "model 'tiny' is 'wide'; it must be int"),
    "option-size": ("train tiny --model.options width -1", nothing, "cannot be built with width -1"),
    "routing": ("train tiny --model.name capsnet --model.options routing dynamik kernel 2", nothing, "'dynamic'"),
    "batch-size": ("train tiny --batch-size 0", nothing, "batch_size is 0; it must be a positive multiple"),
    "large-batch": ("train tiny --batch-size 9999", nothing, "batch_size 9999 exceeds the 1"),
    "rate": ("train tiny --optimiser.lr -0.1", nothing, "optimiser.lr is -0.1; it must be above 0"),
    "nan-rate": ("train tiny --optimiser.lr nan", nothing, "optimiser.lr is nan; it must be above 0"),
    "clip": ("train tiny --clip 0", nothing, "clip is 0.0; it must be above 0"),
    "seed": ("train tiny --seed -1", nothing, "seed is -1; it must be 0 or above"),
    "large-seed": ("train tiny --seed 4294967296", nothing, "seed is 4294967296; it must be at most 4294967295"),
    "split-seed": ("train tiny --data.split-seed -1", nothing, "data.split_seed is -1; it must be 0 or above"),
    "drawn-seed": ("train tiny --data.compose.seed -1", nothing, "data.compose.seed is -1; it must be 0 or above"),
    "recipe-path": ("train tiny --recipe ../up", nothing, "recipe is '../up'; it names a folder"),
    "contradiction": ("train tiny --schedule.name step", nothing, "'step', but there are no schedule.milestones"),
    "contradiction-2": (
        "train tiny --loss.reconstruction 1 --data.standardise image", nothing,
        "standardise is 'image', but a reconstruction",
    ),
    "contradiction-3": ("train tiny --precision fp16", nothing, "precision is 'fp16', but device is 'cpu'"),
    "device": ("train tiny --device gpu", nothing, "device is 'gpu'; it must be auto, cpu, cuda or mps"),
    "no-device": ("train tiny --device mps", nothing, "device 'mps' was asked for 1 time(s), and this machine has 0"),
    "no-device-2": ("evaluate run --device mps", nothing, "this machine has 0 (there: cpu"),
    "kernels": ("train digits --data.image-size 5 --device cpu", nothing, "the smallest side that works is 9"),
    "out-file": ("train tiny --out file", text("file", ""), "file is not a folder: give another folder with --out"),
    "out-under-file": ("train tiny --out file/runs", text("file", ""), "file is not a folder"),
    "out-system": ("train tiny --out /proc/runs", nothing, "give another folder with --out"),
    "no-run": ("evaluate nowhere", nothing, "nowhere is not the folder of a run"),
    "no-run-2": ("evaluate runs", nothing, "runs is not the folder of a run: it has no config.json"),
    "nothing-to-resume": ("train tiny --seed 3 --resume", nothing, "nothing to resume"),
    "resume-other": ("train tiny --epochs 7 --resume", nothing, "epochs was 1, not 7"),
    "no-data": (TRAIN_MNIST, nothing, "fetch it with --data.download, or name the folder that holds it with"),
    "idx-cut": (TRAIN_MNIST, small_idx, "data set 'mnist' is damaged in"),
    "idx-label": (TRAIN_MNIST, labels_idx, "label 11 is outside the 10 classes"),
    "npz-none": (TRAIN_NPZ, nothing, "there is no file own.npz"),
    "npz-cut": (TRAIN_NPZ, truncated_npz, "own.npz is not an .npz file"),
    "npz-objects": (TRAIN_NPZ, objects_npz, "objects are refused"),
    "npz-nan": (TRAIN_NPZ, arrays(x_train=spoilt(np.nan)), "x_train has NaN or infinite values, first in"),
    "npz-inf": (TRAIN_NPZ, arrays(x_test=spoilt(np.inf)), "x_test has NaN or infinite values, first in"),
    "npz-shape": (TRAIN_NPZ, arrays(x_train=np.zeros((12, 64), np.uint8)), "got uint8 [12, 64]"),
    "npz-sizes": (TRAIN_NPZ, arrays(x_test=np.zeros((12, 9, 9), np.uint8)), "train images are (1, 8, 8), test"),
    "npz-count": (TRAIN_NPZ, arrays(x_train=np.zeros((11, 8, 8), np.uint8)), "train split: labels must be"),
    "npz-range": (
        TRAIN_NPZ, arrays(**dict.fromkeys(("x_train", "x_test"), spoilt(-1))), "float32 are in [-1, 0], and which",
    ),
    "npz-order": (TRAIN_NPZ, arrays(x_train=np.zeros((12, 3, 8, 8), np.uint8)), "8x8 pixels of 3 channels (nchw)"),
    "npz-same": (TRAIN_NPZ, arrays(), "training images are the same: nothing can be learnt"),
    "npz-label": (TRAIN_NPZ, arrays(y_test=np.arange(12) - 1), "no training image has the label '-1'"),
    "npz-huge-label": (TRAIN_NPZ, arrays(y_test=np.full(12, 2**40)), "no training image has the label '1099511627776'"),
    "folder-none": (TRAIN_FOLDER, nothing, "there is no folder pictures"),
    "folder-empty": (TRAIN_FOLDER, lambda place: (place / "pictures").mkdir(), "pictures holds no images"),
    "folder-beside": (
        TRAIN_FOLDER, lambda place: (images(place), (place / "pictures/extra").mkdir()), "pictures/extra lies beside",
    ),
    "folder-ground": (f"{TRAIN_FOLDER} --data.ground whit", images, "data.ground is 'whit'; it must be an opaque"),
    "list-none": (TRAIN_LIST, nothing, "there is no file own.csv: give the path of a CSV file as list:FILE"),
    "list-file": (TRAIN_LIST, text("own.csv", "a.png,cat\n"), "own.csv, line 1: there is no file a.png"),
    "folder-unreadable": (TRAIN_FOLDER, unreadable, "cannot read the image pictures/train/a/4.png"),
    "folder-sizes": (TRAIN_FOLDER, lambda place: images(place, (8,) * 11 + (9,)), "give --data.image-size to resize"),
    "weights-cut": ("evaluate run", truncated(f"{BEST}/model.safetensors", 300), "model.safetensors is damaged"),
    "weights-flipped": ("evaluate run", flipped(f"{BEST}/model.safetensors"), "do not match SHA256SUMS"),
    "weights-resume": ("train tiny --resume", truncated(f"{LAST}/model.safetensors", 5), "tensors is damaged"),
    "state-cut": ("train tiny --resume", truncated(f"{LAST}/state.pt", 500), "state.pt is damaged"),
    "state-flipped": ("train tiny --resume", flipped(f"{LAST}/state.pt"), "do not match SHA256SUMS"),
    "config-cut": ("evaluate run", truncated("run/config.json", 50), "run/config.json is damaged"),
    "config-type": ("evaluate run", text("run/config.json", '{"epochs": "x"}'), "epochs is 'x'; it must be int"),
    "config-list": ("evaluate run", text("run/config.json", "[1]"), "it holds a list, not an object"),
    "model-cut": ("evaluate run", truncated("run/model.json", 20), "run/model.json is damaged"),
    "model-other": ("evaluate run", text("run/model.json", '{"name": "tiny", "image_size": 6}'), "is damaged or not"),
    "model-type": ("evaluate run", text("run/model.json", '{"name": "tiny", "num_classes": "x"}'), "'x'"),
    "model-key": ("evaluate run", text("run/model.json", '{"name": "tiny", "image_size": {}}'), "image_size is {}"),
}  # fmt: skip


def snapshot(place: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(place.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", ROWS)
def test_bad_input_takes_one_line_and_touches_nothing(
    place: Path, capfd: pytest.CaptureFixture[str], name: str
) -> None:
    command, prepare, message = ROWS[name]
    prepare(place)
    before = snapshot(place)
    capfd.readouterr()
    status = main(command.split())
    printed = capfd.readouterr()
    lines = [line for line in printed.err.splitlines() if "unfinished; the same command" not in line]
    assert status == 2, lines
    assert printed.out == "" and len(lines) == 1, printed
    assert lines[0].startswith("torchcaps: error: ") and message in lines[0], lines[0]
    after = snapshot(place)
    assert {path: after.get(path) for path in before} == before, "existing files were changed"
    assert main([*command.split(), "--debug"]) == 2
    assert "Traceback" in capfd.readouterr().err


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_usage_is_one_line_in_any_encoding(encoding: str) -> None:
    """tyro draws its boxes in another way where the terminal takes ASCII only."""
    said = io.StringIO()
    with redirect_stdout(io.TextIOWrapper(io.BytesIO(), encoding)), redirect_stderr(said):
        assert main(["train", "digits", "--epoch", "3"]) == 2
    assert said.getvalue() == (
        "torchcaps: error: Unrecognized options: --epoch, 3; the nearest is --epochs "
        "(torchcaps train digits --help shows more)\n"
    )


def test_permission_that_is_refused_is_a_user_error(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Root may write anywhere, so the refusal is played."""

    def refuse(path: Path, *args: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "mkdir", refuse)
        assert main(["train", "tiny", "--seed", "1"]) == 2
    assert "tiny-1 (Permission denied): give another folder with --out" in capfd.readouterr().err
    with monkeypatch.context() as patch:
        patch.setattr(os, "access", lambda path, mode: False)
        assert main(["train", "tiny", "--seed", "1"]) == 2
    assert "may not be written to: give another folder with --out" in capfd.readouterr().err


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError(),
     RuntimeError("[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: can't allocate memory: ..."),
     RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
     RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")],
    ids=["cuda", "python", "cpu", "cublas", "cudnn"],
)  # fmt: skip
def test_too_little_memory_suggests_half_the_batch(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], error: Exception
) -> None:
    def fail(*args: object) -> None:
        raise error

    monkeypatch.setattr(learner, "step_phases", fail)
    assert main(["train", "tiny", "--seed", "1", "--batch-size", "250"]) == 2
    said = capfd.readouterr().err
    assert said == "torchcaps: error: cpu has too little memory for batch_size 250: try --batch-size 125\n"
    assert main(["train", "tiny", "--seed", "2", "--batch-size", "1"]) == 2
    assert "for batch_size 1: a smaller model or image_size is needed" in capfd.readouterr().err


def test_unreadable_images_are_left_out_on_demand(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    unreadable(place)
    data = load_data(DataConfig("folder:pictures", skip_unreadable=True, validation=0.0))
    assert (len(data.train), len(data.test)) == (11, 12)
    values = data.train.fetch(torch.arange(11)).amax((1, 2, 3)).tolist()
    assert sorted(values) == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 11]
    assert caplog.messages == ["torchcaps: left out 1 unreadable image(s): pictures/train/a/4.png"]
    for path in (place / "pictures/train").rglob("*.png"):
        path.write_bytes(b"no")
    with pytest.raises(ValueError, match="none of the 12 images beside pictures/train/a/0"):
        load_data(DataConfig("folder:pictures", skip_unreadable=True))


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("kind", ["state", "weights", "npz", "legacy"])
def test_files_of_a_stranger_run_no_code(place: Path, capfd: pytest.CaptureFixture[str], kind: str) -> None:
    sprung, last = place / "sprung", place / LAST
    (last / "SHA256SUMS").unlink()  # a stranger's would match
    command = "train tiny --resume"
    match kind:
        case "state":
            torch.save({"position": Trap(sprung)}, last / "state.pt")
        case "legacy":
            (last / "state.pt").write_bytes(pickle.dumps({"position": Trap(sprung)}))
        case "weights":
            (last / "model.safetensors").write_bytes(pickle.dumps(Trap(sprung)))
        case "npz":
            arrays(y_train=np.array([Trap(sprung)] * 12, dtype=object))(place)
            command = TRAIN_NPZ
    assert main(command.split()) == 2
    assert not sprung.exists()
    said = capfd.readouterr().err
    assert "refused" in said or kind == "weights", said
    assert "weights_only" not in said, "torch's advice is to run the code"
    pickle.loads(pickle.dumps(Trap(sprung)))
    assert sprung.exists(), "the trap is none"


UNPICKLES = r"(torch|np|numpy|pickle|torch\.jit|torch\.export|joblib|dill)\.(load|loads|Unpickler)"


def test_run_folder_holds_nothing_that_is_unpickled_freely() -> None:
    """All reading of pickles in the package says weights_only=True or allow_pickle=False."""
    package, calls = Path(torchcaps.__file__).parent, []
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and re.fullmatch(UNPICKLES, called := ast.unparse(node.func)):
                safe = {word.arg: ast.unparse(word.value) for word in node.keywords}
                calls.append(
                    (path.name, called, safe.get("weights_only") == "True" or safe.get("allow_pickle") == "False")
                )
            if isinstance(node, ast.ImportFrom) and node.module in ("torch", "numpy", "pickle", "torch.export"):
                assert not {each.name for each in node.names} & {"load", "loads", "Unpickler"}, path
    unsafe = {(name, called) for name, called, safe in calls if not safe}
    assert len(calls) > len(unsafe)
    # programs of torch.export: the first is its own, just written; the second is loaded where the caller says trusted
    assert unsafe == {("export.py", "torch.export.load"), ("module.py", "torch.export.load")}
