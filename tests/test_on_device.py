"""What only a GPU can show: two devices, half precision, and checkpoints that go from a GPU to a CPU and back.

`python benchmarks/gpu.py test-devices` runs them where they can be; see benchmarks/GPU.md for the time that each takes.
"""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median

import pytest
import torch
from safetensors.torch import load_file
from test_compile import capsnet

import torchcaps
from torchcaps.capsules import Capsules
from torchcaps.config import Config
from torchcaps.kernels import timing
from torchcaps.layers import (
    CapsuleLayer,
    ConvTransform,
    LinearTransform,
    chosen_forms,
    set_forms,
    use_implementation,
)
from torchcaps.models import create_model
from torchcaps.routing.fused import Implementation
from torchcaps.train import fit, load_run
from torchcaps.train.checkpoint import load_state
from torchcaps.train.run import RunFolder

DEVICES = torch.cuda.device_count()
needs_gpu = pytest.mark.skipif(DEVICES < 1, reason="torch finds no CUDA device")
needs_two = pytest.mark.skipif(DEVICES < 2, reason=f"it takes two CUDA devices, and torch finds {DEVICES}")
pytestmark = [pytest.mark.device, pytest.mark.slow]

SETTINGS = {"linear": LinearTransform(64, 10, 8, 16), "conv": ConvTransform(4, 8, 16, 16, stride=2, matrix=True)}
CONV = ("dynamic", "em", "inverted-attention", "inverted-attention-c", "self-attention", "variational-bayes")
ROUTINGS = {"linear": (*CONV, "xnidr", "fm"), "conv": CONV}
CASES = [(form, routing) for form, routings in ROUTINGS.items() for routing in routings]


def run(out: Path, device: str, **changes) -> Config:
    """Two epochs of a narrow CapsNet on the digits that come with the library."""
    return capsnet(out, **({"device": device, "precision": "fp32"} | changes))


def curve(folder: Path) -> list[float]:
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line[name] for line in lines for name in ("train_loss", "validation_loss")]


def step(
    form: str, routing: str, implementation: str, precision: torch.dtype | None, device: str = "cuda"
) -> list[torch.Tensor]:
    """Parents and gradients of a layer, under autocast where a precision is given.

    What comes from above is rough: where poses are normed, their own multiples and what is even along them cancel, and
    rounding would be all that is left.
    """
    torch.manual_seed(0)
    shape = (32, 64, 8) if form == "linear" else (8, 9, 9, 4, 16)
    layer = CapsuleLayer(SETTINGS[form], routing, implementation).to(device)
    poses = torch.randn(shape, device=device, requires_grad=True)
    activations = torch.rand(shape[:-1], device=device)
    with torch.autocast(device, precision or torch.bfloat16, enabled=precision is not None):
        parents = layer(Capsules(poses, activations), 2).capsules.poses.float()
    upstream = torch.arange(parents.numel(), device=device).sin().view(parents.shape)
    gradients = torch.autograd.grad(parents, [poses, layer.transform.weight], upstream)
    return [parents.detach(), *gradients]


def check_step(form: str, routing: str, precision: torch.dtype | None, device: str) -> None:
    """Hold the fused step under autocast to the plain one in float32."""
    found, wanted = (step(form, routing, *how, device) for how in (("fused", precision), ("plain", None)))
    tolerance = {None: 2e-3, torch.bfloat16: 5e-2, torch.float16: 2e-2}[precision]
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours.isfinite().all()
        assert (ours.float() - theirs).norm() <= tolerance * theirs.norm()


