"""Derivatives by `torch.func`, in forward mode and twice, of every routing, fused and plain: right, or refused."""

import copy

import pytest
import torch
from fused import Calls
from layers import children, layer
from routings import EXACT, UNFIT, every_variant, first_quickly
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.utils.checkpoint import checkpoint

from torchcaps.capsules import Capsules
from torchcaps.layers import CapsuleLayer, CapsuleStack, LinearTransform
from torchcaps.packed import pack

every_layer = pytest.mark.parametrize("name", ["linear-vector", "conv-padded"])
CLOSE = {"rtol": 1e-7, "atol": 1e-10}
STEP = 1e-5  # of a finite difference


def forms(name, routing, options):
    """The layer as it comes and, where that is fused, its plain twin; batch norm by its running statistics."""
    if name in UNFIT.get(routing, ()):
        pytest.skip("signs of sums that cancel are chance")
    module = layer(name, routing, **options)
    if module.routing.spec.name in ("fm", "variational-bayes"):
        module.eval()
    plain = copy.deepcopy(module)
    plain.implementation = "plain"
    return [plain, module] if module.fused else [plain]


def result_of(module, name):
    """What the layer gives, flat, as a function of its weights and parameters and of two images' children."""
    capsules, generator = children(name), torch.Generator().manual_seed(3)
    tensors = {key: x.detach() for key, x in module.named_parameters()} | {"": capsules.poses}

    def function(tensors):
        state = {key: x for key, x in tensors.items() if key}
        step = functional_call(module, state, (Capsules(tensors[""], capsules.activations), 2))
        return torch.cat([x.flatten() for x in step.capsules if x is not None])

    direction = {key: torch.randn(x.shape, generator=generator, dtype=x.dtype) for key, x in tensors.items()}
    return function, tensors, direction


def along(gradients, direction):
    return sum((gradients[key] * direction[key]).sum() for key in gradients)


def score(function):
    """A number that bends in all that the function gives."""

    def of(tensors):
        out = function(tensors)
        return (out * torch.linspace(-1, 1, len(out), dtype=out.dtype).sin()).sum() + out.square().sum()

    return of


def backward(function, tensors, again=False):
    leaves = {key: x.clone().requires_grad_() for key, x in tensors.items()}
    found = torch.autograd.grad(score(function)(leaves), list(leaves.values()), create_graph=again, allow_unused=True)
    zero = {key: torch.zeros_like(x) for key, x in leaves.items()}
    return leaves, {key: zero[key] if x is None else x for key, x in zip(leaves, found, strict=True)}


def moved(tensors, direction, step):
    return {key: x + step * direction[key] for key, x in tensors.items()}


@every_layer
@first_quickly
def test_first_derivatives_equal_those_of_backward(name, routing, options):
    wanted = slope = None
    for module in forms(name, routing, options):
        function, tensors, direction = result_of(module, name)
        if wanted is None:
            wanted = backward(function, tensors)[1]
            slope = along(wanted, direction)
        with Calls() as calls:
            found = grad(score(function))(tensors)
            forward = jvp(score(function), (tensors,), (direction,))[1]
            with forward_ad.dual_level():
                dual = {key: forward_ad.make_dual(x, direction[key]) for key, x in tensors.items()}
                tangent = forward_ad.unpack_dual(score(function)(dual)).tangent
        assert not calls.names  # which would have had no derivative
        torch.testing.assert_close(found, wanted, **CLOSE)
        torch.testing.assert_close(forward, slope, **CLOSE)
        torch.testing.assert_close(tangent, slope, **CLOSE)
    if (routing, options) in EXACT:
        ends = [score(function)(moved(tensors, direction, step)) for step in (STEP, -STEP)]  # pyright: ignore[reportPossiblyUnboundVariable]
        torch.testing.assert_close((ends[0] - ends[1]) / (2 * STEP), slope, rtol=1e-5, atol=1e-7)


@first_quickly
def test_jacobians_equal_row_by_row(routing, options):
    name = "linear-one-child" if routing != "fm" else "linear-vector"
    for module in forms(name, routing, options):
        function, tensors, _ = result_of(module, name)
        poses = tensors[""].clone().requires_grad_()

        def of_poses(poses, function=function, tensors=tensors):
            return function(tensors | {"": poses})

        out = of_poses(poses)
        rows = [torch.autograd.grad(x, poses, retain_graph=True)[0] for x in out]
        wanted = torch.stack(rows)
        torch.testing.assert_close(jacrev(of_poses)(tensors[""]), wanted, **CLOSE)
        torch.testing.assert_close(jacfwd(of_poses)(tensors[""]), wanted, **CLOSE)
        vectorised = torch.autograd.functional.jacobian(of_poses, tensors[""], vectorize=True)
        torch.testing.assert_close(vectorised, wanted, **CLOSE)


