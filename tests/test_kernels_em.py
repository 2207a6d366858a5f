"""The fused step of EM routing, and of ablation C of inverted attention, against the plain one."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import em_cases
import pytest
import torch
from fused import Calls, check, held, largest_allocation, memory_of_nan, outcome, twin
from inverted_attention_cases import CASES, distance
from layers import ALL, children
from layers import layer as any_layer
from naive import conv_votes, conv_windows, em
from torch.utils.flop_counter import FlopCounterMode

from torchcaps import create_model
from torchcaps.capsules import Capsules
from torchcaps.kernels.em import linear_cpu
from torchcaps.kernels.em.op import em_step, em_step_backward
from torchcaps.layers import CapsuleLayer, CapsuleStack, ConvTransform, LinearTransform, use_implementation

SCOPES = ["window", "image"]
every_scope = pytest.mark.parametrize("scope", SCOPES)
every_rule = pytest.mark.parametrize("rule", em_cases.RULES)
first_or_later = pytest.mark.parametrize("first", [True, False], ids=["first", "later"])


@every_rule
@every_scope
@first_or_later
@pytest.mark.parametrize("name", CASES)
def test_a_step_and_its_gradients_equal_the_plain_ones(name, first, scope, rule):
    case = em_cases.make(CASES[name], torch.float64, scope, first, rule=rule)
    with memory_of_nan():
        outs, gradients = em_cases.both(case)
    wanted, plain_gradients = em_cases.both(case, fused=False)
    for a, b in zip((*outs, *gradients), (*wanted, *plain_gradients), strict=True):
        assert a.dtype == torch.float64 and distance(a, b) < 1e-11


@every_scope
def test_agreements_as_eq_2_has_them_equal_the_plain_ones(scope):
    case = em_cases.make(CASES["conv-padded"], torch.float64, scope, rule="inverted-attention-c", scaled=False)
    scaled = em_cases.make(CASES["conv-padded"], torch.float64, scope, rule="inverted-attention-c")
    fused, plain, other = em_cases.both(case), em_cases.both(case, fused=False), em_cases.both(scaled)
    for a, b in zip((*fused[0], *fused[1]), (*plain[0], *plain[1]), strict=True):
        assert distance(a, b) < 1e-11
    assert distance(fused[0][0], other[0][0]) > 1e-3


@every_rule
@every_scope
@pytest.mark.parametrize(("name", "of_gradients"), [("conv-padded", 1e-5), ("conv-wide", 1e-4), ("linear-63", 1e-5)])
def test_float32_errs_little_more_than_the_plain_form(name, of_gradients, scope, rule):
    """Clusters of more parents than children are single votes: their gradients err by the mean over the deviation.

    The error of one draw is chance, 1e-6 or 2e-5 in either form, and another on another machine: means of eight.
    """
    draws = 8
    of_plain, of_fused, least = [], [], []
    for seed in range(draws):
        exact, narrow = (
            em_cases.make(CASES[name], x, scope, seed=seed, rule=rule) for x in (torch.float64, torch.float32)
        )
        wanted, plain, fused = em_cases.both(exact, fused=False), em_cases.both(narrow, False), em_cases.both(narrow)
        assert all(x.dtype == torch.float32 for outs in fused for x in outs)
        for errors, found in ((of_plain, plain), (of_fused, fused)):
            errors.append(
                [distance(a, e) for outs in zip(found, wanted, strict=True) for a, e in zip(*outs, strict=True)]
            )
        least = [1e-5] * len(wanted[0]) + [of_gradients] * len(wanted[1])
    for bound, ours, theirs in zip(least, zip(*of_fused, strict=True), zip(*of_plain, strict=True), strict=True):
        assert sum(ours) / draws < max(5 * sum(theirs) / draws, bound)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_rule
@every_scope
def test_half_precision_is_rounded_but_once(scope, dtype, rule):
    case = em_cases.make(CASES["conv-padded"], dtype, scope, rule=rule)
    case = case._replace(tensors=[*case.tensors[:3], *(x.detach().float().requires_grad_() for x in case.tensors[3:])])
    tensors = [x.detach().double().requires_grad_() for x in case.tensors]
    wide = case._replace(tensors=tensors, routing=copy.deepcopy(case.routing).double())
    wanted, plain_gradients = em_cases.both(wide, fused=False)
    outs, gradients = em_cases.both(case)
    assert all(x.dtype == torch.float32 for x in outs)
    assert [x.dtype for x in gradients] == [dtype] * 3 + [torch.float32] * (len(tensors) - 3)
    for a, b in zip((*outs, *gradients), (*wanted, *plain_gradients), strict=True):
        assert distance(a, b) < 2 * torch.finfo(dtype).eps


@every_rule
@every_scope
@first_or_later
def test_the_gradient_is_that_of_the_step(first, scope, rule):
    case = em_cases.make(CASES["conv-padded"], torch.float64, scope, first, rule=rule)
    assert torch.autograd.gradcheck(lambda *x: tuple(em_cases.step(case, x)), case.tensors)


@pytest.mark.parametrize("rule", ["em", "inverted-attention-c"])
def test_a_comparison_that_lacks_its_scale_is_refused(rule):
    """A loop would read beyond an empty array."""
    case = em_cases.make(CASES["conv-padded"], torch.float32, "window", False, rule=rule)
    tensors = [*case.tensors[:4], *[None] * (6 - len(case.tensors)), *case.tensors[4:]]
    with pytest.raises(ValueError, match=r"dot is .* scale"):
        em_step(*tensors, *case.geometry, False, rule == "em", 1e-8)


@every_scope
@pytest.mark.parametrize(("first", "rule"), [(True, "em"), (False, "em"), (False, "inverted-attention-c")])
def test_is_an_operation_of_torch(first, scope, rule):
    case = em_cases.make(CASES["conv-padded"], torch.float32, scope, first, rule=rule)
    tensors = [*case.tensors[:4], *[None] * (6 - len(case.tensors)), *case.tensors[4:]]
    flags = *case.geometry, scope == "image", rule == "inverted-attention-c", 1e-8
    torch.library.opcheck(em_step, (*tensors, *flags))
    constants = [None if x is None else x.detach() for x in tensors]
    outs = em_step(*constants, *flags)
    upstream = [torch.ones_like(x) for x in outs[:3]]
    torch.library.opcheck(em_step_backward, (*upstream, *constants, *outs, *flags))


@every_rule
@every_scope
@pytest.mark.parametrize("name", ALL)
def test_a_layer_equals_its_plain_twin(name, scope, rule):
    layer, capsules = any_layer(name, rule, scope=scope, temperature=1.0), children(name)
    assert layer.fused
    with memory_of_nan():
        check(CapsuleStack([layer], 3), capsules.poses, 1e-8, 1e-9, capsules.activations)


@every_scope
@pytest.mark.parametrize("start", ["random", "learnt"])
@pytest.mark.parametrize("name", ["linear-matrix", "conv-padded"])
def test_parents_that_start_elsewhere_are_compared_at_once_and_may_have_a_bias(name, start, scope):
    layer = any_layer(name, "inverted-attention-c", scope=scope, start=start, bias=start == "learnt")
    capsules = children(name)
    check(CapsuleStack([layer], 2), capsules.poses, 1e-9, 1e-11, capsules.activations)


@every_rule
@every_scope
def test_plain_and_fused_steps_may_be_mixed(scope, rule):
    layer, capsules = any_layer("conv-padded", rule, scope=scope), children("conv-padded")
    wanted = layer(capsules, 4).capsules.poses
    votes, steps = layer.votes(capsules), []
    for t, implementation in enumerate(("plain", "fused", "plain", "fused")):
        layer.implementation = implementation
        steps.append(layer.step(votes, steps[-1].state if steps else None, t))
    torch.testing.assert_close(steps[-1].capsules.poses, wanted, rtol=1e-10, atol=1e-12)


def test_a_result_may_be_used_twice():
    layer, (poses, activations) = any_layer("conv-matrix", "em"), children("conv-matrix")
    step = layer(Capsules(poses.requires_grad_(), activations), 2)
    one, two = step.capsules.poses.sum(), step.state.variance.log().sum()
    (both,) = torch.autograd.grad(one + two, poses, retain_graph=True)
    found = [torch.autograd.grad(x, poses, retain_graph=True)[0] for x in (one, two)]
    torch.testing.assert_close(both, found[0] + found[1])


@pytest.mark.parametrize("away", [0.0, 1.0])
@pytest.mark.parametrize("name", ["conv", "linear-63", "linear-many"])
def test_variances_of_votes_that_lie_close_are_right_in_float32(name, away):
    """Within a thousandth of each other, far from zero, and `away` from the parent that they are compared with."""
    case = em_cases.make(CASES[name], torch.float64)
    poses, weight, activations, mean, variance, logit = (x.detach() for x in case.tensors)
    poses, weight = 10 + 1e-3 * poses, torch.ones_like(weight)
    mean = torch.full_like(mean, 10.0 * weight.shape[-2] + away)
    tensors = [poses, weight, activations, mean, variance, logit]
    wanted = em_cases.step(case, tensors)[3]
    narrow = em_cases.make(CASES[name], torch.float32)
    found = em_cases.step(narrow, [x.float() for x in tensors])[3]
    assert wanted.max() < 1e-4
    torch.testing.assert_close(found.double(), wanted, rtol=2e-2, atol=0)


@every_rule
@every_scope
@pytest.mark.parametrize("what", ["zero capsules", "no activations", "few activations", "huge", "tiny"])
def test_extremes(what, scope, rule):
    layer, (poses, activations) = any_layer("conv-padded", rule, scope=scope), children("conv-padded")
    poses = poses * {"zero capsules": 0, "huge": 1e4, "tiny": 1e-12}.get(what, 1)
    if "activations" in what:
        assert activations is not None
        activations = activations * (1e-12 if what == "few activations" else 0)
    module = CapsuleStack([layer], 3)
    check(module, poses, 1e-6, 1e-8, activations)
    outs, grads, _ = outcome(module.float(), poses.float(), activations.float())
    assert all(torch.isfinite(x).all() for x in (*outs, *grads.values()))


@every_scope
@pytest.mark.parametrize("larger", [1e8, 1e10, 1e11])
@pytest.mark.parametrize("name", ["conv-padded", "linear-matrix"])
def test_gradients_are_finite_wherever_the_plain_ones_are(name, larger, scope):
    """Up to some 1e19 squares of poses are numbers, and squares of variances only up to 1e9."""
    module, (poses, activations) = CapsuleStack([any_layer(name, "em", scope=scope)], 3).float(), children(name)
    found = [outcome(each, larger * poses.float(), activations.float())[:2] for each in (module, twin(module))]
    (outs, grads), (plain_outs, plain_grads) = ((x, list(y.values())) for x, y in found)
    for a, b in zip((*outs, *grads), (*plain_outs, *plain_grads), strict=True):
        assert b.isfinite().all() and a.isfinite().all() and distance(a, b) < 1e-3


@pytest.mark.parametrize("rule", [*em_cases.RULES, "inverted-attention"])
def test_what_is_no_number_stays_so_and_stays_in_its_image(rule):
    layer, (poses, activations) = any_layer("linear-matrix", rule), children("linear-matrix")
    assert activations is not None
    for images in (2, 20):  # 20 stand side by side
        many = poses.repeat(images // 2, 1, 1)
        many[1, 2, 1] = torch.nan
        given = None if rule == "inverted-attention" else activations.repeat(images // 2, 1)
        seen = layer(Capsules(many, given), 2).capsules.poses.isnan().flatten(1).any(1)
        assert seen.tolist() == [False, True] + [False] * (images - 2)


BAYES = "variational-bayes"


@every_scope
@pytest.mark.parametrize("active", [1.0, 1e-12, 0.0])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ALL)
def test_variational_bayes_equals_its_plain_twin(name, training, active, scope):
    layer, (poses, activations) = any_layer(name, BAYES, scope=scope), children(name)
    assert layer.fused and activations is not None
    check(CapsuleStack([layer], 3).train(training), poses, 1e-8, 1e-8, active * activations)


@pytest.mark.parametrize("images", [17, 37])
def test_variational_bayes_equals_its_plain_twin_of_many_images_some_of_which_show_nothing(images):
    layer = any_layer("linear-matrix", BAYES)
    torch.manual_seed(0)
    few = children("linear-matrix").poses
    poses, activations = (torch.rand(images, *shape, dtype=few.dtype) for shape in (few.shape[1:], few.shape[1:2]))
    activations[1] = 0
    check(CapsuleStack([layer], 3), poses, 1e-8, 1e-8, activations)


def test_variational_bayes_networks_do_not_fall_back():
    with torch.device("meta"):
        model = create_model("variational-bayes-64-8-16-16")
        use_implementation(model, "fused")
        assert model.input_shape is not None
        with Calls() as calls:
            model(torch.rand(2, *model.input_shape)).scores.sum().backward()
    (stack,) = [each for each in model.modules() if isinstance(each, CapsuleStack)]
    steps = len(stack.plan())
    assert steps >= 3 and sorted(calls.names) == ["em_step"] * steps + ["em_step_backward"] * steps


@every_rule
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_it_gives_what_it_gives_without(dtype, rule):
    layer = any_layer("conv-matrix", rule, dtype=torch.float32)
    module, (poses, activations) = CapsuleStack([layer], 3), children("conv-matrix", dtype=torch.float32)
    wanted, wanted_grads, _ = outcome(module, poses, activations)
    with torch.autocast("cpu", dtype):
        outs, grads, _ = outcome(module, poses, activations)
        plain, _, _ = outcome(twin(module), poses, activations)
    for a, b, e in zip(outs, wanted, plain, strict=True):
        assert a.dtype == e.dtype == torch.float32 and distance(a, b) < 1e-5
    assert all(distance(grads[name], wanted_grads[name]) < 1e-5 for name in grads)


@every_rule
@every_scope
def test_compiles_whole(scope, rule):
    stack = CapsuleStack([any_layer("conv-padded", rule, scope=scope)], 3)
    torch.compiler.reset()
    compiled = torch.compile(stack, fullgraph=True, backend="aot_eager")
    capsules = children("conv-padded")
    for a, b in zip(outcome(compiled, *capsules)[1].values(), outcome(stack, *capsules)[1].values(), strict=True):
        torch.testing.assert_close(a, b)


@every_scope
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_any_number_of_threads_gives_the_same(threads, scope):
    case, before = em_cases.make(CASES["conv-wide"], torch.float64, scope), torch.get_num_threads()
    outs, gradients = em_cases.both(case)
    torch.set_num_threads(threads)
    try:
        found = em_cases.both(case)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for a, b in zip(found[0], outs, strict=True))
    for a, b in zip(found[1], gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@every_rule
@first_or_later
@pytest.mark.parametrize(("threads", "pieces"), [(1, 1), (5, 1), (2, 2 * 5 * 6 * 16 * 8)])  # 16 and 32 of 37 images
def test_images_side_by_side_may_be_of_several_threads_and_come_in_pieces(threads, pieces, first, rule, monkeypatch):
    case, before = em_cases.make(CASES["linear-many"], torch.float64, first=first, rule=rule), torch.get_num_threads()
    wanted = em_cases.both(case, fused=False)
    monkeypatch.setattr(linear_cpu, "NEAR", pieces)
    torch.set_num_threads(threads)
    try:
        found = em_cases.both(case)
    finally:
        torch.set_num_threads(before)
    for a, b in zip((*found[0], *found[1]), (*wanted[0], *wanted[1]), strict=True):
        assert distance(a, b) < 1e-11


@every_rule
@every_scope
@pytest.mark.parametrize(("first", "forward", "backward"), [(True, 2, 5), (False, 3, 8)])
def test_flops_are_counted(rule, scope, first, forward, backward):
    """As the plain form's products with W, see `test_cost`."""
    case = em_cases.make(CASES["conv"], torch.float32, scope, first, rule=rule)
    product = 2 * (2 * 2 * 2) * 2 * 2 * 3 * 9 * 2 * 3
    with FlopCounterMode(display=False) as counter:
        outs = em_cases.step(case)
    assert counter.get_total_flops() == forward * product
    with FlopCounterMode(display=False) as counter:
        sum(x.sum() for x in outs).backward()
    assert counter.get_total_flops() == backward * product


