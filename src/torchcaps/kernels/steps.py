"""The fused steps of this room, which register themselves in the lookup below (`routing/fused.py`) when imported."""

from torchcaps.kernels.attention import step as attention
from torchcaps.kernels.dynamic import step as dynamic
from torchcaps.kernels.em import step as em
from torchcaps.kernels.fm import step as fm

__all__ = ["attention", "dynamic", "em", "fm"]
