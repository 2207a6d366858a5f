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
from torch.nn.functional import cross_entropy

from torchcaps import CapsuleHead, HeadedModel

torch.manual_seed(0)
backbone = timm.create_model("test_resnet", num_classes=0)
model = HeadedModel(backbone, CapsuleHead("fm", in_features=backbone.num_features, num_classes=10))

# %%
# What comes out are scores, here logits, and the class capsules.

output = model(torch.rand(4, 3, 96, 96))
print(output.scores.shape, output.capsules[-1].poses.shape)

# %%
# It trains as any module does.

optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
images, labels = torch.rand(16, 3, 96, 96), torch.arange(16) % 10
for _ in range(5):
    loss = cross_entropy(model(images).scores, labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"{loss.item():.3f}")

# %%
# Another routing is another name: :doc:`which one </docs/which-routing>`. On the command line a dot joins the two:
# ``torchcaps train classify --model.name resnet18.fm``.