@every_rule
def test_what_it_refuses(rule):
    transform = ConvTransform(2, 3, 4, 4, matrix=True)
    with pytest.raises(ValueError, match="takes eps from 1e-24, not 1e-30"):
        CapsuleLayer(transform, rule, "fused", eps=1e-30)
    for layer in (CapsuleLayer(transform, rule, "fused"), CapsuleLayer(LinearTransform(18, 3, 4, 4), rule, "fused")):
        with pytest.raises(ValueError, match="needs activations of the children"):
            layer(Capsules(torch.randn(2, 3, 3, 2, 4)), 2)


@pytest.mark.parametrize("name", ["em-simple-cifar10", "em-simple-cifar100", "em-resnet-cifar10", "em-resnet-cifar100"])
def test_the_baselines_do_not_fall_back(name):
    """Every step of every layer is the kernel's, forward and backward; coordinates and shared matrices are theirs."""
    with torch.device("meta"):
        model = create_model(name, num_classes=100 if name.endswith("100") else 10)
        use_implementation(model, "fused")
        with Calls() as calls:
            model(torch.rand(2, 3, 32, 32)).scores.sum().backward()
    (stack,) = [each for each in model.modules() if isinstance(each, CapsuleStack)]
    assert len(stack.plan()) == 6 and sorted(calls.names) == ["em_step"] * 6 + ["em_step_backward"] * 6


