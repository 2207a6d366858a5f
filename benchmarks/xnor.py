"""XnODR's speed-up, for real: the paper counts 64 operations as one, and times nothing.

One layer, three iterations, inference, five forms whose outputs are checked to be equal (with the same rounded scales):

- tiled: as usually written; children are copied once per parent and binarized there, the weights at every call;
- ready: the same with weights that were binarized beforehand;
- layer: `CapsuleLayer`, which trains, and so binarizes its weights at every call too;
- float: weights binarized beforehand, votes once by one batched product, routing by matrix products on them: the
  fastest form without bits that we know;
- packed: `PackedStack`, XNOR and popcount on one bit a weight, half scales (`pack`).

Beside them stands what memory alone asks for: the bytes of the weights over the measured bandwidth. The tiled form
copies the weights for each image: where that does not fit, it has a smaller batch, and its time is scaled to the whole.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from report import interleaved, median_ratio, record, resident_bytes
from torch import Tensor

from torchcaps.capsules import Capsules, binarize, squash
from torchcaps.layers import CapsuleLayer, CapsuleStack, LinearTransform
from torchcaps.packed import pack

SIZES = {"160x10, 8->16": (160, 10, 8, 16), "256x10, 8->16": (256, 10, 8, 16), "2048x100, 16->16": (2048, 100, 16, 16)}
ITERATIONS = 3
TILED = ("tiled", "ready")
TILED_BYTES = 2 * 2**30  # of copied weights

Forward = Callable[[Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 128])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--size", choices=SIZES, nargs="+", default=list(SIZES))
    flags = parser.parse_args()
    for threads in flags.threads:
        torch.set_num_threads(threads)
        bandwidth = measure_bandwidth()
        for name in flags.size:
            for batch in flags.batch:
                with torch.no_grad():
                    compare(name, SIZES[name], batch, flags.repeats, bandwidth)


def compare(name: str, size: tuple[int, int, int, int], batch: int, repeats: int, bandwidth: float) -> None:
    """Record one line."""
    torch.manual_seed(0)
    children, parents, pose, parent_pose = size
    layer = CapsuleLayer(LinearTransform(children, parents, pose, parent_pose), "xnodr")
    stack = CapsuleStack([layer], ITERATIONS)
    packed = pack(stack, torch.float16).eval()
    weight = layer.transform.weight.detach()
    poses = torch.randn(batch, children, pose).relu()
    rounded = rounded_weight(weight)
    forms: dict[str, Forward] = {
        "tiled": tiled(weight.permute(1, 0, 2, 3).contiguous()),
        "ready": tiled(rounded.permute(1, 0, 2, 3).contiguous(), ready=True),
        "layer": lambda x: stack(Capsules(x))[-1].capsules.poses,
        "float": votes_once(rounded),
        "packed": lambda x: packed(Capsules(x))[-1].capsules.poses,
    }
    fitting = max(1, min(batch, TILED_BYTES // weight.nbytes))
    inputs = {form: poses[:fitting] if form in TILED else poses for form in forms}
    outputs = {form: forms[form](inputs[form]) for form in forms}
    whole = (outputs["layer"][:fitting] - outputs["tiled"]).abs().max().item()
    half = (outputs["float"] - outputs["packed"]).abs().max().item()
    ready = (outputs["packed"][:fitting] - outputs["ready"]).abs().max().item()
    assert max(whole, half, ready) < 1e-4, (whole, half, ready)
    turns = interleaved([lambda form=form: forms[form](inputs[form]) for form in forms], repeats)
    seconds = dict(zip(forms, turns, strict=True))
    for form in TILED:
        seconds[form] = [each * batch / fitting for each in seconds[form]]
    best = min(("layer", "float"), key=lambda form: median(seconds[form]))
    stored = sum(buffer.nbytes for buffer in packed.buffers())
    record(
        f"xnor/{name}",
        {
            "threads": torch.get_num_threads(),
            "batch": batch,
            "batch_tiled": fitting,
            "repeats": repeats,
            **{f"{form}_ms": round(1000 * median(seconds[form]), 3) for form in forms},
            **{f"{form}_peak_mb": peak_mb(forms[form], inputs[form]) for form in forms},
            "float_weight_bytes": weight.nbytes,
            "packed_weight_bytes": stored,
            "weights_smaller": round(weight.nbytes / stored, 2),
            "bandwidth_gb_s": round(bandwidth / 1e9, 1),
            "float_weights_at_bandwidth_ms": round(1000 * weight.nbytes / bandwidth, 3),
            "packed_weights_at_bandwidth_ms": round(1000 * ITERATIONS * stored / bandwidth, 3),
            "best_float": best,
            "best_float_over_tiled": round(median_ratio(seconds["tiled"], seconds[best]), 1),
            "packed_over_best_float": round(median_ratio(seconds[best], seconds["packed"]), 2),
            "packed_over_tiled": round(median_ratio(seconds["tiled"], seconds["packed"]), 1),
            "largest_difference": max(whole, half, ready),
        },
    )


def tiled(weight: Tensor, ready: bool = False) -> Forward:
    """As public code writes a capsule layer and its authors XnODR, [i, j, c, m]; children become [b, i, j, c].

    `ready`: the weights are binarized already.
    """

    def forward(poses: Tensor) -> Tensor:
        copies = poses.unsqueeze(2).repeat(1, 1, weight.shape[1], 1)  # [b, i, j, c]
        signed = weight if ready else binarize(weight, -2)
        votes = torch.matmul(binarize(copies).unsqueeze(-2), signed).squeeze(-2)  # [b, i, j, m]
        logits = torch.zeros_like(votes[..., :1])
        parents = votes
        for t in range(ITERATIONS):
            parents = squash((logits.softmax(2) * votes).sum(1, keepdim=True))  # [b, 1, j, m]
            if t + 1 < ITERATIONS:
                logits = logits + (votes * parents).sum(-1, keepdim=True)
        return parents.squeeze(1)

    return forward


def rounded_weight(weight: Tensor) -> Tensor:
    """[j, i, c, m] -> what is binarized, with its scales in half precision."""
    return torch.where(weight > 0, 1.0, -1.0) * weight.abs().mean(-2, keepdim=True).half().float()


def votes_once(weight: Tensor) -> Forward:
    """Weights [j, i, c, m], binarized already; votes are one product for each child, and stay [b j, i, m]."""
    parents, children, _, m = weight.shape
    flat = weight.permute(1, 2, 0, 3).flatten(2).contiguous()  # [i, c, (j m)]

    def forward(poses: Tensor) -> Tensor:
        b = len(poses)
        votes = torch.bmm(binarize(poses).transpose(0, 1), flat)  # [i, b, (j m)]
        votes = votes.view(children, b, parents, m).permute(1, 2, 0, 3).reshape(b * parents, children, m)
        out = squash(votes.sum(1) / parents)  # [(b j), m]
        total = out
        for _ in range(ITERATIONS - 1):
            logits = torch.bmm(votes, total.unsqueeze(-1)).view(b, parents, children)
            out = squash(torch.bmm(logits.softmax(1).view(b * parents, 1, children), votes).squeeze(1))
            total = total + out
        return out.view(b, parents, m)

    return forward


def measure_bandwidth() -> float:
    """Bytes that are read in a second, by a sum over 512 MiB."""
    numbers = torch.ones(2**27)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        numbers.sum()
        seconds.append(time.perf_counter() - start)
    return numbers.nbytes / min(seconds)


def peak_mb(forward: Forward, poses: Tensor) -> float:
    """Megabytes that a pass adds to the process; weights and inputs are there before."""
    return round(resident_bytes(lambda: forward(poses)) / 1e6, 3)


if __name__ == "__main__":
    main()
