"""The loop over bits: equal to the packed layer step by step, at odd sizes, for any scales and threads."""

import copy

import pytest
import torch

from torchcaps.capsules import Capsules
from torchcaps.kernels.packed.loop import PackedLoop, fits_loop
from torchcaps.layers import CapsuleLayer, CapsuleStack, ConvTransform, LinearTransform, PackedStack, pack, pack_stack

SMALL = [(7, 3, 5, 4, 2), (1, 1, 1, 1, 1), (33, 11, 8, 16, 3), (18, 17, 9, 20, 2), (5, 33, 33, 7, 1), (4, 2, 64, 32, 2)]
BATCHES = [(9, 3, 5, 4, 14), (1, 1, 1, 1, 31), (33, 11, 8, 16, 40), (18, 17, 9, 18, 30), (5, 33, 33, 7, 15)]
SIZES = [*SMALL, *BATCHES]  # the last is the number of images; from 12 on they lie in lanes


def stack(children, parents, pose, parent_pose, routing="xnodr", iterations=3, **options):
    torch.manual_seed(children)
    transform = LinearTransform(children, parents, pose, parent_pose, std=2.0)
    return CapsuleStack([CapsuleLayer(transform, routing, "plain", **options)], iterations)


def inputs(batch, children, pose):
    """With exact zeros, as a ReLU leaves them, and one image in which nothing is there."""
    poses = torch.randn(batch, children, pose).relu()
    poses[0] = 0
    return torch.cat((poses, torch.randn(2, children, pose)))


@pytest.mark.parametrize("scales", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("children", "parents", "pose", "parent_pose", "batch"), SIZES)
def test_the_loop_equals_the_steps(children, parents, pose, parent_pose, batch, scales):
    plain = stack(children, parents, pose, parent_pose)
    packed = pack(plain.layers[0], scales)
    poses = inputs(batch, children, pose)
    for iterations in (1, 2, 3):
        with torch.no_grad():
            wanted = CapsuleStack([packed], iterations)(Capsules(poses))[-1].capsules.poses
        torch.testing.assert_close(PackedLoop(packed)(poses, iterations), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("images", [3, 70])
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_share_children_or_images(threads, images):
    plain, before = stack(33, 11, 8, 16), torch.get_num_threads()
    loop, poses = PackedLoop(pack(plain.layers[0])), inputs(images, 33, 8)
    alone = loop(poses)
    torch.set_num_threads(threads)
    try:
        torch.testing.assert_close(loop(poses), alone)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("shape", [(2, 32, 8), (2, 34, 8), (2, 33, 7), (20, 34, 8), (2, 33, 9)])
def test_children_that_do_not_fit_are_refused(shape):
    packed = pack_stack(stack(33, 11, 8, 16))
    with torch.no_grad(), pytest.raises(ValueError, match=rf"children are \({shape[1]}, {shape[2]}\).*takes \(33, 8\)"):
        packed(Capsules(torch.randn(shape)))


def test_no_images_have_no_parents():
    with torch.no_grad():
        parents = pack_stack(stack(33, 11, 8, 16))(Capsules(torch.randn(0, 33, 8)))[-1].capsules.poses
    assert parents.shape == (0, 11, 16)


def test_what_a_pass_reads():
    loop = PackedLoop(pack(stack(160, 10, 8, 16).layers[0], torch.float16))
    assert loop.nbytes == 160 * 10 * 8 * 16 * (1 + 16 / 8) / 8  # bits for each weight, over 8
    loop = PackedLoop(pack(stack(20, 10, 16, 16).layers[0]))
    assert loop.nbytes == 20 * 10 * 16 * 16 * (1 + 32 / 16) / 8


def test_a_packed_stack_runs_the_loop_in_inference_only():
    plain = stack(9, 4, 8, 16)
    packed = pack_stack(plain)
    assert isinstance(packed, PackedStack)
    poses = torch.randn(2, 3, 3, 1, 8)  # positions, which are flattened
    wanted = plain(Capsules(poses))[-1].capsules.poses
    step = packed(Capsules(poses))[-1]
    assert step.state is not None  # with gradients: step by step
    torch.testing.assert_close(step.capsules.poses, wanted)
    with torch.no_grad():
        step = packed(Capsules(poses))[-1]
        seen = []
        packed(Capsules(poses), visit=lambda *each: seen.append(each))
    assert step.state is None and step.coupling is None
    torch.testing.assert_close(step.capsules.poses, wanted)
    assert len(seen) == 3 and seen[-1][2].coupling is not None


@pytest.mark.parametrize("assign", [True, False])
def test_a_packed_stack_sees_new_bits(assign):
    packed, poses = pack_stack(stack(9, 4, 8, 16)), torch.randn(2, 9, 8)
    with torch.no_grad():
        before = packed(Capsules(poses))[-1].capsules.poses
    again = copy.deepcopy(packed)
    state = {name: tensor.flip(0) if name.endswith("bits") else tensor for name, tensor in packed.state_dict().items()}
    again.load_state_dict(state, assign=assign)
    with torch.no_grad():
        fused = again(Capsules(poses))[-1].capsules.poses
        torch.testing.assert_close(packed(Capsules(poses))[-1].capsules.poses, before)
    torch.testing.assert_close(fused, again(Capsules(poses))[-1].capsules.poses)
    assert (fused - before).abs().max() > 0.01


def test_layers_that_do_not_fit_take_steps():
    for layer in (
        stack(6, 3, 4, 4, "xnodr-xnidr"),
        stack(6, 3, 4, 4, threshold="midpoint"),
        stack(6, 3, 4, 4, over="children"),
        stack(6, 3, 4, 4, bias=True),
        stack(6, 3, 65, 4),
    ):
        for parameter in layer.layers[0].routing.parameters():
            torch.nn.init.normal_(parameter)
        packed = pack_stack(layer)
        assert not fits_loop(packed.layers[0])
        poses = torch.randn(2, 6, layer.layers[0].transform.shape[-2])
        with torch.no_grad():
            torch.testing.assert_close(
                packed(Capsules(poses))[-1].capsules.poses, layer(Capsules(poses))[-1].capsules.poses
            )
    with pytest.raises(ValueError, match="packed loop is for linear layers"):
        PackedLoop(pack(CapsuleLayer(ConvTransform(2, 3, 4, 4), "xnodr")))
    with pytest.raises(ValueError, match="no layer of the stack has binary weights"):
        pack_stack(stack(6, 3, 4, 4, "xnidr"))