@pytest.mark.parametrize("name", ["attention-resnet-cifar10", "attention-simple-cifar10"])
def test_ablation_c_does_not_fall_back(name):
    with torch.device("meta"):
        model = create_model(name, num_classes=10, activations=True)
        use_implementation(model, "fused")
        with Calls() as calls:
            model(torch.rand(2, 3, 32, 32)).scores.sum().backward()
    (stack,) = [each for each in model.modules() if isinstance(each, CapsuleStack)]
    steps = len(stack.plan())
    assert steps >= 3 and sorted(calls.names) == ["em_step"] * steps + ["em_step_backward"] * steps


BATCH = 4
VOTES = BATCH * 36 * 288 * 32 * 16 * 4  # bytes of the votes of issue 14's layer


@every_scope
def test_nothing_of_the_votes_size_is_held_or_made(scope):
    torch.manual_seed(0)
    layer = CapsuleLayer(ConvTransform(32, 32, 16, 16, stride=2, matrix=True), "em", "fused", scope=scope)
    poses, activations = torch.randn(BATCH, 14, 14, 32, 16, requires_grad=True), torch.rand(BATCH, 14, 14, 32)
    betas = layer.routing.activation.beta_u, layer.routing.activation.beta_a

    def fused():
        return layer(Capsules(poses, activations), 2).capsules.poses

    def naive():
        votes = conv_votes(poses, layer.transform.weight, 4, 2)
        return em(votes, conv_windows(activations, 3, 2), *betas, 2)[0]

    if scope == "window":
        torch.testing.assert_close(fused().flatten(1, 2), naive(), rtol=1e-3, atol=1e-4)
    total, largest = held(fused)
    assert total <= held(naive)[0] / 20 and largest <= VOTES / 20
    assert largest_allocation(lambda: fused().sum().backward()) <= VOTES / 20


