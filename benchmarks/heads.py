"""The heads of Sun et al.'s networks in time: the dense layers that they replace beside capsules, float and packed.

Features of one image to scores, in inference, as each head runs for a user: dense layers (Table 10), dynamic routing,
XnODR, XnIDR and both, and of what can be packed the packed form with half scales, XnODR's by the midpoint too. That a
packed head equals the float one is checked first, with float32 scales. A float XnODR binarizes its weights at each
call, since it may yet be trained. What the paper calls a speed-up counts operations; dense layers are not in it.
"""

from __future__ import annotations

import argparse
from statistics import median

import torch
from report import interleaved, record
from torch import Tensor, nn

from torchcaps.models import CapsuleHead, DenseHead
from torchcaps.packed import pack

FEATURES = {"mobilenetv2_100": (1280, (512, 256, 128)), "resnet50": (2048, (1024, 512))}  # and the dense layers' widths
ROUTED = {
    "dynamic": ("dynamic", {}),
    "xnodr": ("xnodr", {}),
    "midpoint": ("xnodr", {"threshold": "midpoint"}),
    "xnidr": ("xnidr", {}),
    "both": ("xnodr-xnidr", {}),
}
CLASSES = 10
TOLERANCE = 1e-4  # largest difference of a score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 128])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--network", choices=FEATURES, nargs="+", default=list(FEATURES))
    flags = parser.parse_args()
    for threads in flags.threads:
        torch.set_num_threads(threads)
        for name in flags.network:
            for batch in flags.batch:
                with torch.no_grad():
                    record(*compare(name, batch, flags.repeats))


def compare(name: str, batch: int, repeats: int) -> tuple[str, dict]:
    """The name of a line, and what it holds."""
    torch.manual_seed(0)
    features, hidden = FEATURES[name]
    inputs = torch.randn(batch, features).relu()
    heads = {"dense": DenseHead(features, CLASSES, hidden).eval(), **capsule_heads(features)}
    differences = []
    for form in ("xnodr", "midpoint", "both"):
        whole = pack(heads[form])
        differences.append((whole(inputs).scores - heads[form](inputs).scores).abs().max().item())
        heads[f"{form}_packed"] = pack(heads[form], torch.float16)
    assert max(differences) < TOLERANCE, differences
    turns = interleaved([lambda head=head: _score(head, inputs) for head in heads.values()], repeats, warmup=2)
    return f"heads/{name}", {
        "threads": torch.get_num_threads(),
        "batch": batch,
        "repeats": repeats,
        **{f"{form}_ms": round(1000 * median(each), 4) for form, each in zip(heads, turns, strict=True)},
        **{f"{form}_bytes": size(head) for form, head in heads.items()},
        "largest_difference": max(differences),
    }


def capsule_heads(features: int) -> dict[str, CapsuleHead]:
    return {form: CapsuleHead(name, features, CLASSES, **options).eval() for form, (name, options) in ROUTED.items()}


def size(head: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    return sum(tensor.nbytes for tensor in (*head.parameters(), *head.buffers()))


def _score(head: nn.Module, inputs: Tensor) -> Tensor:
    return head(inputs).scores


if __name__ == "__main__":
    main()
