"""How the cells of a table are described, filled, kept as lines and shown; no paper is known here.

A table is found by its name once the file that describes it is imported: `import torchcaps.papers` does that for ours.
"""
