"""The convolutional stem of `capsnet` and the whole network, forward and backward: float32 against bf16, channels-last.

Two 9x9 convolutions at batch 128 on 28x28 images; the loss of bf16 stands beside that of float32.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median

import torch
from report import interleaved, median_ratio, record

from torchcaps.losses import margin_loss, multi_hot
from torchcaps.models import CapsNet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--batch", type=int, default=128)
    flags = parser.parse_args()
    torch.manual_seed(0)
    images = torch.rand(flags.batch, 1, 28, 28)
    labels = torch.randint(0, 10, (flags.batch,))
    plain = CapsNet(10, 1, (28, 28))
    last = CapsNet(10, 1, (28, 28))
    last.load_state_dict(plain.state_dict())
    last = last.to(memory_format=torch.channels_last)
    losses: dict[str, float] = {}

    def stem(model: CapsNet, bf16: bool) -> Callable[[], None]:
        def run() -> None:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                primary = model.primary(torch.relu(model.stem(images)))
            primary.poses.float().sum().backward()

        return run

    def whole(model: CapsNet, bf16: bool) -> Callable[[], None]:
        def run() -> None:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
                output = model(images, labels)
            loss = margin_loss(output.scores, multi_hot(labels, 10))
            loss.backward()
            losses["bf16" if bf16 else "fp32"] = loss.item()

        return run

    for name, make in (("stem", stem), ("capsnet", whole)):
        slow, fast = interleaved([make(plain, False), make(last, True)], flags.repeats)
        record(
            f"bf16-channels-last/{name}",
            {
                "batch": flags.batch,
                "repeats": flags.repeats,
                "fp32_ms": round(1000 * median(slow), 1),
                "bf16_ms": round(1000 * median(fast), 1),
                "ratio": round(median_ratio(slow, fast), 2),
                **({"loss": losses} if name == "capsnet" else {}),
            },
        )


if __name__ == "__main__":
    main()
