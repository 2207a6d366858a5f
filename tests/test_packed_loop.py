"""The loop over bits: equal to the packed layer step by step, at odd sizes, for any scales and threads."""

import copy
import gc
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from torchcaps.capsules import Capsules
from torchcaps.layers import (
    CapsuleLayer,
    CapsuleStack,
    ConvTransform,
    LinearTransform,
    PooledTransform,
    use_implementation,
)
from torchcaps.models.self_routing import NormedTransform
from torchcaps.packed import PackedLayer, PackedStack, op, pack
from torchcaps.packed.layers import _inputs, find_loop, refuses
from torchcaps.packed.op import route_packed

SMALL = [(7, 3, 5, 4, 2), (1, 1, 1, 1, 1), (33, 11, 8, 16, 3), (18, 17, 9, 20, 2), (5, 33, 33, 7, 1), (4, 2, 64, 32, 2)]
BATCHES = [(9, 3, 5, 4, 14), (1, 1, 1, 1, 31), (33, 11, 8, 16, 40), (18, 17, 9, 18, 30), (5, 33, 33, 7, 15)]
SIZES = [*SMALL, *BATCHES]  # the last is the number of images; from 12 on they lie in lanes


CHECKS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")  # there is no gradient


def stack(children, parents, pose, parent_pose, routing="xnodr", iterations=3, **options):
    torch.manual_seed(children)
    transform = LinearTransform(children, parents, pose, parent_pose, std=2.0)
    return CapsuleStack([CapsuleLayer(transform, routing, "plain", **options)], iterations)


def inputs(batch, children, pose):
    """With exact zeros, as a ReLU leaves them, and one image in which nothing is there."""
    poses = torch.randn(batch, children, pose).relu()
    poses[0] = 0
    return torch.cat((poses, torch.randn(2, children, pose)))


def build_loop(layer):
    """The loop of a layer that it takes."""
    assert refuses(layer) is None
    return find_loop(*_inputs(layer))


def both(packed, poses, iterations):
    """Of a packed layer, by its loop, and by its steps in float64, in which no sum of signs cancels by chance."""
    layer = copy.deepcopy(packed).double()
    layer.transform.scales = layer.transform.scales.to(packed.transform.scales.dtype).double()
    with torch.no_grad():
        wanted = CapsuleStack([layer], iterations)(Capsules(poses.double()))[-1].capsules.poses
    return build_loop(packed)(poses, iterations), wanted.float()


@pytest.mark.parametrize("scales", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("children", "parents", "pose", "parent_pose", "batch"), SIZES)
def test_the_loop_equals_the_steps(children, parents, pose, parent_pose, batch, scales):
    packed = pack(stack(children, parents, pose, parent_pose).layers[0], scales)
    poses = inputs(batch, children, pose)
    for iterations in (1, 2, 3):
        torch.testing.assert_close(*both(packed, poses, iterations), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("threshold", ["zero", "midpoint"])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("routing", ["xnodr", "xnodr-xnidr"])
@pytest.mark.parametrize(("children", "parents", "pose", "parent_pose", "batch"), [SMALL[2], BATCHES[3], BATCHES[0]])
def test_the_loop_takes_both_thresholds_both_projections_and_a_bias(
    children, parents, pose, parent_pose, batch, routing, bias, threshold
):
    plain = stack(children, parents, pose, parent_pose, routing, bias=bias, threshold=threshold)
    if bias:
        plain.layers[0].routing.bias.data.normal_()
    plain.layers[0].transform.weight.data[:, :2, :, 0] = 0  # whose votes are 0, and have the sign -1
    packed = pack(plain.layers[0])
    poses = inputs(batch, children, pose)
    found, wanted = both(packed, poses, 3)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    other = {"xnodr": "xnodr-xnidr", "xnodr-xnidr": "xnodr"}[routing]
    changed = stack(children, parents, pose, parent_pose, other, bias=bias, threshold=threshold)
    changed.load_state_dict(plain.state_dict())
    assert (changed(Capsules(poses))[-1].capsules.poses - found).abs().max() > 1e-4  # so that it is no other routing's


@pytest.mark.parametrize("images", [3, 70])
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_share_children_or_images(threads, images):
    plain, before = stack(33, 11, 8, 16), torch.get_num_threads()
    loop, poses = build_loop(pack(plain.layers[0])), inputs(images, 33, 8)
    alone = loop(poses)
    torch.set_num_threads(threads)
    try:
        torch.testing.assert_close(loop(poses), alone)
    finally:
        torch.set_num_threads(before)


def test_users_in_several_threads_do_not_meet_in_the_memory_that_is_kept():
    loop = build_loop(pack(stack(160, 10, 8, 16).eval()).layers[0])
    poses = [torch.randn(4 + n % 2, 160, 8) for n in range(8)]  # sizes in turn, so that what is kept is made anew
    wanted = [loop(each).clone() for each in poses]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: loop(poses[n % 8]), range(3000)))
    assert all(torch.equal(found[n], wanted[n % 8]) for n in range(3000))


