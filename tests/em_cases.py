"""One step of EM, or of ablation C of inverted attention, at the sizes of the attention kernels, fused and plain."""

from typing import NamedTuple

import torch
from inverted_attention_cases import inputs

from torchcaps.capsules import Capsules
from torchcaps.kernels.em.step import conv_step
from torchcaps.routing import Sizes
from torchcaps.routing.em import EM, Clusters
from torchcaps.routing.inverted_attention_c import Active, InvertedAttentionC
from torchcaps.votes import ConvVotes

RULES = {"em": EM, "inverted-attention-c": InvertedAttentionC}


class Case(NamedTuple):
    """What a step is taken of; `tensors` are poses, weight, activations and, but for a first step, the state."""

    tensors: list[torch.Tensor]
    geometry: tuple[int, int, int]  # rows, stride, padding
    routing: EM | InvertedAttentionC


def make(case, dtype, scope="window", first=False, seed=0, rule="em", scaled=True):
    """Random numbers in `dtype`, of which activations are in (0, 1) and variances near 1.

    Ablation C divides agreements by the root of the pose size where `scaled`; those of Eq. 2 are larger, and err more.
    """
    (poses, weight, mean), geometry = inputs(case, torch.float64, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    activations = torch.rand(poses.shape[:-1], generator=generator, dtype=torch.float64)
    variance = 0.5 + torch.rand(mean.shape, generator=generator, dtype=torch.float64)
    logit = torch.randn(mean.shape[:-1], generator=generator, dtype=torch.float64)
    state = [mean, variance, logit] if rule == "em" else [mean, logit]
    tensors = [poses, weight, activations] + ([] if first else state)
    sizes = Sizes(weight[0, ..., 0, 0].numel(), len(weight), mean.shape[-1])
    agreement = {} if rule == "em" else {"scaled": scaled}
    routing = RULES[rule](sizes, scope=scope, temperature=1.0, **agreement)
    torch.nn.init.normal_(routing.activation.beta_u, 0.3, 0.5, generator)
    leaves = [x.detach().to(dtype).requires_grad_() for x in tensors]
    return Case(leaves, geometry, routing.to(torch.promote_types(dtype, torch.float32)))


def step(case, tensors=None, fused=True):
    """Poses, activations and state of the parents."""
    poses, weight, activations, *state = case.tensors if tensors is None else tensors
    votes, kept = ConvVotes(Capsules(poses, activations), weight, *case.geometry), (Active, Clusters)[len(state) == 3]
    state = kept(*state) if state else None
    out = conv_step(case.routing, votes, state, 1) if fused else case.routing.step(votes, state, 1)
    return [*out.capsules, *out.state]


def both(case, fused=True):
    """What a step gives, and the gradient of each tensor."""
    outs = step(case, fused=fused)
    upstream = [torch.linspace(-1, 1, x.numel(), dtype=x.dtype, device=x.device).view(x.shape).sin() for x in outs]
    return outs, torch.autograd.grad(outs, case.tensors, upstream)
