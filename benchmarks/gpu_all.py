"""All that is open about a GPU, in the order of its worth, until the time is out: `python benchmarks/gpu.py all`.

A checkout, torch, Triton, numpy and safetensors are enough. Each item is a line of the file `--out`, written as soon
as it has ended; the same command goes on where it was cut. Groups of items have processes of their own, since a kernel
that fails may take its process with it: then that is written down, and the next item has a fresh one. See GPU.md.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import IO, Any, NamedTuple

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / name) for name in ("src", "benchmarks", "tests")]

import torch  # noqa: E402 - the package need not be installed
from gpu_log import Log  # noqa: E402
from torch.nn.utils import convert_conv2d_weight_memory_format  # noqa: E402

LINES = 12  # the last that a script said, kept where it failed or was cut
GRACE = 20  # seconds that a group may go on after the time is out, for the line that it is at


class Item(NamedTuple):
    name: str
    run: Callable[..., dict[str, Any]]
    least: float = 5  # seconds, without which it is not begun
    timed: bool = False  # whether it is told until when it may go on, since it has a process of its own
    goes_on: bool = False  # whether it begins where it was cut


class Absent(Exception):
    """What an item needs and this machine has not."""


class Cut(Exception):
    """What a script had said when its time was out."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=8, help="after which nothing is begun")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: tiny sizes, to try the script")
    parser.add_argument("--out", type=Path, default=Path("gpu-results.jsonl"))
    parser.add_argument("--only", choices=GROUPS, nargs="+", default=list(GROUPS))
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)  # of a group's own process
    flags = parser.parse_args()
    log = Log(flags.out)
    if flags.until is not None:
        return work(flags.only[0], torch.device(flags.device), log, flags.until)
    if flags.device == "cuda" and not torch.cuda.is_available():
        print(f"torch {torch.__version__} finds no GPU", file=sys.stderr)
        return 1
    until = time.time() + 60 * flags.minutes
    log.write({"machine": describe(torch.device(flags.device))})
    for group in flags.only:
        finish(group, flags.device, flags.out, until)
    left = [item.name for group in flags.only for item in items(group, torch.device(flags.device))]
    left = [name for name in left if not Log(flags.out).settled(name)]
    print(f"{flags.out} holds what was found" + (f"; again for {', '.join(left)}" if left else ", and nothing is left"))
    return 0


