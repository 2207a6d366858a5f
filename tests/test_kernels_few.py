"""All iterations at once for a few images: equal to the papers' loops and to plain steps, and when it is taken."""

import numpy as np
import pytest
import torch
from fused import Calls, twin
from routings import oracle
from torch.utils.flop_counter import FlopCounterMode

from torchcaps.capsules import Capsules
from torchcaps.kernels.dynamic.op import dynamic_of_few
from torchcaps.kernels.fm.op import fm_sums_of_few
from torchcaps.layers import CapsuleLayer, CapsuleStack, ConvTransform, LinearTransform
from torchcaps.packed import pack

pytest.importorskip("numba")

VARIANTS = [
    ("dynamic", {}),
    ("dynamic", {"bias": True}),
    ("dynamic", {"gradients": "last"}),
    ("xnidr", {"bias": True}),
    ("xnodr", {}),
    ("xnodr", {"threshold": "midpoint", "bias": True}),
    ("xnodr-xnidr", {}),
    ("xnodr-xnidr", {"threshold": "midpoint"}),
    ("fm", {}),
    ("fm", {"batch_norm": None, "mean": False}),
    ("fm", {"l2": False, "halved": False}),
]
every_variant = pytest.mark.parametrize(("routing", "options"), VARIANTS, ids=lambda x: str(x) if x else "")
CHECKS = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")  # they have no gradient
# images, children, their pose (odd: signs do not cancel, which the oracle leaves to rounding), parents, their pose
SIZES = [(1, 16, 7, 10, 16), (2, 21, 5, 3, 32), (1, 1, 3, 1, 16), (4, 33, 9, 17, 16)]


def layer_of(routing, children=21, pose=8, parents=5, parent_pose=16, dtype=torch.float64, **options):
    """A layer in evaluation mode whose every parameter and statistic is random."""
    torch.manual_seed(0)
    module = CapsuleLayer(LinearTransform(children, parents, pose, parent_pose), routing, **options).to(dtype).eval()
    for parameter in module.routing.parameters():
        torch.nn.init.normal_(parameter, mean=0.3, std=0.5)
    for name, buffer in module.routing.named_buffers():
        torch.nn.init.uniform_(buffer, 0.5 if "variance" in name else -0.5, 1.5)
    return module


def draw(images=2, children=21, pose=8, dtype=torch.float64):
    return Capsules(torch.randn(images, children, pose, generator=torch.Generator().manual_seed(1), dtype=dtype))


@every_variant
@pytest.mark.parametrize(("images", "children", "pose", "parents", "parent_pose"), SIZES)
def test_equals_the_loops_of_the_paper(images, children, pose, parents, parent_pose, routing, options):
    module = layer_of(routing, children, pose, parents, parent_pose, **options)
    capsules = draw(images, children, pose)
    for iterations in (1, 2, 3):
        with torch.no_grad():
            step = module.at_once(capsules, iterations)
            plain = twin(CapsuleStack([module], iterations))(capsules)[-1]
        assert step is not None
        poses, activations = oracle(module, capsules, iterations)
        np.testing.assert_allclose(step.capsules.poses.unsqueeze(1), poses, rtol=1e-10, atol=1e-12)
        if activations is not None:
            np.testing.assert_allclose(step.capsules.activations.unsqueeze(1), activations, rtol=1e-10, atol=1e-12)
        if plain.state is not None:
            torch.testing.assert_close(step.state, plain.state, rtol=1e-10, atol=1e-12)


@every_variant
def test_equals_plain_steps_in_float32_and_on_two_threads(routing, options, monkeypatch):
    monkeypatch.setattr("torchcaps.kernels.few.WORTH_A_THREAD", 1)
    module, capsules = layer_of(routing, dtype=torch.float32, **options), draw(dtype=torch.float32)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.no_grad():
            ours, plain = CapsuleStack([module])(capsules)[-1], twin(CapsuleStack([module]))(capsules)[-1]
    finally:
        torch.set_num_threads(before)
    for a, e in zip(ours.capsules, plain.capsules, strict=True):
        if e is not None:
            assert a.dtype == e.dtype
            torch.testing.assert_close(a, e, rtol=1e-4, atol=1e-5)


def test_a_child_of_zeros_is_harmless():
    for routing in ("dynamic", "xnidr", "fm"):
        module = layer_of(routing)
        capsules = Capsules(torch.zeros(1, 21, 8, dtype=torch.float64))
        with torch.no_grad():
            step, plain = module.at_once(capsules, 3), twin(CapsuleStack([module]))(capsules)[-1]
        torch.testing.assert_close(step.capsules.poses, plain.capsules.poses, rtol=1e-10, atol=1e-12)


@torch.no_grad()
def test_it_is_taken_by_a_stack_and_not_where_a_visitor_looks():
    module, capsules, seen = layer_of("dynamic"), draw(), []
    stack = CapsuleStack([module, layer_of("xnidr", children=5, pose=16)])
    module.step = lambda *_, **__: seen.append("step")  # pyright: ignore[reportAttributeAccessIssue]
    stack(capsules)
    assert not seen
    del module.step
    stack(capsules, lambda level, t, step: seen.append((level, t, step.coupling is None and t > 0)))
    assert seen == [(level, t, False) for level in (0, 1) for t in range(3)]


class Poses(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, poses):
        return self.layer(Capsules(poses), 3).capsules.poses


@torch.no_grad()
def test_an_export_from_a_few_images_holds_for_any_batch():
    """How many images are few is no condition of the graph."""
    module = Poses(layer_of("dynamic"))
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(module, (draw(2).poses,), dynamic_shapes=dynamic).module()
    for images in (2, 3, 40):
        poses = draw(images).poses
        torch.testing.assert_close(program(poses), module(poses))


