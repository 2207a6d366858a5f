"""What tests of fused steps share: a layer twice, plain and fused, what each gives, and what each holds."""

import contextlib
import copy

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from torchcaps.capsules import Capsules
from torchcaps.layers import CapsuleLayer, CapsuleStack, LinearTransform

# routings with a fused step of linear capsules, and of windows
LINEAR = (
    "dynamic",
    "xnodr",
    "xnidr",
    "xnodr-xnidr",
    "em",
    "fm",
    "inverted-attention",
    "inverted-attention-c",
    "self-attention",
    "variational-bayes",
)
CONV = LINEAR  # of poses of at least three columns
# name: (batch, children, child pose, parents, parent pose, matrix)
SIZES = {
    "odd": (3, 63, 5, 7, 3, False),
    "vector": (17, 9, 8, 10, 16, False),
    "matrix": (5, 7, 16, 6, 16, True),
    "wide": (2, 3, 4, 2, 6, True),
    "one child": (1, 1, 3, 4, 2, False),
    "one parent": (33, 6, 3, 1, 2, False),
}


@contextlib.contextmanager
def memory_of_nan():
    """What is not written is NaN."""
    before = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = before


def stack(size, routing, dtype, iterations=3, **options):
    """A fused stack of one layer whose every parameter is random, and poses for it."""
    b, i, c, j, d, matrix = SIZES[size]
    torch.manual_seed(0)
    layer = CapsuleLayer(LinearTransform(i, j, c, d, matrix=matrix), routing, "fused", **options)
    for parameter in layer.routing.parameters():
        torch.nn.init.normal_(parameter, mean=0.3, std=0.5)
    poses = torch.randn(b, i, c, dtype=torch.float64).to(dtype)
    return CapsuleStack([layer], iterations).to(dtype), poses


def twin(module):
    """The same parameters, plain."""
    module = copy.deepcopy(module)
    for layer in module.layers:
        layer.implementation = "plain"
    return module


def outcome(module, poses, activations=None):
    """Everything a step gives, the gradients of children and parameters, and what the module's buffers become."""
    poses = poses.clone().requires_grad_()
    activations = None if activations is None else activations.clone().requires_grad_()
    step = module(Capsules(poses, activations))[-1]
    state = step.state if isinstance(step.state, tuple) else (step.state,)
    outs = [x for x in (*step.capsules, *state) if x is not None]
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype) for x in outs]
    sum((x * w).sum() for x, w in zip(outs, weights, strict=True)).backward()
    grads = {name: x.grad for name, x in module.named_parameters()}
    grads["poses"] = poses.grad
    if activations is not None:
        grads["activations"] = activations.grad
    return [x.detach() for x in outs], grads, dict(module.named_buffers())


def check(module, poses, rtol, atol, activations=None):
    """The fused stack against its plain twin: outputs, every gradient relative to the largest of its own, buffers."""
    plain, plain_grads, plain_buffers = outcome(twin(module), poses, activations)
    fused, grads, buffers = outcome(module, poses, activations)
    for a, e in zip(fused, plain, strict=True):
        assert a.dtype == e.dtype
        torch.testing.assert_close(a, e, rtol=rtol, atol=atol)
    for name, e in plain_grads.items():
        assert (grads[name] is None) == (e is None), name
        if e is not None:
            torch.testing.assert_close(grads[name], e, rtol=rtol, atol=atol * max(1.0, e.abs().max().item()), msg=name)
    for name, e in plain_buffers.items():
        torch.testing.assert_close(buffers[name], e, rtol=rtol, atol=atol)


def held(function, *inputs):
    """Bytes of the distinct storages that autograd keeps after `function`, and of the largest."""
    kept = []

    def pack(x):
        kept.append(x)  # alive, so that no address is used twice
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = function(*inputs)
    assert out.requires_grad
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in kept}
    return sum(storages.values()), max(storages.values())


def largest_allocation(function):
    """Bytes of the largest single allocation while `function` runs, as torch's profiler sees it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    found = [event.nbytes() for event in _memory_events(profile)]
    assert found
    return max(found)


def _memory_events(profile):
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            yield event


class Calls(TorchDispatchMode):
    """How often each operation of this library ran."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "torchcaps":
            self.names.append(func.__name__.split(".")[0])
        return func(*args, **(kwargs or {}))
