"""
A routing of your own
=====================

A routing is two methods: how children are shared out, and what parents are made of it.
"""

# %%
# This one couples by the cosine of vote and parent. ``votes`` is lazy: it answers with sums, and is never a tensor.

import torch

from torchcaps import CapsuleLayer, Capsules
from torchcaps.capsules import lengths, squash
from torchcaps.inspect.toy import draw_toy_couplings
from torchcaps.layers import LinearTransform
from torchcaps.routing import Routing, register_routing
from torchcaps.routing.interface import Spec


@register_routing
class Cosine(Routing):
    """Couplings by the agreement with the direction of the parents before."""

    spec = Spec("cosine", "mine", "R b I J d", "b J d", iterative=True, couplings=True)

    def couple(self, votes, state, t):
        return None if state is None else votes.compete(votes.agree(state))  # None: all the same

    def update(self, votes, coupling, state, t):
        parents = squash(votes.combine(coupling))
        return Capsules(parents), parents / lengths(parents).clamp_min(1e-6).unsqueeze(-1)


# %%
# Registered, it is a name like the others: in layers, heads and on the command line.

torch.manual_seed(0)
layer = CapsuleLayer(LinearTransform(children=32, parents=10, child_pose=8, parent_pose=16), "cosine")
parents = layer(Capsules(torch.randn(4, 32, 8)), iterations=3).capsules
print(parents.poses.shape, lengths(parents.poses)[0])

# %%
# Does it find what belongs together? In a toy scene five parts vote for a whole A, five for a whole B, and four for
# nothing; the votes of the parts of a whole agree.

figure = draw_toy_couplings("cosine")

# %%
# ``torchcaps.testing.check_routing(Cosine)`` holds it to the properties that ours have: the order of capsules, extreme
# sizes, types, compiling, export, memory, gradients. ``torchcaps train RECIPE --import cosine.py --model.name
# small-resnet.cosine`` trains with it: :doc:`recipes </docs/recipes>`.
