"""The two sums of FM agreement on linear capsules: see README.md."""