@pytest.mark.skipif(torch.__version__ < "2.14", reason="torch calls every graph an export there, and takes steps")
@every_variant
@torch.no_grad()
def test_a_compiled_graph_has_it_as_one_operation_where_steps_are_slower(routing, options):
    """Steps took a compiled head of both projections six times as long as one that is not compiled."""
    torch.compiler.reset()  # stacks are one function to it, which it compiles eight times at most
    stack, seen = CapsuleStack([layer_of(routing, dtype=torch.float32, **options)]), []

    def keep(graph, inputs):
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    compiled = torch.compile(stack, backend=keep, fullgraph=True, dynamic=False)
    capsules, many = draw(dtype=torch.float32), draw(9, dtype=torch.float32)
    for given in (capsules, many):
        for a, e in zip(compiled(given)[-1].capsules, stack(given)[-1].capsules, strict=True):
            assert (a is None) == (e is None)
            if a is not None:
                torch.testing.assert_close(a, e)
        assert ("of_few" in " ".join(seen)) == (given is capsules and routing in ("fm", "xnodr-xnidr"))
        seen.clear()


@every_variant
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@torch.no_grad()
def test_operations_of_a_graph_keep_what_they_promise(routing, options, dtype):
    module, poses = layer_of(routing, dtype=dtype, **options), draw(dtype=dtype).poses
    weight = module.transform.weight
    if routing == "fm":
        scale, shift = torch.rand(2, 1, 1, weight.shape[-1], dtype=dtype)
        operation, inputs = fm_sums_of_few, (poses, weight, scale, shift, True, 1e-12)
    else:
        flags = "xnodr" in routing, options.get("threshold") == "midpoint", "xnidr" in routing, 3
        operation, inputs = dynamic_of_few, (poses, weight, module.routing.bias, *flags)
    torch.library.opcheck(operation, inputs, test_utils=CHECKS)
    with FlopCounterMode(display=False) as counter:
        operation(*inputs)
    assert counter.get_total_flops() == 2 * 2 * 21 * 5 * 16 * (8 + (0 if routing == "fm" else 2 * 2))


def test_it_is_not_taken_where_something_else_is_asked_for():
    module, capsules = layer_of("dynamic", dtype=torch.float32), draw(dtype=torch.float32)
    assert module.at_once(capsules, 3) is None  # a gradient may be asked for
    with torch.no_grad():
        assert module.at_once(capsules, 3) is not None
        assert module.at_once(draw(5, dtype=torch.float32), 3) is None  # many images
        assert module.at_once(draw(0, dtype=torch.float32), 3) is None
        assert module.at_once(draw(), 3) is None  # of another type than the weights
        with torch.autocast("cpu", torch.bfloat16):
            assert module.at_once(capsules, 3) is None
        with Calls():
            assert module.at_once(capsules, 3) is None
        found = []
        torch.func.vmap(lambda x: found.append(module.at_once(Capsules(x), 3)) or x)(capsules.poses[None])
        assert found == [None]
        assert module.bfloat16().at_once(draw(dtype=torch.bfloat16), 3) is None
        module.float().implementation = "plain"
        assert module.at_once(capsules, 3) is None


@torch.no_grad()
def test_it_refuses_layers_that_it_does_not_fit():
    refused = [
        CapsuleLayer(LinearTransform(21, 5, 8, 12), "dynamic"),
        CapsuleLayer(LinearTransform(21, 5, 16, 16, matrix=True), "dynamic"),
        CapsuleLayer(LinearTransform(21, 5, 8, 16), "dynamic", start="learnt"),
        CapsuleLayer(LinearTransform(21, 5, 8, 16), "fm", batch_norm="pair"),
        CapsuleLayer(LinearTransform(21, 5, 8, 16), "em"),
    ]
    for module in refused:
        assert (
            module.at_once(Capsules(torch.randn(1, 21, module.transform.shape[-2] * module.transform.rows)), 2) is None
        )
    windows = CapsuleLayer(ConvTransform(2, 3, 8, 16), "dynamic")
    assert windows.at_once(Capsules(torch.randn(1, 4, 4, 2, 8)), 2) is None


@torch.no_grad()
def test_children_with_positions_and_of_a_wrong_size_are_as_in_steps():
    module = layer_of("dynamic", children=24)
    capsules = Capsules(torch.randn(1, 2, 3, 4, 8, dtype=torch.float64))
    found = module.at_once(capsules, 2)
    assert found is not None
    torch.testing.assert_close(found.capsules.poses, twin(CapsuleStack([module], 2))(capsules)[-1].capsules.poses)
    with pytest.raises(ValueError, match="the children are"):
        CapsuleStack([module])(draw())


@torch.no_grad()
@pytest.mark.parametrize(("routing", "threshold"), [("xnodr", "zero"), ("xnodr", "midpoint"), ("xnodr-xnidr", "zero")])
def test_packed_votes_of_few_images_are_kept_and_equal_those_made_anew(routing, threshold, monkeypatch):
    packed = pack(layer_of(routing, dtype=torch.float32, threshold=threshold, bias=True))
    capsules = draw(dtype=torch.float32)
    kept = packed(capsules, 3).capsules.poses
    monkeypatch.setattr("torchcaps.packed.loop.NEAR", 0)
    torch.testing.assert_close(kept, packed(capsules, 3).capsules.poses, rtol=1e-5, atol=1e-6)
