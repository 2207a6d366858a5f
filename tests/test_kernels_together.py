"""All fused steps in one network: trained by two processes as by one, and compiled by inductor."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from fused import CONV, LINEAR
from lightning_fabric import Fabric
from safetensors.torch import load_file, save_file
from tiny import tiny_config
from torch import Tensor, nn

from torchcaps.capsules import Capsules
from torchcaps.layers import CapsuleLayer, CapsuleStack, ConvTransform, LinearTransform, use_implementation
from torchcaps.layers.transforms import Transform
from torchcaps.train.processes import build_fabric, launch

IMAGES = 6


class Bench(nn.Module):
    """A layer of each fused routing, linear and convolutional, beside each other; the mean of what they give."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.ModuleDict({name: self._stack(LinearTransform(50, 3, 4, 4), name) for name in LINEAR})
        self.conv = nn.ModuleDict({name: self._stack(ConvTransform(2, 3, 4, 4, stride=2), name) for name in CONV})

    @staticmethod
    def _stack(transform: Transform, routing: str) -> CapsuleStack:
        options = {"batch_norm": None} if routing == "fm" else {}  # whose statistics are of a process's own images
        return CapsuleStack([CapsuleLayer(transform, routing, "fused", **options)], 2)

    def forward(self, poses: Tensor, activations: Tensor) -> Tensor:
        """Children [b, 5, 5, 2, 4] and [b, 5, 5, 2] -> a number."""
        maps = Capsules(poses, activations)
        flat = Capsules(poses.flatten(1, 3), activations.flatten(1, 3))
        ends = [stack(flat)[-1].capsules for stack in self.linear.values()]
        ends += [stack(maps)[-1].capsules for stack in self.conv.values()]
        sizes = [end.poses.square().mean() for end in ends]
        sizes += [end.activations.mean() for end in ends if end.activations is not None]
        return torch.stack(sizes).mean()


def children() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(IMAGES, 5, 5, 2, 4, generator=generator), torch.rand(IMAGES, 5, 5, 2, generator=generator)


def save_gradients(fabric: Fabric, path: Path) -> None:
    """Those of the mean over all images, of which each process sees its share."""
    bench = Bench()
    module = fabric.setup_module(bench)
    share = slice(fabric.global_rank, IMAGES, fabric.world_size)
    fabric.backward(module(*(x[share] for x in children())))
    if fabric.is_global_zero:
        save_file({name: p.grad for name, p in bench.named_parameters() if p.grad is not None}, path)


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    files = {count: tmp_path / f"{count}.safetensors" for count in (1, 2)}
    save_gradients(build_fabric(tiny_config(tmp_path)), files[1])
    launch(build_fabric(tiny_config(tmp_path, processes=2)), partial(save_gradients, path=files[2]))
    one, two = map(load_file, files.values())
    assert len(one) >= len(LINEAR) + len(CONV) and set(one) == set(two)
    for name, expected in one.items():
        torch.testing.assert_close(two[name], expected, rtol=1e-4, atol=1e-7, msg=name)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no C++ compiler")
def test_inductor_gives_the_same() -> None:
    plain, compiled = Bench(), Bench()
    losses = [(plain(*children())), torch.compile(compiled)(*children())]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(losses[1], losses[0])
    for (name, p), q in zip(plain.named_parameters(), compiled.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), name
        if p.grad is not None:
            torch.testing.assert_close(q.grad, p.grad, rtol=1e-3, atol=1e-6, msg=name)


ROUTINGS = ("dynamic", "xnodr", "xnidr", "inverted-attention", "em", "variational-bayes")
MADE: dict[str, tuple[Callable[[], Transform], tuple[int, ...]]] = {
    "linear": (lambda: LinearTransform(40, 3, 4, 4, matrix=True), (40, 4)),
    "conv": (lambda: ConvTransform(2, 3, 4, 4, 2, matrix=True), (5, 5, 2, 4)),
}


def first_step(routing: str, shape: str, images: int) -> tuple[CapsuleLayer, Any, Any]:
    """A layer, votes of several images, and the state that its first step leaves of them."""
    torch.manual_seed(0)
    transform, children = MADE[shape]
    module = CapsuleLayer(transform(), routing)
    capsules = Capsules(torch.randn(images, *children), torch.rand(images, *children[:-1]))
    votes = module.votes(capsules)
    return module, votes, module.step(votes, module.routing.start(votes), 0).state


def cut(state: Any, images: int) -> Any:
    """A state of the first of its images."""
    if isinstance(state, Tensor):
        return state[:images]
    return None if state is None else type(state)(*(cut(each, images) for each in state))


@pytest.mark.parametrize("shape", MADE)
@pytest.mark.parametrize("routing", ROUTINGS)
def test_a_state_of_other_images_is_refused(routing: str, shape: str) -> None:
    """Loops read unchecked: one of more images than there are votes had been read past the end of these."""
    module, votes, state = first_step(routing, shape, 20)
    fewer = first_step(routing, shape, 8)[1]
    for each in (fewer, votes):
        with pytest.raises((ValueError, RuntimeError), match=r"expand|must be|must match"):
            module.step(each, cut(state, 12), 1)


@pytest.mark.parametrize("shape", MADE)
@pytest.mark.parametrize("routing", ROUTINGS)
def test_a_state_of_one_image_is_that_of_all(routing: str, shape: str) -> None:
    module, votes, state = first_step(routing, shape, 20)
    use_implementation(module, "fused")
    found = module.step(votes, cut(state, 1), 1)
    use_implementation(module, "plain")
    wanted = module.step(votes, cut(state, 1), 1)
    torch.testing.assert_close(found.capsules.poses, wanted.capsules.poses, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("images", [1, 20])
def test_numbers_that_broadcast_are_read_as_if_they_were_whole(images: int) -> None:
    torch.manual_seed(0)
    for changes in ({"bias": True}, {"start": "learnt"}):
        module = CapsuleLayer(LinearTransform(64, 10, 8, 16), "dynamic", **changes).eval()
        name = "bias" if "bias" in changes else "initial"
        value = getattr(module.routing, name)
        setattr(module.routing, name, nn.Parameter(torch.randn_like(value)[:1]))
        poses = Capsules(torch.randn(images, 64, 8))
        with torch.no_grad():
            found = module(poses, 3).capsules.poses
            use_implementation(module, "plain")
            torch.testing.assert_close(found, module(poses, 3).capsules.poses, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("routing", ["em", "variational-bayes", "inverted-attention", "dynamic", "fm"])
def test_a_gradient_is_the_same_where_it_is_to_be_differentiated_again(routing: str) -> None:
    """Under autocast too, where the plain form that is computed anew had been rounded to half precision."""
    torch.manual_seed(0)
    module = CapsuleLayer(ConvTransform(2, 3, 4, 4, matrix=True), routing)
    capsules = Capsules(torch.randn(2, 5, 5, 2, 4), torch.rand(2, 5, 5, 2))
    weight = module.transform.weight
    found = []
    for again in (False, True):
        with torch.autocast("cpu", torch.bfloat16):
            loss = module(capsules, 2).capsules.poses.float().square().sum()
            found.append(torch.autograd.grad(loss, weight, create_graph=again)[0].detach())
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-3 * found[0].abs().max().item())
