"""Feature extractors under capsules: the stems of the papers, and any timm model. One family a file."""