@pytest.mark.parametrize("shape", [(2, 32, 8), (2, 34, 8), (2, 33, 7), (20, 34, 8), (2, 33, 9)])
def test_children_that_do_not_fit_are_refused(shape):
    packed = pack(stack(33, 11, 8, 16))
    with torch.no_grad(), pytest.raises(ValueError, match=rf"children are \({shape[1]}, {shape[2]}\).*takes \(33, 8\)"):
        packed(Capsules(torch.randn(shape)))


def test_no_images_have_no_parents():
    with torch.no_grad():
        parents = pack(stack(33, 11, 8, 16))(Capsules(torch.randn(0, 33, 8)))[-1].capsules.poses
    assert parents.shape == (0, 11, 16)


def test_what_a_pass_reads():
    loop = build_loop(pack(stack(160, 10, 8, 16).layers[0], torch.float16))
    assert loop.nbytes == 160 * 10 * 8 * 16 * (1 + 16 / 8) / 8  # bits for each weight, over 8
    loop = build_loop(pack(stack(20, 10, 16, 16).layers[0]))
    assert loop.nbytes == 20 * 10 * 16 * 16 * (1 + 32 / 16) / 8


def test_the_loop_serves_wherever_no_gradient_is_asked_for():
    plain = stack(9, 4, 8, 16)
    packed = pack(plain)
    assert isinstance(packed, PackedStack) and not packed.training
    poses = torch.randn(2, 3, 3, 1, 8)  # positions, which are flattened
    wanted = plain(Capsules(poses))[-1].capsules.poses.detach()
    seen, layer = [], packed.layers[0]
    packed(Capsules(poses), visit=lambda *each: seen.append(each))
    assert len(seen) == 3 and seen[-1][2].coupling is not None
    for looped, step in (
        (True, packed(Capsules(poses))[-1]),
        (True, layer(Capsules(poses), 3)),
        (False, packed(Capsules(poses.clone().requires_grad_()))[-1]),
        (False, layer(Capsules(poses.clone().requires_grad_()), 3)),
    ):
        assert (step.state is None) == looped
        torch.testing.assert_close(step.capsules.poses, wanted)
    with torch.no_grad():
        assert packed(Capsules(poses.clone().requires_grad_()))[-1].state is None


def test_a_gradient_that_is_asked_for_is_had():
    """Backward, forward, and through functorch."""
    packed, poses = pack(stack(9, 4, 8, 16)), torch.randn(2, 9, 8) / 3

    def length(x):
        return packed(Capsules(x))[-1].capsules.poses.square().sum()

    (wanted,) = torch.autograd.grad(length(poses.requires_grad_()), poses)
    assert wanted.abs().max() > 0
    poses = poses.detach()
    torch.testing.assert_close(torch.func.grad(length)(poses), wanted)
    direction = torch.randn_like(poses)
    each = torch.func.vmap(lambda x: packed(Capsules(x[None]))[-1].capsules.poses[0])(poses)
    torch.testing.assert_close(each, packed(Capsules(poses))[-1].capsules.poses)
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(length(forward_ad.make_dual(poses, direction))).tangent
    torch.testing.assert_close(tangent, (wanted * direction).sum())


def test_a_loop_that_must_be_taken_says_why_it_is_not():
    packed = pack(stack(6, 3, 4, 4))
    use_implementation(packed, "fused")
    assert packed(Capsules(torch.randn(2, 6, 4)))[-1].state is None
    use_implementation(packed, "plain")
    assert packed(Capsules(torch.randn(2, 6, 4)))[-1].state is not None
    for other, reason in (
        (CapsuleLayer(ConvTransform(2, 3, 4, 4), "xnodr"), "of linear layers of vector poses"),
        (CapsuleLayer(LinearTransform(6, 3, 4, 4, matrix=True), "xnodr"), "of linear layers of vector poses"),
        (CapsuleLayer(LinearTransform(6, 3, 65, 4), "xnodr"), "up to 64 elements, not 65"),
        (CapsuleLayer(LinearTransform(6, 3, 4, 4), "xnodr", over="children"), "over 'parents'"),
        (CapsuleLayer(LinearTransform(6, 3, 4, 4), "xnodr", start="learnt"), "from start 'zero'"),
    ):
        with pytest.raises(ValueError, match=f"implementation is 'fused', but .*{reason}"):
            pack(other).implementation = "fused"


