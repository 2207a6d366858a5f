"""EM routing: one iteration on convolutional and linear capsules."""
