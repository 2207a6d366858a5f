"""Inverted attention: one step on convolutional and linear capsules, matrix and vector poses."""
