"""
A routing of your own
=====================

A routing is two methods: how children are shared out, and what parents are made of it.
"""

# %%
# This one is dynamic routing that forgets: it couples by the agreement with the parents of the iteration before alone.
# ``votes`` is lazy: it answers with sums, and is never a tensor. ``Spec`` says what the library needs to know: the
# routing's name and where it comes from; the orders of its time and of the memory that it holds for backward, with b
# images, I children, J parents, d and d' the elements of their poses and R iterations; that more iterations change the
# result, and that it shares a child out by couplings, which can be looked at.

import torch

from torchcaps import CapsuleLayer, Capsules
from torchcaps.capsules import lengths, squash
from torchcaps.inspect.toy import draw_toy_couplings
from torchcaps.layers import LinearTransform
from torchcaps.routing import Routing, register_routing
from torchcaps.routing.interface import Spec


@register_routing
class Forgetful(Routing):
    """Dynamic routing that forgets: couplings by the agreement with the parents before, not with the sum of all."""

    spec = Spec(
        name="forgetful",
        paper="mine",
        time="R b I J d d'",
        memory="R b I J",
        iterative=True,
        couplings=True,
    )

    def couple(self, votes, state, t):
        return None if state is None else votes.compete(votes.agree(state))  # None: uniform, 1 / parents

    def update(self, votes, coupling, state, t):
        parents = squash(votes.combine(coupling))
        return Capsules(parents), parents


# %%
# Registered, it is a name like the others: in layers, heads and on the command line.

torch.manual_seed(0)
layer = CapsuleLayer(LinearTransform(children=32, parents=10, child_pose=8, parent_pose=16), "forgetful")
parents = layer(Capsules(torch.randn(4, 32, 8)), iterations=3).capsules
print(parents.poses.shape, lengths(parents.poses)[0])

# %%
# Does it find what belongs together? In a toy scene five parts vote for a whole A, five for a whole B, and four for
# nothing; the votes of the parts of a whole agree.

figure = draw_toy_couplings("forgetful")

# %%
# ``torchcaps.testing.check_routing(Forgetful)`` holds it to the properties that ours have: the order of capsules,
# extreme sizes, types, compiling, export, memory, gradients.
# ``torchcaps train RECIPE --import forgetful.py --model.name small-resnet.forgetful`` trains with it: :doc:`recipes
# </docs/recipes>`.
