"""The two sums of FM agreement on windows of children: see README.md."""
