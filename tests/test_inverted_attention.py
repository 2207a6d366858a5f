"""Inverted attention: the stack's two schedules, and the identities of its first iteration."""

import numpy as np
import oracles
import pytest
import torch
import torch.nn.functional as F
from layers import children, layer, seen

from torchcaps.capsules import Capsules
from torchcaps.layers import CapsuleLayer, CapsuleStack, ConvTransform, LinearTransform


def attention_stack(iterations, schedule):
    """Two convolutional layers and a linear one, on 7x6 positions of 2 capsules of 2x2."""
    torch.manual_seed(0)
    transforms = [
        ConvTransform(2, 3, 4, 4, kernel=3, stride=2, matrix=True),  # 7x6 -> 3x2
        ConvTransform(3, 2, 4, 4, kernel=2, stride=1, matrix=True),  # 3x2 -> 2x1
        LinearTransform(4, 3, 4, 4, matrix=True),
    ]
    stack = CapsuleStack([CapsuleLayer(t, "inverted-attention") for t in transforms], iterations, schedule).double()
    for parameter in stack.parameters():
        torch.nn.init.normal_(parameter, mean=0.2, std=0.7)
    return stack, Capsules(torch.randn(2, 7, 6, 2, 4, dtype=torch.float64))


@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
def test_concurrent_attention_equals_procedure_2(iterations):
    stack, primary = attention_stack(iterations, "concurrent")
    spaces = [(7, 6), (3, 2), (2, 1), ()]

    def attend(level, below, parents):
        module = stack.layers[level]
        truth = seen(module.transform, Capsules(torch.from_numpy(below)))
        if parents is None:
            parents = np.zeros((truth.shape[0], truth.shape[1], truth.shape[3], truth.shape[4]))
        gain, bias = (x.detach().numpy() for x in (module.routing.norm.weight, module.routing.norm.bias))
        return oracles.inverted_attention_step(truth, parents, gain, bias, module.routing.scale)

    def placed(parents, level):
        return parents.reshape(len(parents), *spaces[level + 1], *parents.shape[2:]) if level < 2 else parents

    poses = [primary.poses.numpy()]
    parents: list = []
    for level in range(3):
        parents.append(attend(level, poses[level], None))
        poses.append(placed(parents[level], level))
    for _ in range(iterations - 1):
        parents = [attend(level, poses[level], parents[level]) for level in range(3)]
        poses = [poses[0], *(placed(parents[level], level) for level in range(3))]
    np.testing.assert_allclose(stack(primary)[-1].capsules.poses.detach(), poses[3][:, 0], rtol=1e-10, atol=1e-12)


def test_concurrent_stack_leaves_out_the_steps_that_reach_nothing():
    stack, primary = attention_stack(2, "concurrent")
    assert stack.plan() == [(0, 0), (1, 0), (2, 0), (2, 1)]
    stack.iterations = 4
    assert stack.plan() == [(0, 0), (1, 0), (2, 0), (2, 1), (1, 1), (0, 1), (2, 2), (1, 2), (2, 3)]
    visited = []
    stack(primary, visit=lambda level, t, step: visited.append((level, t)))
    assert visited == stack.plan()
    single, _ = attention_stack(2, "sequential")
    assert single.plan() == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]


def test_the_first_iteration_from_zero_is_a_plain_convolution():
    """Rows of poses as images, (child, column) in and (parent, m) out as channels, W / J."""
    module, capsules = layer("conv-padded", "inverted-attention"), children("conv-padded")
    weight, poses = module.transform.weight, capsules.poses  # [j, kh, kw, i, c, m], [b, h, w, i, (r c)]
    j, kh, kw, i, c, m = weight.shape
    b, h, w, *_ = poses.shape
    images = poses.reshape(b, h, w, i, 2, c).permute(0, 4, 3, 5, 1, 2).reshape(b * 2, i * c, h, w)
    out = F.conv2d(images, weight.permute(0, 5, 3, 4, 1, 2).reshape(j * m, i * c, kh, kw) / j, stride=2, padding=1)
    out = out.reshape(b, 2, j, m, *out.shape[-2:]).permute(0, 4, 5, 2, 1, 3).flatten(-2)  # [b, y, x, j, (r m)]
    torch.testing.assert_close(module(capsules, 1).capsules.poses, module.routing.norm(out), rtol=1e-10, atol=1e-12)