@every_layer
@first_quickly
def test_second_derivatives_equal_the_plain_ones(name, routing, options):
    wanted = None
    for module in forms(name, routing, options):
        function, tensors, direction = result_of(module, name)
        leaves, first = backward(function, tensors, again=True)
        found = torch.autograd.grad(along(first, direction), list(leaves.values()), allow_unused=True)
        found = [torch.zeros_like(x) if d is None else d for d, x in zip(found, leaves.values(), strict=True)]
        wanted = wanted or found
        torch.testing.assert_close(found, wanted, **CLOSE)
    if (routing, options) in EXACT:
        ends = [backward(function, moved(tensors, direction, step))[1] for step in (STEP, -STEP)]  # pyright: ignore[reportPossiblyUnboundVariable]
        for d, up, down in zip(wanted, *(end.values() for end in ends), strict=True):
            torch.testing.assert_close((up - down) / (2 * STEP), d, rtol=1e-4, atol=1e-4 * d.abs().max().item() + 1e-7)


@pytest.mark.parametrize(("routing", "options"), [("dynamic", {}), ("em", {"temperature": 0.5}), ("fm", {})])
def test_hessians_equal_the_second_derivatives(routing, options):
    for module in forms("linear-one-parent", routing, options):
        function, tensors, direction = result_of(module, "linear-one-parent")

        def of_poses(poses, function=function, tensors=tensors):
            return score(function)(tensors | {"": poses})

        poses = tensors[""].clone().requires_grad_()
        (first,) = torch.autograd.grad(of_poses(poses), poses, create_graph=True)
        (wanted,) = torch.autograd.grad((first * direction[""]).sum(), poses)
        for second in (hessian(of_poses), lambda x, f=of_poses: torch.autograd.functional.hessian(f, x)):
            found = (second(tensors[""]).flatten(poses.ndim) @ direction[""].flatten()).view_as(poses)
            torch.testing.assert_close(found, wanted, **CLOSE)


@every_layer
@every_variant
def test_vmap_equals_one_after_another(name, routing, options):
    for module in forms(name, routing, options):
        function, tensors, direction = result_of(module, name)
        several = [tensors | {"": step * direction[""]} for step in (0.5, 1.0, 2.0)]
        poses = torch.stack([each[""] for each in several])
        found = vmap(lambda x, f=function, t=tensors: f(t | {"": x}))(poses)
        torch.testing.assert_close(found, torch.stack([function(each) for each in several]), **CLOSE)


@every_layer
@every_variant
def test_a_checkpoint_around_a_layer_changes_nothing(name, routing, options):
    for module in forms(name, routing, options):
        function, tensors, _ = result_of(module, name)
        poses = tensors[""].clone().requires_grad_()

        def total(poses, function=function, tensors=tensors):
            return score(function)(tensors | {"": poses})

        (wanted,) = torch.autograd.grad(total(poses), poses)
        (found,) = torch.autograd.grad(checkpoint(total, poses, use_reentrant=False), poses)
        torch.testing.assert_close(found, wanted, **CLOSE)


@pytest.mark.parametrize("implementation", ["plain", "fused"])
def test_statistics_that_a_transform_cannot_keep_are_refused(implementation):
    transform = LinearTransform(5, 2, 3, 3)
    module = CapsuleLayer(transform, "fm", implementation)
    poses = torch.randn(4, 5, 3)

    def total(poses):
        return module(Capsules(poses)).capsules.poses.sum()

    with pytest.raises(RuntimeError, match=r"call eval\(\) first, or hand its buffers to the transformed function"):
        grad(total)(poses)
    buffers = {name: x.clone() for name, x in module.named_buffers()}

    def of_all(poses, buffers):
        return functional_call(module, buffers, (Capsules(poses),)).capsules.poses.sum(), buffers

    found, after = grad(of_all, has_aux=True)(poses, buffers)
    leaf = poses.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(total(leaf), leaf)
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(after, dict(module.named_buffers()))


def test_packed_layers_have_derivatives_without_gradients_too():
    """Their loop of bits has none, so it is left out."""
    torch.manual_seed(0)
    stack = pack(CapsuleStack([CapsuleLayer(LinearTransform(6, 3, 8, 4), "xnodr")], 2))
    poses, direction = torch.randn(2, 6, 8), torch.randn(2, 6, 8)

    def function(poses):
        return stack(Capsules(poses))[-1].capsules.poses

    with torch.no_grad():
        looped = function(poses)
        out, slope = jvp(function, (poses,), (direction,))  # pyright: ignore[reportAssignmentType] - no aux
        found = vmap(function)(torch.stack([poses, -poses]))
    torch.testing.assert_close(out, looped, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[0], looped, rtol=1e-4, atol=1e-5)
    leaf = poses.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(leaf).sum(), leaf)
    torch.testing.assert_close(slope.sum(), (gradient * direction).sum(), rtol=1e-4, atol=1e-5)
