"""One iteration of dynamic routing on linear capsules: see README.md."""
