"""What a routing holds for backward: all distinct storages together, against the size of the votes."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import torchcaps
from torchcaps.capsules import Capsules, squash
from torchcaps.layers import CapsuleLayer, CapsuleStack, ConvTransform, LinearTransform

BATCH, CHILDREN, POSE, PARENTS, OUT = 128, 1152, 8, 10, 16
VOTES = BATCH * CHILDREN * PARENTS * OUT * 4  # bytes


def held(function, *inputs):
    """Bytes that autograd keeps after `function`: every distinct storage once, the inputs' and the weights' too."""
    kept = []

    def pack(x):
        kept.append(x)  # alive, so that no address is used twice
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = function(*inputs)
    assert out.requires_grad
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in kept}
    return sum(storages.values())


def dynamic():
    torch.manual_seed(0)
    layer = CapsuleLayer(LinearTransform(CHILDREN, PARENTS, POSE, OUT, std=0.1), "dynamic")
    stack = CapsuleStack([layer], 3)
    poses = torch.randn(BATCH, CHILDREN, POSE, requires_grad=True)
    return (lambda poses: stack(Capsules(poses))[-1].capsules.poses), poses, stack


def naive(poses, weight):
    """Dynamic routing as public code writes it: poses [b, i, d], weight [j, i, d, D]."""
    votes = torch.einsum("bid,jidm->bijm", poses, weight)
    logits, parents = torch.zeros(votes.shape[:-1]), torch.empty(0)
    for _ in range(3):
        parents = squash((logits.softmax(2)[..., None] * votes).sum(1))
        logits = logits + (votes * parents[:, None]).sum(-1)
    return parents


def test_the_measure_sees_what_the_naive_form_holds():
    function, poses, stack = dynamic()
    weight, stack.layers[0].implementation = stack.layers[0].transform.weight, "plain"
    assert held(naive, poses, weight) > 1.2 * VOTES
    torch.testing.assert_close(function(poses), naive(poses, weight), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "backend",
    [
        "eager",
        pytest.param("aot_eager", marks=pytest.mark.slow),
        pytest.param(
            "inductor",
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler"),
            ],
        ),
    ],
)
def test_dynamic_routing_holds_little(backend):
    torch.compiler.reset()
    function, poses, stack = dynamic()
    stack.layers[0].implementation = "plain"  # of the fused step: test_kernels_dynamic.py
    if backend != "eager":
        function = torch.compile(function, fullgraph=True, backend=backend)
        function(poses)  # what compiling itself keeps is not part of a step
    assert held(function, poses) <= 0.6 * VOTES


class Largest(TorchDispatchMode):
    """Bytes of the largest storage that an operation gives."""

    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, torch.Tensor):
                self.bytes = max(self.bytes, x.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize(
    ("routing", "options"),
    [
        ("dynamic", {}),
        ("em", {}),
        ("inverted-attention", {}),
        ("fm", {}),
        ("fm", {"l2": False}),
        ("fm", {"batch_norm": "pair"}),
    ],
)
@pytest.mark.parametrize("implementation", ["plain", "auto"])
def test_no_tensor_of_the_votes_size_is_ever_made(routing, options, implementation):
    """The largest tensor of a forward pass is a quarter of the votes at most."""
    layer = CapsuleLayer(ConvTransform(8, 32, 16, 16, stride=2, matrix=True), routing, implementation, **options)
    capsules = Capsules(torch.randn(4, 9, 9, 8, 16), torch.rand(4, 9, 9, 8))
    votes = 4 * 4 * 4 * 72 * 32 * 16 * 4  # bytes: b, p, i, j, d, float32
    with Largest() as largest:
        layer(capsules, 3)
    assert 0 < largest.bytes <= votes / 4


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
@pytest.mark.parametrize(
    ("device", "environment", "held"),
    [
        ("cpu", {}, True),
        pytest.param("cuda:0", {}, False, marks=pytest.mark.slow),
        pytest.param("cpu", {"MALLOC_MMAP_MAX_": "65536"}, False, marks=pytest.mark.slow),
    ],
)
def test_what_is_freed_is_given_out_again_while_a_run_goes_on(device, environment, held) -> None:
    """Pages that the system clears: a block of 64 MiB has 16,384, which are asked for once where it is kept."""
    code = f"""
import resource, torch
from torchcaps.memory import kept

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(16 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(pages(), end=" ")
with kept({device!r}):
    print(min(pages() for _ in range(9)), end=" ")  # something small may lie behind the first blocks for good
print(pages())
"""
    usual = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    answer = subprocess.run(
        [sys.executable, "-c", code], env=usual | environment, capture_output=True, text=True, check=True
    )
    before, within, after = map(int, answer.stdout.split())
    assert min(before, after) > 16_000
    assert (within < 100) is held and (within > 16_000) is not held


def test_the_allocator_is_settled_in_one_place_so_that_the_environment_can_turn_it_off() -> None:
    sources = Path(torchcaps.__file__).parent.rglob("*.py")
    assert [each.name for each in sources if "mallopt" in each.read_text(encoding="utf-8")] == ["memory.py"]
