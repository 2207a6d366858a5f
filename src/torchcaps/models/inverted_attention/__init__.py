"""The networks of inverted dot-product attention (Tsai et al., ICLR 2020), and the baselines of its paper."""

from torchcaps.models.inverted_attention import cnn, dynamic, em, network  # noqa: F401 - they register their names
