"""The fused step of self-attention routing."""
