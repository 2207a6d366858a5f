"""Routings: one algorithm, one file, named as in its paper."""

from torchcaps.routing import discriminative, dynamic, em, inverted_attention, uniform
from torchcaps.routing.interface import (
    Routing,
    Sizes,
    Spec,
    State,
    Step,
    create_routing,
    list_routings,
    register_routing,
    routing_class,
)

__all__ = [
    "Routing",
    "Sizes",
    "Spec",
    "State",
    "Step",
    "create_routing",
    "discriminative",
    "dynamic",
    "em",
    "inverted_attention",
    "list_routings",
    "register_routing",
    "routing_class",
    "uniform",
]