@every_scope
def test_ablation_c_holds_and_makes_nothing_of_the_votes_size(scope):
    layer = CapsuleLayer(
        ConvTransform(32, 32, 16, 16, stride=2, matrix=True), "inverted-attention-c", "fused", scope=scope
    )
    poses, activations = torch.randn(BATCH, 14, 14, 32, 16, requires_grad=True), torch.rand(BATCH, 14, 14, 32)

    def fused():
        return layer(Capsules(poses, activations), 2).capsules.poses

    assert held(fused)[1] <= VOTES / 20
    assert largest_allocation(lambda: fused().sum().backward()) <= VOTES / 20


@every_rule
def test_a_training_run_keeps_its_loss_curve(rule):
    torch.manual_seed(0)
    transforms = [ConvTransform(4, 4, 16, 16, stride=2, matrix=True), LinearTransform(36, 10, 16, 16, matrix=True)]
    stack = CapsuleStack([CapsuleLayer(x, rule, temperature=0.1) for x in transforms], 2)
    poses, activations, labels = torch.randn(16, 7, 7, 4, 16), torch.rand(16, 7, 7, 4), torch.arange(16) % 10
    curves = []
    for each in (stack, twin(stack)):
        optimizer = torch.optim.Adam(each.parameters(), 0.01)
        losses = []
        for _ in range(15):
            scores = each(Capsules(poses, activations))[-1].state.logit.squeeze(1)
            loss = torch.nn.functional.cross_entropy(scores, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        curves.append(losses)
    assert curves[0][-1] < 0.7 * curves[0][0]
    assert curves[0] == pytest.approx(curves[1], rel=5e-3)


@pytest.mark.parametrize("sizes", ["few", pytest.param("", marks=pytest.mark.slow)], ids=["few", "all"])
def test_the_triton_form_equals_the_plain_one(sizes):
    script = Path(__file__).parent / "interpreted_em.py"
    command = [sys.executable, script, *sizes.split()]
    subprocess.run(command, env=os.environ | {"TRITON_INTERPRET": "1"}, check=True, cwd=script.parent)