def finish(group: str, device: str, out: Path, until: float) -> None:
    """Run what is left of a group in processes of its own, each until it ends, dies, or the time is out.

    One that dies with nothing to show for it, as where an import fails, is not begun again.
    """
    command = [sys.executable, __file__, "--only", group, "--device", device, "--out", str(out), "--until", str(until)]
    while until - time.time() > 1:
        environment = os.environ | ({"TRITON_INTERPRET": "1"} if device == "cpu" else {})
        before = len(Log(out).lines)
        process = subprocess.Popen(command, env=environment)
        try:
            status = process.wait(until - time.time() + GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            status = None
        except KeyboardInterrupt:
            process.kill()
            raise
        log = Log(out)
        item = log.open_item()
        if item is not None:
            log.end(item, "cut" if status is None else "died", status=status)
        if not status or len(log.lines) == before:
            return


def work(group: str, device: torch.device, log: Log, until: float) -> int:
    """Run the items of a group that are not settled, while there is time."""
    for item in items(group, device):
        if log.settled(item.name) or until - time.time() < item.least:
            continue
        log.begin(item.name)
        start = time.time()
        outcome, found = attempt(item, until)
        found |= {"goes_on": True} if outcome == "cut" and item.goes_on else {}
        log.end(item.name, outcome, seconds=round(time.time() - start, 1), **found)
        print(f"{item.name}: {outcome} {found}", flush=True)
        if device.type == "cuda":
            torch.cuda.synchronize()  # a kernel that failed says so here at the latest, and ends this process
            torch.cuda.empty_cache()
    return 0


def attempt(item: Item, until: float) -> tuple[str, dict[str, Any]]:
    try:
        found = item.run(until=until) if item.timed else item.run()
    except Absent as missing:
        return "absent", {"why": str(missing)}
    except Cut as cut:
        return "cut", {"says": str(cut).splitlines()}
    except Exception as error:  # whatever it is, the next item is to be run
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return "failed", {"error": type(error).__name__, "says": lines[:1] + lines[-3:] if len(lines) > 1 else lines}
    return ("failed" if found.pop("wrong", False) else "done"), found


def items(group: str, device: torch.device) -> Iterator[Item]:
    yield from GROUPS[group](device)


# ---- What there is to find out -----------------------------------------------------------------------------------


def describe(device: torch.device) -> dict[str, Any]:
    """The machine, as every line's reader must know it; no host is named."""
    commit = None
    if which("git"):
        commit = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    found: dict[str, Any] = {
        "device": device.type,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "system": f"{platform.system()} {platform.machine()}",
        "commit": (commit or "").strip() or None,
        "there": [name for name in ("triton", "numba", "lightning_fabric", "timm") if find_spec(name)],
    }
    if find_spec("triton"):
        import triton

        found["triton"] = triton.__version__
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(0)
        found |= {"gpu": about.name, "capability": f"{about.major}.{about.minor}", "memory": about.total_memory}
        found |= {"processors": about.multi_processor_count, "gpus": torch.cuda.device_count()}
    return found


def cases(device: torch.device) -> dict[str, tuple[str, Any, int, int]]:
    """By name: routing, shape, batch and iterations of the layers in the papers' networks, class layers first."""
    from forms import conv, linear

    if device.type == "cpu":
        small = {"dynamic": linear(16, 4, 4, 8), "em": linear(6, 4, 3, 4, True)}
        return {f"{routing}, small": (routing, shape, 2, 2) for routing, shape in small.items()}
    resnet, classes = conv(16, 32, 32), linear(800, 16, 10, 16, True)
    return {
        "inverted-attention, class layer": ("inverted-attention", classes, 128, 2),
        "em, class layer": ("em", classes, 128, 2),
        "dynamic, capsnet": ("dynamic", linear(1152, 8, 10, 16), 128, 3),
        "inverted-attention, windows": ("inverted-attention", resnet, 128, 2),
        "em, windows": ("em", resnet, 64, 2),
        "fm, 1152 children": ("fm", linear(1152, 8, 10, 16), 128, 1),
        "fm, windows": ("fm", resnet, 64, 1),
        "xnidr, windows": ("xnidr", resnet, 64, 2),
        "xnidr, head": ("xnidr", linear(160, 8, 10, 16), 128, 3),
        "inverted-attention-c, class layer": ("inverted-attention-c", linear(64, 16, 10, 16, True), 128, 2),
        "variational-bayes, class layer": ("variational-bayes", classes, 128, 2),
        "variational-bayes, windows": ("variational-bayes", resnet, 64, 2),
        "dynamic, windows": ("dynamic", resnet, 64, 2),
        "inverted-attention, 1000 classes": ("inverted-attention", linear(256, 16, 1000, 16, True), 128, 2),
        "em, 1000 classes": ("em", linear(256, 16, 1000, 16, True), 128, 2),
        "dynamic, 1000 classes": ("dynamic", linear(256, 8, 1000, 16), 128, 3),
        "inverted-attention, 64 images": ("inverted-attention", classes, 64, 2),
        "dynamic, one image": ("dynamic", linear(1152, 8, 10, 16), 1, 3),
    }


def trials(device: torch.device) -> Iterator[Item]:
    """Whether each kernel is taken: the trial that a layer makes of it; and whether compiled code can train with it."""
    for name, (routing, shape, _, _) in cases(device).items():
        yield Item(f"trial/{name}", partial(trial, routing, shape, device))
    if device.type == "cuda":
        yield from (compiling(routing, device) for routing in ("dynamic", "fm"))


def check_kernels(device: torch.device) -> None:
    """Raise Absent where no kernel is compiled, so that plain steps are not taken for them."""
    from torchcaps.routing.fused import DEVICES, lacks

    if device.type not in DEVICES:
        raise Absent(lacks(device.type))


def timed(*arguments: Any) -> dict[str, Any]:
    """`forms.measure`, where there are kernels."""
    from forms import measure

    check_kernels(arguments[3])
    found = measure(*arguments)
    return found | {"wrong": any(name.endswith("_fault") for name in found)}


def compiling(routing: str, device: torch.device) -> Item:
    """Whether `torch.compile` trains a small layer with its kernel."""
    from forms import linear

    train = partial(timed, routing, linear(64, 8, 10, 16), 32, device, ("fused-compiled",), 2, 1)
    return Item(f"trial/{routing}, compiled", train, 20)


def trial(routing: str, shape: Any, device: torch.device) -> dict[str, Any]:
    from torchcaps.capsules import Capsules
    from torchcaps.kernels.probe import fault
    from torchcaps.layers import CapsuleLayer

    check_kernels(device)
    layer = CapsuleLayer(shape.transform(), routing).to(device)
    poses = torch.randn(2, *shape.children, device=device)
    if layer.kernel is None:
        return {"kernel": False}
    votes = layer.votes(Capsules(poses, torch.rand(poses.shape[:-1], device=device)))
    reason = fault(layer.kernel.step, layer.routing, votes)
    return {"kernel": True, "by_rule": layer.form(device.type), "fault": reason, "wrong": reason is not None}


def numerics(device: torch.device) -> Iterator[Item]:
    """The kernels' sums and gradients beside the plain forms, in float32 at a few sizes, dynamic routing and FM too."""
    for name in ("inverted_attention", "em", "fm_windows", "linear"):
        script = ROOT / "tests" / f"interpreted_{name}.py"
        yield Item(f"numerics/{name}", partial(called, [str(script), device.type, "quick"], most=30), 20, timed=True)


def called(command: list[str], until: float, most: float = math.inf) -> dict[str, Any]:
    """What became of a Python script in a process of its own, which is asked to end at `until`, and after `most`
    seconds.

    Raises:
        Cut: when it was, with the last lines that it had said.
    """
    paths = os.pathsep.join(str(ROOT / name) for name in ("src", "tests"))
    environment = os.environ | {"PYTHONPATH": paths}
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen([sys.executable, *command], env=environment, cwd=ROOT, stdout=said, stderr=said)
        try:
            status = process.wait(max(1, min(most, until - time.time())))
        except subprocess.TimeoutExpired:
            process.terminate()  # a run saves what it has
            try:
                process.wait(GRACE - 5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            raise Cut(last_lines(said)) from None
        says = last_lines(said).splitlines()
    return {"status": status, "wrong": status != 0} | ({"says": says} if status else {})


def last_lines(said: IO[str]) -> str:
    said.seek(0)
    return "\n".join(said.read().strip().splitlines()[-LINES:])


def forms(device: torch.device) -> Iterator[Item]:
    """Time and memory of each layer: the kernel, the plain steps, and einsum."""
    for name, (routing, shape, batch, iterations) in cases(device).items():
        ways = ("fused", "plain", "einsum")
        yield Item(f"forms/{name}", partial(timed, routing, shape, batch, device, ways, iterations))


def compiled(device: torch.device) -> Iterator[Item]:
    """The same beside both forms compiled."""
    if device.type == "cpu":
        return
    yield from (compiling(routing, device) for routing in ("xnidr", "em", "inverted-attention"))
    for name, (routing, shape, batch, iterations) in list(cases(device).items())[:6]:
        ways = ("fused", "compiled", "fused-compiled")
        yield Item(f"compiled/{name}", partial(timed, routing, shape, batch, device, ways, iterations), 60)


NETWORKS = {  # a network of each paper: model, channels, pixels a side
    "capsnet": ("capsnet", 1, 28),
    "inverted attention": ("attention-resnet-cifar10", 3, 32),
    "em": ("em-resnet-cifar10", 3, 32),
    "fm": ("fm-resnet-cifar10", 3, 32),
    "encapnet": ("encapnet-v1", 3, 32),
    "discriminative": ("discriminative-capsnet", 1, 28),
    "xnidr": ("mobilenetv2_100.xnidr", 3, 32),
}


def steps(device: torch.device) -> Iterator[Item]:
    """A training step of a network of each paper: by the rule, plain, and as `torchcaps.choose` has it."""
    for name, (model, channels, side) in NETWORKS.items():
        if device.type == "cpu" and name != "capsnet":
            continue
        for how in ("rule", "plain", "chosen"):
            yield Item(f"step/{name}/{how}", partial(step, model, channels, side, how, device), 20)


def step(name: str, channels: int, side: int, how: str, device: torch.device) -> dict[str, Any]:
    from torchcaps.config import LossConfig
    from torchcaps.layers import choose, chosen_forms, use_implementation
    from torchcaps.losses import build_criterion, multi_hot

    if "." in name and not find_spec("timm"):
        raise Absent("timm is not installed")
    if how != "plain":
        check_kernels(device)
    batch, options = (8, {"channels": 8, "primary": 2}) if device.type == "cpu" else (128, {})
    model, images, labels = built(name, channels, side, batch, device, options)
    criterion = build_criterion(LossConfig("cross-entropy"))
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-4)
    if how == "plain":
        use_implementation(model, "plain")
    if how == "chosen":
        with torch.autocast(device.type, torch.bfloat16):
            choose(model, images)

    def train() -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            output = model(images, labels)
            loss = criterion(output, images, multi_hot(labels, 10))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        return loss.detach()

    from forms import clock, peak_mb

    losses = [float(train()) for _ in range(2)]
    taken = sorted(clock(train, device) for _ in range(7 if device.type == "cuda" else 1))
    found: dict[str, Any] = {"batch": batch, "ms": round(1000 * taken[len(taken) // 2], 2), "losses": losses}
    found["wrong"] = not all(torch.tensor(losses).isfinite())
    if how == "chosen":
        found["forms"] = chosen_forms(model)
    return found | ({"peak_mb": peak_mb(train, device)} if device.type == "cuda" else {})


def built(name: str, channels: int, side: int, batch: int, device: torch.device, options: dict[str, Any]) -> tuple:
    """A network in training mode, and images and labels for it."""
    from torchcaps.models import create_model

    torch.manual_seed(0)
    shape = {"num_classes": 10, "in_channels": channels, "image_size": (side, side)}
    model = create_model(name, **shape, **options).to(device).train()
    model = convert_conv2d_weight_memory_format(model, torch.channels_last)  # as in training: capsules' weights stay
    images = torch.rand(batch, channels, side, side, device=device).contiguous(memory_format=torch.channels_last)
    return model, images, torch.randint(10, (batch,), device=device)


def learning(device: torch.device) -> Iterator[Item]:
    """Digits that come with the library."""
    for form in ("fused", "plain"):
        yield Item(f"train/digits/{form}", partial(digits, form, device), 15)


def training(device: torch.device) -> Iterator[Item]:
    """Runs of papers' cells, where Fabric and their data are there."""
    if device.type == "cpu":
        return
    from gpu import TRAINED

    for name, cell in TRAINED.items():
        yield Item(name, partial(cell_of, cell, device), 60, timed=True, goes_on=True)


def digits(form: str, device: torch.device) -> dict[str, Any]:
    """A narrow CapsNet on 1,797 real digits by a loop of a few lines: what it learns, and how fast."""
    from torchcaps.config import DataConfig
    from torchcaps.data import load_data
    from torchcaps.layers import use_implementation
    from torchcaps.losses import margin_loss, multi_hot

    if form == "fused":
        check_kernels(device)
    data, config = load_data(DataConfig("digits"), device), DataConfig("digits")
    model, _, _ = built("capsnet", 1, 8, 2, device, {"channels": 16, "primary": 4, "kernel": 3, "decoder": False})
    use_implementation(model, form)  # pyright: ignore[reportArgumentType]
    optimiser, epochs = torch.optim.Adam(model.parameters(), 3e-3), 20 if device.type == "cuda" else 1
    batches, seen, loss = data.training(config, 128, 0), 0, torch.zeros(())
    model(next(iter(batches.epoch(0)))[0]).scores.sum().backward()  # what is compiled first is no part of the time
    start = time.time()
    for epoch in range(epochs):
        for images, labels in batches.epoch(epoch):
            loss = margin_loss(model(images).scores, multi_hot(labels, 10))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            seen += len(labels)
    last, seconds = float(loss), time.time() - start
    model.eval()
    with torch.no_grad():
        right = [
            (model(images).scores.argmax(1) == labels).sum().item()
            for images, labels in data.evaluation("test", 128).epoch(0)
        ]
    accuracy = sum(right) / len(data.test)
    return {"accuracy": accuracy, "loss": last, "epochs": epochs, "images_per_second": round(seen / seconds, 1)}


def cell_of(cell: str, device: torch.device, until: float) -> dict[str, Any]:
    """A run of a paper's cell at budget `fast`, which goes on from its last checkpoint when this is called again."""
    if not find_spec("lightning_fabric"):
        raise Absent("lightning-fabric is not installed, which runs need")
    if not os.environ.get("TORCHCAPS_DATA"):
        raise Absent("TORCHCAPS_DATA is not set, where data sets lie")
    script = ROOT / "benchmarks" / "cell.py"
    return called([str(script), cell, "--device", device.type], until)


GROUPS: dict[str, Callable[[torch.device], Iterator[Item]]] = {  # in the order of their worth
    "trials": trials,
    "digits": learning,
    "forms": forms,
    "steps": steps,
    "numerics": numerics,
    "compiled": compiled,
    "training": training,
}


if __name__ == "__main__":
    sys.exit(main())