@pytest.mark.parametrize("assign", [True, False])
def test_a_packed_stack_sees_new_bits(assign):
    packed, poses = pack(stack(9, 4, 8, 16)), torch.randn(2, 9, 8)
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
    for layer in (stack(6, 3, 4, 4, over="children"), stack(6, 3, 65, 4), stack(6, 3, 4, 4, start="learnt")):
        packed = pack(layer)
        reason = refuses(packed.layers[0])
        poses = torch.randn(2, 6, layer.layers[0].transform.shape[-2])
        torch.testing.assert_close(
            packed(Capsules(poses))[-1].capsules.poses, layer(Capsules(poses))[-1].capsules.poses
        )
        assert reason is not None
        with pytest.raises(ValueError, match=f"implementation is 'fused', but {reason}"):
            packed.layers[0].implementation = "fused"
    with pytest.raises(ValueError, match="no layer of the stack has binary weights"):
        pack(stack(6, 3, 4, 4, "xnidr"))


def test_each_layer_of_a_stack_is_packed_on_its_own():
    torch.manual_seed(0)
    layers = [
        CapsuleLayer(ConvTransform(2, 3, 4, 4, padding=1), "xnodr"),
        CapsuleLayer(LinearTransform(27, 5, 4, 8), "xnodr"),
        CapsuleLayer(LinearTransform(5, 4, 8, 8), "dynamic"),
    ]
    capsules = Capsules(torch.randn(2, 3, 3, 2, 4))
    for schedule in ("sequential", "concurrent"):
        plain = CapsuleStack(layers, 3, schedule)
        packed = pack(plain)
        assert [isinstance(each, PackedLayer) for each in packed.layers] == [True, True, False]
        steps = packed(capsules)
        assert [step.state is None for step in steps] == [False, schedule == "sequential", False]
        torch.testing.assert_close(steps[-1].capsules.poses, plain(capsules)[-1].capsules.poses)