@needs_gpu
@pytest.mark.parametrize("precision", [None, torch.bfloat16, torch.float16], ids=["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(("form", "routing"), CASES)
def test_kernels_stay_right_under_autocast(form, routing, precision):
    """They sum in float32 whatever the precision: what differs from the plain step in float32 is rounding."""
    check_step(form, routing, precision, "cuda")


@needs_gpu
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_run_in_half_precision_learns(precision, tmp_path: Path):
    half = fit(run(tmp_path / precision, "cuda", precision=precision, epochs=6)).folder
    whole = fit(run(tmp_path / "fp32", "cuda", epochs=6)).folder
    losses, wanted = curve(half), curve(whole)
    assert losses[-2] < 0.7 * losses[0]
    assert losses[-2] == pytest.approx(wanted[-2], rel=0.25)


@needs_gpu
def test_weights_of_a_gpu_answer_on_a_cpu_and_back(tmp_path: Path):
    ended = fit(run(tmp_path, "cuda"))
    model, _ = load_run(ended.folder)
    images = torch.rand(16, 1, 8, 8)
    with torch.no_grad():
        here = model(images).scores
        there = model.cuda()(images.cuda()).scores.cpu()
    torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-4)
    classifier = torchcaps.load(ended.folder)
    assert len(classifier.classes) == 10


@needs_gpu
@pytest.mark.parametrize(("first", "second"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_run_goes_on_from_the_checkpoint_of_another_device(first, second, tmp_path: Path):
    """The state is read on the CPU and goes where the run is; what was chosen on the GPU stays in it."""
    with pytest.raises(KeyboardInterrupt):
        fit(run(tmp_path / "moved", first), max_minutes=1e-9)
    (folder,) = (tmp_path / "moved").iterdir()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"device": second}))
    moved = fit(run(tmp_path / "moved", second), resume=True).folder
    whole = fit(run(tmp_path / "whole", second)).folder
    assert curve(moved) == pytest.approx(curve(whole), rel=2e-2, abs=2e-3)
    if first == "cuda":
        assert all("cuda" in each for each in load_state(RunFolder(moved).last)["forms"].values())


@needs_gpu
def test_a_cut_run_on_a_gpu_ends_as_one_that_was_not(tmp_path: Path):
    whole = fit(run(tmp_path / "whole", "cuda")).folder
    with pytest.raises(KeyboardInterrupt):
        fit(run(tmp_path / "cut", "cuda"), max_minutes=1e-9)
    forms = load_state(RunFolder(next((tmp_path / "cut").iterdir())).last)["forms"]
    ended = fit(run(tmp_path / "cut", "cuda"), resume=True).folder
    assert load_state(RunFolder(ended).last)["forms"] == forms
    assert curve(ended) == pytest.approx(curve(whole), rel=1e-3, abs=1e-4)


@needs_gpu
def test_what_was_chosen_is_no_slower_than_plain():
    """Of a network of inverted attention, by a clock of its own: what it was chosen by would agree with itself."""
    model = create_model("attention-resnet-cifar10", num_classes=10, in_channels=3, image_size=(32, 32)).cuda().train()
    with torch.autocast("cuda", torch.bfloat16):
        found = torchcaps.choose(model, torch.rand(64, 3, 32, 32, device="cuda"))
    for name, choice in found.items():
        assert choice.plain_ms is not None and choice.fused_ms is not None, name
        assert choice.form == ("fused" if choice.fused_ms < choice.plain_ms else "plain")
    images, labels = torch.rand(64, 3, 32, 32, device="cuda"), torch.randint(10, (64,), device="cuda")
    forms = chosen_forms(model)

    def train() -> None:
        with torch.autocast("cuda", torch.bfloat16):
            torch.nn.functional.cross_entropy(model(images).scores, labels).backward()

    seconds: dict[Implementation, list[float]] = {"auto": [], "plain": []}
    for _ in range(9):  # in turn; of each the first, which compiles, does not count
        for implementation, times in seconds.items():
            use_implementation(model, implementation)
            if implementation == "auto":
                set_forms(model, forms)
            train()
            times.append(timing.clock(train, torch.device("cuda")))
    chosen, plain = (median(times[1:]) for times in seconds.values())
    assert chosen <= 1.1 * plain, f"chosen takes {chosen} s, plain {plain}"


@needs_two
def test_a_kernel_runs_on_the_device_of_its_inputs():
    torch.cuda.set_device(0)
    layer = CapsuleLayer(LinearTransform(64, 10, 8, 16), "dynamic", "fused").to("cuda:1")
    poses = torch.randn(8, 64, 8, device="cuda:1")
    plain = CapsuleLayer(layer.transform, layer.routing, "plain")
    torch.testing.assert_close(
        layer(Capsules(poses), 3).capsules.poses, plain(Capsules(poses), 3).capsules.poses, rtol=1e-3, atol=1e-4
    )


@needs_two
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_devices_train_as_one(precision, tmp_path: Path):
    one, two = (fit(run(tmp_path / str(n), "cuda", processes=n, precision=precision)).folder for n in (1, 2))
    tolerance = 1e-3 if precision == "fp32" else 5e-2
    assert curve(two) == pytest.approx(curve(one), rel=tolerance, abs=tolerance)
    weights, wanted = (load_file(each / "last" / "model.safetensors") for each in (two, one))
    assert list(weights) == list(wanted)
