"""Fused steps: one iteration of a routing as one operation, in which no tensor of votes exists, forward or backward."""
