"""
Your own pictures
=================

A folder of pictures for each class is all that training needs.
"""

# %%
# The pictures
# ------------
# Yours lie somewhere already. Here we paint some: discs in warm and in cold colours, anywhere.

import tempfile
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image, ImageDraw

import torchcaps
from torchcaps.cli import main

random = np.random.default_rng(0)


def paint(name):
    radius = int(random.integers(4, 8))
    x, y = random.integers(radius, 20 - radius, 2).tolist()
    strong, middle, weak = random.integers((190, 40, 0), (256, 150, 60)).tolist()
    picture = Image.new("RGB", (20, 20))
    colour = (strong, middle, weak) if name == "warm" else (weak, middle, strong)
    box = (x - radius, y - radius, x + radius, y + radius)
    ImageDraw.Draw(picture).ellipse(box, colour)
    return picture


home = Path(tempfile.mkdtemp())
for name in ("warm", "cold"):
    (home / "pictures" / name).mkdir(parents=True)
    for n in range(60):
        paint(name).save(home / "pictures" / name / f"{n}.png")

# %%
# Train
# -----
# On the command line: ``torchcaps train classify --data.name folder:pictures``. ``main`` is that command; it says what
# it chose. Only the epochs are few here.

where = ["--data.name", f"folder:{home / 'pictures'}", "--out", str(home / "runs")]
main(["train", "classify", *where, "--epochs", "4"])

# %%
# Use
# ---
# The folder of the run answers for new pictures: it knows how a picture becomes input, and the names of the classes.

classifier = torchcaps.load(home / "runs" / "classify-0", device="cpu")
figure = Figure(figsize=(7, 1.4))
for n, axes in enumerate(figure.subplots(1, 8)):
    picture = np.asarray(paint(["warm", "cold"][n % 2]))
    axes.imshow(picture)
    axes.set_title(classifier(picture).label)
    axes.set_axis_off()

# %%
# ``torchcaps predict RUN PICTURES`` says the same for many files, and ``RUN/report.html`` shows what the network does
# with its test images: :doc:`from trained to used </docs/use>`.
