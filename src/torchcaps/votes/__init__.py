"""Votes that are never a tensor: children and a transform, which answer the sums that a routing needs."""

from torchcaps.votes.binary import Threshold
from torchcaps.votes.conv import ConvVotes, SequenceVotes
from torchcaps.votes.linear import LinearVotes
from torchcaps.votes.protocol import Agreement, Over, Scope, Votes
from torchcaps.votes.scrambled import ScrambledVotes

__all__ = [
    "Agreement",
    "ConvVotes",
    "LinearVotes",
    "Over",
    "Scope",
    "ScrambledVotes",
    "SequenceVotes",
    "Threshold",
    "Votes",
]
