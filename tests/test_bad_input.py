"""What a user can get wrong in routings, transforms and stacks is named, with the numbers."""

import pytest
import torch
from layers import children, layer

from torchcaps.capsules import Capsules
from torchcaps.layers import CapsuleLayer, CapsuleStack, ConvTransform, LinearTransform
from torchcaps.routing import create_routing


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: create_routing("dynamik", 2, 2, 2), "nearest is 'dynamic'"),
        (lambda: create_routing("dynamic", 2, 2, 2, sharpness=3), "sharpness"),
        (lambda: create_routing("dynamic", 2, 0, 2), "0 parents"),
        (lambda: create_routing("dynamic", 2, 2, 2, over="both"), "'both'"),
        (lambda: create_routing("dynamic", 2, 2, 2, gradients="none"), "'none'"),
        (lambda: create_routing("em", 2, 2, 2, scope="row"), "'row'"),
        (lambda: create_routing("xnodr", 2, 2, 2, threshold="mean"), "'mean'"),
        (lambda: create_routing("inverted-attention", 2, 2, 2, scope="row"), "'row'"),
        (lambda: create_routing("discriminative", 2, 2, 2, norm="l3"), "'l3'"),
        (lambda: create_routing("discriminative", 2, 2, 2, initial=0.0), "fixed point"),
        (lambda: create_routing("discriminative", 2, 2, 2, penalty_weight=-1.0), "-1.0"),
        (lambda: create_routing("discriminative", 2, 2, 2, proximal=True), "'l2'"),
        (lambda: create_routing("dynamic", 2, 2, 2, start="ones"), "'ones'"),
        (lambda: create_routing("inverted-attention", 2, 2, 2, start="one"), "'one'"),
        (lambda: create_routing("em", 2, 2, 2, growth=1.0), "growth is 1.0"),
        (lambda: create_routing("em", 2, 2, 2, temperature=0.0), "temperature is 0.0"),
        (lambda: create_routing("em", 2, 2, 2, temperature=()), "temperature is ()"),
        (lambda: create_routing("fm", 2, 2, 2, batch_norm="layer"), "'layer'"),
        (lambda: LinearTransform(12, 2, 4, 4, shared=5), "12 children cannot stand at 5 positions"),
        (lambda: LinearTransform(12, 2, 4, 4, shared=6)(Capsules(torch.ones(1, 2, 2, 3, 4))), "2x2 positions, but 6"),
        (lambda: LinearTransform(3, 2, 4, 1, coordinates=True), "1 element"),
        (lambda: LinearTransform(3, 2, 4, 4, coordinates=True)(Capsules(torch.ones(1, 3, 4))), "[1, 3, 4]"),
        (lambda: LinearTransform(3, 2, 4, 4)(Capsules(torch.ones(1, 5, 4))), "(5, 4)"),
        (lambda: LinearTransform(2, 2, 8, 16, matrix=True), "8 -> 16"),
        (lambda: LinearTransform(2, 2, 16, 18, matrix=True), "16 -> 18"),
        (lambda: LinearTransform(2, 2, 0, 16), "0 and 16"),
        (lambda: LinearTransform(0, 2, 8, 16), "(0,)"),
        (lambda: ConvTransform(2, 2, 4, 4, stride=0), "stride is 0"),
        (lambda: ConvTransform(2, 2, 4, 4, kernel=5)(Capsules(torch.ones(1, 3, 4, 2, 4))), "3x4 positions"),
        (lambda: CapsuleStack([]), "0 layers"),
        (lambda: CapsuleStack([layer("linear-vector", "dynamic")], 0), "iterations is 0"),
        (lambda: CapsuleStack([layer("linear-vector", "dynamic")], 1, "parallel"), "'parallel'"),
        (lambda: CapsuleLayer(LinearTransform(2, 2, 3, 3), create_routing("uniform", 2, 3, 3)), "built for"),
        (lambda: layer("conv-padded", "dynamic").votes(children("conv-padded")).compete(None, "children", "image"),
         "within a window"),
    ],
)  # fmt: skip
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError) as error:
        call()
    assert message in str(error.value)
