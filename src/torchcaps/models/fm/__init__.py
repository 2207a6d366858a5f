"""The networks of FM agreement (Zhao, Wang and Huang 2020): with CapsNet's layers, residual, and a control."""

from torchcaps.models.fm import capsnet, cnn, resnet  # noqa: F401 - they register their names
