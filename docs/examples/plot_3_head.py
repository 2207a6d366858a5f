"""
A capsule head on a timm model
==============================

Any network whose features are numbers [b, f] or maps [b, c, h, w] can have class capsules in the place of its last
layer.
"""

# %%
# Two lines make the model. The backbone here is timm's smallest, without weights; ``pretrained=True`` fetches some.

import timm
import torch
from matplotlib.figure import Figure
from torch.nn.functional import cross_entropy

from torchcaps import CapsuleHead, HeadedModel
from torchcaps.config import DataConfig
from torchcaps.data import load_data

torch.manual_seed(0)
backbone = timm.create_model("test_resnet", num_classes=0, in_chans=1)
model = HeadedModel(backbone, CapsuleHead("fm", in_features=backbone.num_features, num_classes=10))

# %%
# What comes out are scores, here logits, and the class capsules.

output = model(torch.rand(4, 1, 32, 32))
print(output.scores.shape, output.capsules[-1].poses.shape)

# %%
# It trains as any module does; here on the handwritten digits that come with torchcaps.

data = load_data(DataConfig("digits", image_size=32), torch.device("cpu"))
optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
losses = []
for _epoch in range(5):
    for picked in torch.randperm(len(data.train)).split(64):
        loss = cross_entropy(model(data.train.fetch(picked).float() / 255).scores, data.train.targets(picked))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())

figure = Figure(figsize=(6, 2.4), layout="constrained")
axes = figure.subplots()
axes.plot(losses)
axes.set(xlabel="step", ylabel="cross-entropy")

# %%
# Of images that it has not seen, it has right:

model.eval()
everything = torch.arange(len(data.test))
with torch.no_grad():
    found = model(data.test.fetch(everything).float() / 255).scores.argmax(1)
print(f"{(found == data.test.targets(everything)).float().mean():.0%}")

# %%
# Another routing is another name: :doc:`which one </docs/which-routing>`. Its scores may be lengths or probabilities,
# as ``model.scores`` says, from which cross-entropy learns little: ``CapsuleHead("em", ..., scaled=True)`` makes logits
# of them, and :doc:`other losses </docs/start/own-loop>` take them as they are. On the command line a dot joins the
# two: ``torchcaps train classify --model.name resnet18.fm``.
