"""
Your own pictures
=================

A folder of pictures for each class is all that training needs.
"""

# %%
# The pictures
# ------------
# Yours lie somewhere already. Here we write some: light and dark ones, of noise.

import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

import torchcaps
from torchcaps.cli import main

home = Path(tempfile.mkdtemp())
random = np.random.default_rng(0)
for name, low, high in (("light", 120, 255), ("dark", 0, 135)):
    (home / "pictures" / name).mkdir(parents=True)
    for n in range(60):
        pixels = random.integers(low, high, (20, 20, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(home / "pictures" / name / f"{n}.png")

# %%
# Train
# -----
# On the command line: ``torchcaps train digits --data.name folder:pictures``. ``main`` is that command.

flags = "--data.image-size 20 --epochs 2 --batch-size 16 --model.options channels 8 primary 2 --recipe mine"
main(["train", "digits", "--data.name", f"folder:{home / 'pictures'}", *flags.split(), "--out", str(home / "runs")])

# %%
# Use
# ---
# The folder of the run answers for new pictures: it knows how a picture becomes input, and the names of the classes.

classifier = torchcaps.load(home / "runs" / "mine-0", device="cpu")
for level in (20, 230):
    print(level, classifier(np.full((30, 40, 3), level, np.uint8)).label)

# %%
# ``torchcaps predict RUN PICTURES`` says the same for many files, and ``RUN/report.html`` shows what the network does
# with its test images: :doc:`from trained to used </docs/use>`.
