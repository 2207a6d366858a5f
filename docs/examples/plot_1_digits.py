"""
Ten minutes with digits
=======================

A network reads handwritten digits; its weights lie in a checkout of torchcaps. We ask it what it sees, look into its
capsules, move a pose, and watch the routing.
"""

# %%
# The network
# -----------
# ``load`` takes the folder of a run, a file, or the name of weights. What ``torchcaps train digits`` leaves in
# ``runs/digits-0`` is the same.

import torch

import torchcaps
from torchcaps.config import DataConfig
from torchcaps.data import load_data
from torchcaps.inspect import draw_reconstructions, figures
from torchcaps.inspect.couplings import trace_routing

classifier = torchcaps.load("digits", device="cpu")
data = load_data(DataConfig("digits", image_size=16), torch.device("cpu"))
print(f"{classifier.manifest.name}, {len(data.test)} images that it has never seen")

# %%
# What does it see?
# -----------------
# A prediction names the class, and has the pose and the activation of every class capsule.

labels = data.test.targets(torch.arange(len(data.test)))
first = torch.stack([(labels == label).nonzero()[0, 0] for label in range(10)])
images, labels = data.test.fetch(first).float() / 255, labels[first]
for image in images[:4]:
    said = classifier(image[0])
    pose, length = said.capsules[said.label]
    print(f"{said.label}, a capsule of {len(pose)} elements and length {length:.2f}")

# %%
# What does a pose hold?
# ----------------------
# A decoder paints the image from the pose of one capsule. Below each digit is what it paints; in the rows below one
# element of the pose of the 4 is moved.

model = classifier.model
figure = draw_reconstructions(model, images, labels, sweep=4)

# %%
# Where do the parts go?
# ----------------------
# Each place of the image shares itself out among the ten classes. Orange places give a class more than an equal share,
# blue ones less; the rows are iterations of the routing.

layer = trace_routing(model, images[4:5])[-1]
shares, names = layer.maps[:, 0], list(classifier.manifest.classes)
with figures.style():
    figure = figures.draw_couplings(images[4], shares, names, layer.box, 1 / len(names))

# %%
# Next: :doc:`your own pictures <plot_2_pictures>`.
