"""What a capsule has learnt."""

from torchcaps.inspect.reconstruction import draw_reconstructions, pose_sweep

__all__ = ["draw_reconstructions", "pose_sweep"]