@pytest.mark.skipif(torch.__version__ < "2.14", reason="torch calls every graph an export there, and takes steps")
@pytest.mark.parametrize("routing", ["xnodr", "xnodr-xnidr"])
@torch.no_grad()
def test_a_compiled_graph_has_the_loop_as_one_operation_and_makes_it_once(routing, monkeypatch):
    """Unpacked at each step, as an export has it, a compiled packed head took 46 times as long as one that is not."""
    torch.compiler.reset()
    packed, poses, seen = pack(stack(9, 4, 8, 16, routing, bias=True), torch.float16), torch.randn(3, 9, 8), []
    wanted = packed(Capsules(poses))[-1].capsules.poses

    def keep(graph, inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    compiled = torch.compile(packed, backend=keep, fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(Capsules(poses))[-1].capsules.poses, wanted, rtol=0, atol=0)
    assert sum("route_packed" in each for each in seen) == 1
    monkeypatch.setattr("torchcaps.packed.loop.PackedLoop", None)  # to make one more would fail
    torch.testing.assert_close(compiled(Capsules(poses))[-1].capsules.poses, wanted, rtol=0, atol=0)
    monkeypatch.undo()
    packed.layers[0].transform.bits.copy_(packed.layers[0].transform.bits.flip(0))
    changed = compiled(Capsules(poses))[-1].capsules.poses
    torch.testing.assert_close(changed, packed(Capsules(poses))[-1].capsules.poses, rtol=0, atol=0)
    assert (changed - wanted).abs().max() > 0.01


@torch.no_grad()
def test_the_operation_of_a_graph_keeps_what_it_promises():
    for images, parent_pose in ((3, 16), (2, 7), (40, 16)):
        layer = pack(stack(9, 4, 8, parent_pose)).layers[0]
        transform = layer.transform
        inputs = torch.randn(images, 9, 8), transform.bits, transform.scales, None, list(transform.shape), False, True
        torch.library.opcheck(route_packed, (*inputs, 2), test_utils=CHECKS)
    with FlopCounterMode(display=False) as counter:
        route_packed(*inputs, 3)
    assert counter.get_total_flops() == 2 * 40 * 9 * 4 * 16 * (8 + 2 * 2)


def test_a_loop_goes_with_its_bits():
    packed = pack(stack(9, 4, 8, 16))
    build_loop(packed.layers[0])
    before = len(op._MADE)
    del packed
    gc.collect()
    assert len(op._MADE) == before - 1


@torch.no_grad()
def test_a_trace_and_a_mode_see_the_steps():
    """A loop reads memory: a trace would keep the parents of its images, a mode would see no operation."""
    packed, (one, two) = pack(stack(9, 4, 8, 16)), torch.randn(2, 3, 9, 8)

    def parents(poses):
        return packed(Capsules(poses))[-1].capsules.poses

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a trace is out of date
        traced = torch.jit.trace(parents, one)
    torch.testing.assert_close(traced(two), parents(two))
    with FlopCounterMode(display=False) as counter:
        parents(one)
    assert counter.get_total_flops() > 0


@torch.no_grad()
def test_a_loop_is_made_anew_without_a_bias_and_in_inference_mode():
    """Neither tells by a version: what was there is gone, and nobody counts changes."""
    packed, poses = pack(stack(9, 4, 8, 16, bias=True)), Capsules(torch.randn(2, 9, 8))
    layer = packed.layers[0]
    packed.load_state_dict({**packed.state_dict(), "layers.0.routing.bias": torch.randn(4, 16)})
    before = packed(poses)[-1].capsules.poses
    layer.routing.bias = None
    without = packed(poses)[-1].capsules.poses
    use_implementation(packed, "plain")
    torch.testing.assert_close(without, packed(poses)[-1].capsules.poses)
    assert (without - before).abs().max() > 0.01
    with torch.inference_mode():
        packed = pack(stack(9, 4, 8, 16))
        before = packed(poses)[-1].capsules.poses
        packed.layers[0].transform.bits.copy_(packed.layers[0].transform.bits.flip(0))
        changed = packed(poses)[-1].capsules.poses
    assert (changed - before).abs().max() > 0.01


@torch.no_grad()
def test_a_routing_that_is_changed_after_packing_takes_steps():
    packed, poses = pack(stack(9, 4, 8, 16)), Capsules(torch.randn(2, 9, 8))
    packed.layers[0].routing.over = "children"
    changed = packed(poses)[-1]
    assert changed.state is not None


@torch.no_grad()
def test_without_numba_a_packed_layer_compiles_whole(monkeypatch):
    monkeypatch.setattr("torchcaps.packed.layers.DEVICES", set())
    packed, poses = pack(stack(9, 4, 8, 16)), Capsules(torch.randn(2, 9, 8))
    torch.compiler.reset()
    compiled = torch.compile(packed, backend="eager", fullgraph=True)
    assert compiled(poses)[-1].state is not None


def test_of_pooled_children_signs_are_taken_of_the_means():
    layer = CapsuleLayer(PooledTransform(5, 3, 8, 16, std=2.0), "xnodr").eval()
    poses = Capsules(torch.randn(2, 3, 3, 5, 8))
    for packed in (pack(layer), pack(layer).double()):
        dtype = packed.transform.scales.dtype
        with torch.no_grad():
            found = packed(Capsules(poses.poses.to(dtype)), 3).capsules.poses
            torch.testing.assert_close(found.float(), layer(poses, 3).capsules.poses, rtol=1e-4, atol=1e-5)


def test_a_transform_that_does_more_than_vote_is_not_packed():
    layer = CapsuleLayer(NormedTransform(6, 3, 8, 16, types=6), "xnodr")
    with pytest.raises(ValueError, match="a layer with NormedTransform cannot be packed"):
        pack(layer)


@pytest.mark.parametrize("iterations", [0, -1, True, 1.5])
def test_iterations_are_a_number_of_them(iterations):
    packed = pack(stack(33, 11, 8, 16)).layers[0]
    with torch.no_grad(), pytest.raises(ValueError, match=r"iterations is .*; it must be a whole number, at least 1"):
        packed(Capsules(torch.randn(2, 33, 8)), iterations)


def test_a_loop_is_made_anew_where_a_tensor_is_given_other_data():
    """Which counts no version."""
    packed = pack(stack(33, 11, 8, 16, bias=True)).layers[0]
    poses = torch.randn(2, 33, 8)
    with torch.no_grad():
        before = packed(Capsules(poses), 3).capsules.poses
        packed.routing.bias.data = torch.ones(11, 16)
        found = packed(Capsules(poses), 3).capsules.poses
        packed.implementation = "plain"
        torch.testing.assert_close(found, packed(Capsules(poses), 3).capsules.poses, rtol=1e-4, atol=1e-5)
    assert (found - before).abs().max() > 0.01


class Centred(LinearTransform):
    """Children less their mean, at the time when they vote: before signs are taken of them."""

    def vote(self, children, weight, binary=False):
        poses = children.poses
        return super().vote(children._replace(poses=poses - poses.mean(-2, keepdim=True)), weight, binary)


def test_a_transform_with_votes_of_its_own_is_not_packed():
    with pytest.raises(ValueError, match="a layer with Centred cannot be packed"):
        pack(CapsuleLayer(Centred(6, 3, 8, 16), "xnodr"))
