"""The parts of EncapNet (Li, Guo, Dai, Ouyang and Wang 2018): capConv, the feedback unit, the Sinkhorn divergence."""

from torchcaps.encapnet.capconv import CapConvModule, CapFC, MasterAideConv2d, to_capsules, to_maps
from torchcaps.encapnet.feedback import OptimalTransportUnit
from torchcaps.encapnet.sinkhorn import kl_divergence, sinkhorn_divergence, transport_plan

__all__ = [
    "CapConvModule",
    "CapFC",
    "MasterAideConv2d",
    "OptimalTransportUnit",
    "kl_divergence",
    "sinkhorn_divergence",
    "to_capsules",
    "to_maps",
    "transport_plan",
]
