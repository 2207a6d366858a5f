"""The fused steps of this room, which register themselves in the lookup below (`routing/fused.py`) when imported."""

from torchcaps.kernels.dynamic import step as dynamic
from torchcaps.kernels.em import step as em
from torchcaps.kernels.fm import step as fm
from torchcaps.kernels.inverted_attention import step as inverted_attention
from torchcaps.kernels.self_attention import step as self_attention

__all__ = ["dynamic", "em", "fm", "inverted_attention", "self_attention"]