def test_a_concurrent_stack_with_two_iterations_routes_in_the_last_layer_only():
    stack, primary = attention_stack(2, "concurrent")
    capsules = primary
    for module in stack.layers[:2]:
        capsules = module(capsules, 1).capsules
    wanted = stack.layers[2](capsules, 2).capsules.poses
    assert torch.equal(stack(primary)[-1].capsules.poses, wanted)


def test_iterations_can_be_changed_after_training():
    stack, primary = attention_stack(1, "sequential")
    other, _ = attention_stack(3, "sequential")
    stack.iterations = 3
    assert torch.equal(stack(primary)[-1].capsules.poses, other(primary)[-1].capsules.poses)
    with pytest.raises(ValueError, match="iterations is 0"):
        stack.iterations = 0
    with pytest.raises(ValueError, match="schedule is 'parallel'; it must be 'sequential' or 'concurrent'"):
        stack.schedule = "parallel"


@pytest.mark.parametrize("routing", ["inverted-attention", "inverted-attention-c"])
@pytest.mark.parametrize(("options", "scale"), [({}, 1.0), ({"scaled": True}, 0.5)])  # poses have 4 elements
def test_agreement_is_that_of_eq_2_unless_it_is_scaled(routing, options, scale):
    module, capsules = layer("linear-matrix", routing, **options), children("linear-matrix")
    seen = {}
    CapsuleStack([module], 2)(capsules, visit=lambda level, t, step: seen.update({t: step}))
    first = seen[0].capsules
    logits = scale * torch.einsum("bijd,bjd->bij", module.votes(capsules).dense()[:, 0], first.poses)
    if first.activations is not None:
        logits = logits + first.activations.log().unsqueeze(1)
    torch.testing.assert_close(seen[1].coupling[:, 0], logits.softmax(-1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("routing", ["inverted-attention", "inverted-attention-c"])
def test_parents_that_start_elsewhere_route_in_the_first_iteration(routing):
    capsules = children("linear-matrix")
    zero, drawn = layer("linear-matrix", routing), layer("linear-matrix", routing, start="random")
    drawn.load_state_dict({**zero.state_dict(), "routing.initial": drawn.routing.initial})
    a, b = (module(capsules, 1).capsules.poses for module in (zero, drawn))
    assert (a - b).abs().max() > 0.1
    drawn.routing.initial.zero_()
    torch.testing.assert_close(drawn(capsules, 1).capsules.poses, a, rtol=1e-10, atol=1e-12)


def test_ablation_c_heeds_the_activations_of_its_children():
    module, capsules = layer("conv-matrix", "inverted-attention-c", temperature=0.5), children("conv-matrix")
    quiet = capsules._replace(activations=torch.where(torch.arange(2) == 0, 1e-9, capsules.activations))
    a, b = module(capsules, 2).capsules, module(quiet, 2).capsules
    assert (a.poses - b.poses).abs().max() > 0.1 and (a.activations - b.activations).abs().max() > 0.01
    with pytest.raises(ValueError, match="needs activations"):
        module(Capsules(capsules.poses), 2)


def test_a_routing_that_is_not_iterative_is_taken_anew_only_where_what_it_reads_is_new():
    sizes = ((6, 4, 4, 4), (4, 3, 4, 4), (3, 2, 4, 4))

    def plan(*routings):
        layers = [CapsuleLayer(LinearTransform(*size), each) for size, each in zip(sizes, routings, strict=False)]
        return CapsuleStack(layers, 3, "concurrent").plan()

    assert plan("fm", "fm") == [(0, 0), (1, 0)]
    assert plan("fm", "dynamic") == [(0, 0), (1, 0), (1, 1), (1, 2)]
    assert plan("dynamic", "fm") == [(0, 0), (1, 0), (0, 1), (1, 2)]
    assert plan("uniform", "dynamic", "fm") == [(0, 0), (1, 0), (2, 0), (1, 1), (2, 2)]
