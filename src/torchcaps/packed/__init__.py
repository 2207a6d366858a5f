"""One bit a weight: XnODR's layers for inference, and the loop that routes on the bits. `pack` makes them."""

from torchcaps.packed.layers import PackedLayer, PackedStack, PackedXnorConv2d
from torchcaps.packed.packing import has_binary_weights, pack

__all__ = ["PackedLayer", "PackedStack", "PackedXnorConv2d", "has_binary_weights", "pack"]
