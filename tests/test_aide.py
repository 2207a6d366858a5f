"""A dense convolution of EncapNet as one product of matrices: what it computes, and where it is taken."""

import pytest
import torch
import torch.nn.functional as F

from torchcaps.encapnet import MasterAideConv2d, aide
from torchcaps.encapnet.aide import NARROW, AideConv2d, DenseConv2d


@pytest.fixture
def few(monkeypatch):
    """Few weights are enough for a product."""
    monkeypatch.setattr(aide, "LARGE", 1)


def beside(layer, maps):
    """What `layer` maps to by a product and by torch's convolution, each with the gradients of maps and parameters."""
    assert layer.prefers_product(maps)
    parameters = [maps, *layer.parameters()]
    found = []
    for layer.product in (True, False):
        out = layer(maps)
        weights = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view(out.shape).to(out.dtype)
        found.append([out, *torch.autograd.grad(out, parameters, weights)])
    return found


def images(shape, dtype=torch.float64, last=False):
    maps = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)
    return maps.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format).requires_grad_()


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("last", [True, False], ids=["channels-last", "channels-first"])
@pytest.mark.parametrize("size", [(8, 8), (11, 5), (1, 1), (3, 12)], ids=str)
@pytest.mark.parametrize(("kernel", "stride", "bias"), [(7, 2, True), (3, 2, False), (1, 2, True)])
def test_a_product_is_the_convolution(size, kernel, stride, bias, last):
    torch.manual_seed(0)
    aide = AideConv2d(4, 3, 4, kernel, stride, bias).double()
    dense = DenseConv2d(12, 16, kernel, stride, kernel // 2, bias=bias).double()
    for layer in (aide, dense):
        if last:
            layer.to(memory_format=torch.channels_last)
        product, convolution = beside(layer, images((2, 12, *size), last=last))
        for found, wanted in zip(product, convolution, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)
        out = product[0]
        assert out.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(("kernel", "stride", "padding"), [((3, 5), (2, 1), (1, 2)), ((4, 1), (1, 3), (0, 2))])
def test_height_and_width_have_their_own_geometry(kernel, stride, padding):
    torch.manual_seed(0)
    layer = DenseConv2d(12, 16, kernel, stride, padding).double()
    for found, wanted in zip(*beside(layer, images((2, 12, 9, 5))), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.usefixtures("few")
def test_a_product_in_bf16_rounds_as_the_convolution_does():
    torch.manual_seed(0)
    layer = AideConv2d(4, 4, 4, 5, 1)
    maps = images((3, 16, 4, 4), torch.float32, last=True)
    exact = F.conv2d(maps.double(), (layer.weight * layer.mask).double(), layer.bias.double(), 1, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        product, convolution = beside(layer, maps)
    assert product[0].dtype == convolution[0].dtype == torch.bfloat16
    assert [each.dtype for each in product[1:]] == [each.dtype for each in convolution[1:]]
    errors = [(each[0].double() - exact).abs().max() for each in (product, convolution)]
    assert errors[0] <= 1.1 * errors[1]
    for found, wanted in zip(product[1:], convolution[1:], strict=True):
        torch.testing.assert_close(found, wanted, rtol=0.05, atol=0.05 * wanted.abs().max().item())


@pytest.mark.usefixtures("few")
def test_float64_stays_so_under_autocast():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        product, convolution = beside(DenseConv2d(12, 16, 3, 1, 1).double(), images((2, 12, 4, 4)))
    torch.testing.assert_close(product[0], convolution[0], rtol=1e-12, atol=1e-12)


def test_a_product_has_second_derivatives_and_maps_over_images():
    torch.manual_seed(0)
    layer = DenseConv2d(2, 3, 3, 2, 1).double()
    layer.prefers_product = lambda input: True
    maps = images((2, 2, 4, 5))
    assert torch.autograd.gradgradcheck(layer, maps)
    several = torch.stack([maps, 2 * maps])
    torch.testing.assert_close(torch.func.vmap(layer)(several), torch.stack([layer(each) for each in several]))


@pytest.mark.parametrize(
    ("row", "channels", "taken"), [(NARROW, 2, True), (1, 2, True), (NARROW + 1, 2, False), (1, 1, False)]
)
def test_a_small_map_by_many_weights_takes_a_product(row, channels, taken, monkeypatch):
    layer = DenseConv2d(2, channels, 3, 1, 1)
    maps = torch.rand(1, 2, 9, row)
    assert not layer.prefers_product(maps)
    monkeypatch.setattr(aide, "LARGE", 36)
    assert layer.prefers_product(maps) == taken
    assert not layer.to("meta").prefers_product(maps.to("meta"))


@pytest.mark.usefixtures("few")
def test_a_graph_has_the_convolution():
    layer = MasterAideConv2d(4, 2, 4, stride=2).eval()
    maps = torch.rand(2, 8, 8, 8)
    assert layer.aide.prefers_product(maps)
    graph = torch.export.export(layer, (maps,))
    called = [str(node.target) for node in graph.graph.nodes]
    assert sum("conv2d" in name for name in called) == 4 and not any("unfold" in name for name in called)
    torch.testing.assert_close(graph.module()(maps), layer(maps))


@pytest.mark.usefixtures("few")
def test_a_step_of_the_layer_is_the_same_without_products():
    found = []
    for product in (True, False):
        torch.manual_seed(0)
        layer = MasterAideConv2d(4, 2, 4, stride=2).double()
        layer.aide.product = product
        maps = images((2, 8, 8, 8))
        found.append([layer(maps), *torch.autograd.grad(layer(maps).square().sum(), [maps, *layer.parameters()])])
    for with_product, without in zip(*found, strict=True):
        torch.testing.assert_close(with_product, without, rtol=1e-10, atol=1e-10)
