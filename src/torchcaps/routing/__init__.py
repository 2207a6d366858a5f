"""Routings: one algorithm, one file, named as in its paper."""

from torchcaps.routing import (
    discriminative,
    dynamic,
    em,
    fm,
    inverted_attention,
    inverted_attention_c,
    self_attention,
    self_routing,
    uniform,
    variational_bayes,
    xnidr,
    xnodr,
)
from torchcaps.routing.interface import Routing, Sizes, Spec, Start, Step, Takes
from torchcaps.routing.registry import create_routing, list_routings, register_routing, routing_class

__all__ = [
    "Routing",
    "Sizes",
    "Spec",
    "Start",
    "Step",
    "Takes",
    "create_routing",
    "discriminative",
    "dynamic",
    "em",
    "fm",
    "inverted_attention",
    "inverted_attention_c",
    "list_routings",
    "register_routing",
    "routing_class",
    "self_attention",
    "self_routing",
    "uniform",
    "variational_bayes",
    "xnidr",
    "xnodr",
]
