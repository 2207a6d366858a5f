"""Types and sizes of what every routing takes: half precision, foreign types, batches without images, one of each."""

import copy

import pytest
import torch
from layers import children, layer
from routings import FIRST, UNFIT, every_first, every_variant

from torchcaps.capsules import Capsules
from torchcaps.kernels.fm.op import fm_moments, fm_sums
from torchcaps.layers import CapsuleLayer, LinearTransform
from torchcaps.packed import pack

every_layer = pytest.mark.parametrize("name", ["linear-vector", "conv-padded"])
every_half = pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])


def forms(name, routing, options, dtype=torch.float32):
    """The layer, plain and, where there is a kernel, fused."""
    if name in UNFIT.get(routing, ()):
        pytest.skip("signs of sums that cancel are chance")
    module = layer(name, routing, dtype=dtype, **options)
    plain = copy.deepcopy(module)
    plain.implementation = "plain"
    return [plain, module] if module.fused else [plain]


@every_half
@every_layer
@every_variant
def test_a_layer_in_half_precision_stays_in_it(name, routing, options, dtype):
    capsules = children(name, dtype=torch.float32)
    for module in forms(name, routing, options):
        module.to(dtype)
        poses = capsules.poses.to(dtype).requires_grad_()
        step = module(Capsules(poses, capsules.activations.to(dtype)), 3)
        found = [x for x in step.capsules if x is not None]
        assert all(x.dtype == dtype and x.isfinite().all() for x in found)
        sum(x.float().sum() for x in found).backward()
        gradients = [poses.grad, *(p.grad for p in module.parameters() if p.grad is not None)]
        assert all(g.dtype == dtype and g.isfinite().all() for g in gradients)


SUMS = [each for each in FIRST if not each[0].startswith("xn")]  # signs are chance where votes are rounded


@every_half
@pytest.mark.parametrize(("routing", "options"), SUMS, ids=[name for name, _ in SUMS])
def test_half_precision_is_near_the_truth(routing, options, dtype):
    """Fused and plain, of two iterations."""
    capsules = children("linear-vector", dtype=torch.float32)
    for module in forms("linear-vector", routing, options):
        wanted = module(capsules, 2).capsules.poses
        found = module.to(dtype)(Capsules(*(x.to(dtype) for x in capsules)), 2).capsules.poses.float()
        assert (found - wanted).norm() < 8 * torch.finfo(dtype).eps * wanted.norm()


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.int64, torch.bool])
@every_layer
@every_first
def test_children_of_another_type_are_refused(name, routing, options, kind):
    capsules = children(name, dtype=torch.float32)
    for module in forms(name, routing, options):
        words = "convert one of the two" if kind.is_floating_point else "they must be floating"
        with pytest.raises(ValueError, match=f"poses are {kind}.*{words}|poses are {kind}; {words}"):
            module(Capsules(capsules.poses.to(kind), capsules.activations))


@every_first
def test_autocast_takes_every_type_that_it_converts(routing, options):
    capsules = children("linear-vector", dtype=torch.float32)
    for module in forms("linear-vector", routing, options):
        with torch.autocast("cpu", torch.bfloat16):
            module(Capsules(capsules.poses.half(), capsules.activations))
            with pytest.raises(ValueError, match=r"poses are torch.float64.*by \.to\(torch.float32\)"):
                module(Capsules(capsules.poses.double(), capsules.activations))


def test_a_packed_layer_says_the_same():
    packed = pack(CapsuleLayer(LinearTransform(3, 2, 8, 4), "xnodr"))
    with pytest.raises(ValueError, match=r"poses are torch.int64; they must be floating"):
        packed(Capsules(torch.ones(2, 3, 8, dtype=torch.int64)))


@every_layer
@every_variant
def test_a_batch_without_images_gives_none(name, routing, options):
    capsules = children(name, dtype=torch.float32)
    for module in forms(name, routing, options):
        before = {key: x.clone() for key, x in module.named_buffers()}
        poses = capsules.poses[:0].clone().requires_grad_()
        assert capsules.activations is not None
        step = module(Capsules(poses, capsules.activations[:0]), 3)
        space = module.votes(capsules).space
        pose = module.transform.sizes.pose - module.routing.spec.hidden
        assert step.capsules.poses.shape == (0, *space, module.transform.sizes.parents, pose)
        sum(x.sum() for x in step.capsules if x is not None).backward()
        assert poses.grad.shape == poses.shape
        assert all(not p.grad.any() for p in module.parameters() if p.grad is not None)
        for key, x in module.named_buffers():
            assert torch.equal(x, before[key]), key


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1, 1), (16, 1, 1, 2, 1, 1), (3, 1, 2, 2, 1, 2), (2, 3, 1, 2, 1, 1)])
def test_fm_of_one_child_and_one_parent(sizes):
    """Whose sums lie in memory as they are: an operation's results must not share it."""
    b, i, r, c, j, m = sizes
    generator = torch.Generator().manual_seed(0)
    shapes = (b, i, r * c), (j, i, c, m), (1, 1, r * m), (1, 1, r * m)
    tensors = [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]
    assert torch.autograd.gradcheck(lambda *x: fm_sums(*x, True, 1e-12), tensors)
    assert torch.autograd.gradcheck(fm_moments, tensors[:2])
    torch.library.opcheck(fm_sums, (*tensors, True, 1e-12))
    votes = torch.einsum("birc,jicm->bijrm", tensors[0].unflatten(-1, (r, c)), tensors[1]).flatten(3)
    votes = votes * tensors[2] + tensors[3]
    unit = votes / votes.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(fm_sums(*tensors, True, 1e-12), (unit.sum(1), unit.square().sum(1)))
