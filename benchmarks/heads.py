"""The heads of networks in time: the dense layers that capsules replace beside capsules, float, folded and packed.

Features of one image, and of a batch, to scores, in inference, as each head runs for a user: dense layers (Sun et al.,
Table 10), uniform, dynamic, FM, XnODR by both thresholds, XnIDR, both, discriminative routing folded, and of what can
be packed the packed form with half scales. Each is timed as it is, and on one thread also under `torch.compile`, as an
exported program, and as ONNX Runtime runs its export. That every form gives the scores of the float head is checked
first. A float XnODR binarizes its weights at each call, since it may yet be trained.

Goals at batch 1 on one thread: each routed head takes at most three times as long as dense layers, packed ones less
than they. What a paper calls a speed-up counts operations; dense layers are not in it.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import onnxruntime
import torch
import torch._dynamo.config
from report import interleaved, median_ratio, record
from torch import Tensor, nn

from torchcaps.layers import CapsuleLayer, CapsuleStack
from torchcaps.models import CapsuleHead, DenseHead
from torchcaps.packed import pack

FEATURES = {"mobilenetv2_100": (1280, (512, 256, 128)), "resnet50": (2048, (1024, 512))}  # and the dense layers' widths
ROUTED = {
    "uniform": ("uniform", {}),
    "dynamic": ("dynamic", {}),
    "fm": ("fm", {}),
    "xnodr": ("xnodr", {}),
    "midpoint": ("xnodr", {"threshold": "midpoint"}),
    "xnidr": ("xnidr", {}),
    "both": ("xnodr-xnidr", {}),
}
PACKED = ("xnodr", "midpoint", "both")
RUNNERS = ("eager", "compiled", "exported", "onnx")
GOAL = 3.0  # times as long as dense layers, at most
CLASSES = 10
TOLERANCE = 1e-4  # largest difference of a score
# of compiled and exported forms: a sum in another order turns the sign of a vote that is all but 0
CHANCE = {"xnidr": 2e-2, "both": 2e-2, "both_packed": 2e-2}
Run = Callable[[Tensor], Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 128])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--network", choices=FEATURES, nargs="+", default=list(FEATURES))
    parser.add_argument("--runners", choices=RUNNERS, nargs="+", default=list(RUNNERS), help="on one thread")
    flags = parser.parse_args()
    torch._dynamo.config.recompile_limit = 64  # all heads are one function to it, and the ninth would run as it is
    for threads in flags.threads:
        torch.set_num_threads(threads)
        for name in flags.network:
            for batch in flags.batch:
                with torch.no_grad():
                    record(*compare(name, batch, flags.repeats, flags.runners if threads == 1 else ["eager"]))


def compare(name: str, batch: int, repeats: int, runners: list[str]) -> tuple[str, dict]:
    """The name of a line, and what it holds."""
    torch.manual_seed(0)
    features, hidden = FEATURES[name]
    inputs = torch.randn(batch, features).relu()
    heads, difference = forms(features, hidden, inputs)
    runs: dict[tuple[str, str], Callable[[], Tensor]]
    runs = {(form, "eager"): partial(_score, head, inputs) for form, head in heads.items()}
    for runner in runners:
        if runner != "eager":
            for form, head in heads.items():
                run, wanted = MAKERS[runner](head, inputs), _score(head, inputs)
                off = (run(inputs) - wanted).abs().max().item()
                assert off < CHANCE.get(form, TOLERANCE), f"{form}, {runner}, differs by {off}"
                runs[form, runner] = partial(run, inputs)
    turns = dict(zip(runs, interleaved(list(runs.values()), repeats, warmup=2), strict=True))
    times = {
        form: {runner: _ms(turns[form, runner]) for runner in RUNNERS if (form, runner) in turns} for form in heads
    }
    ratios = {
        form: round(median_ratio(turns[form, "eager"], turns["dense", "eager"]), 3) for form in heads if form != "dense"
    }
    values: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "batch": batch,
        "repeats": repeats,
        "times_ms": times,
        "over_dense": ratios,
        **{f"{form}_ms": each["eager"] for form, each in times.items()},
        **{f"{form}_bytes": size(head) for form, head in heads.items()},
        "largest_difference": difference,
    }
    if batch == 1 and torch.get_num_threads() == 1:
        values["passed"] = {form: ratio < (1 if "packed" in form else GOAL) for form, ratio in ratios.items()}
    return f"heads/{name}", values


def forms(features: int, hidden: tuple[int, ...], inputs: Tensor) -> tuple[dict[str, nn.Module], float]:
    """All heads, by name, and how far packed and folded ones are from those that they were made of."""
    heads: dict[str, nn.Module] = {"dense": DenseHead(features, CLASSES, hidden).eval(), **capsule_heads(features)}
    learnt = CapsuleHead("discriminative", features, CLASSES).eval()
    heads["discriminative_folded"] = fold(learnt)
    differences = [_apart(heads["discriminative_folded"], learnt, inputs)]
    for form in PACKED:
        differences.append(_apart(pack(heads[form]), heads[form], inputs))
        heads[f"{form}_packed"] = pack(heads[form], torch.float16)
    assert max(differences) < TOLERANCE, differences
    return heads, max(differences)


def capsule_heads(features: int) -> dict[str, CapsuleHead]:
    return {form: CapsuleHead(name, features, CLASSES, **options).eval() for form, (name, options) in ROUTED.items()}


def fold(head: CapsuleHead) -> CapsuleHead:
    """A copy whose coefficients are folded into its weights."""
    folded = copy.deepcopy(head)
    layer = folded.stack.layers[0]
    assert isinstance(layer, CapsuleLayer)
    folded.stack = CapsuleStack([layer.fold()], 1)
    return folded.eval()


def size(head: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    return sum(tensor.nbytes for tensor in (*head.parameters(), *head.buffers()))


class _Scores(nn.Module):
    """A head as compilers and exporters want it: features in, scores out."""

    def __init__(self, head: nn.Module):
        super().__init__()
        self.head = head

    def forward(self, features: Tensor) -> Tensor:
        return self.head(features).scores


def compiled(head: nn.Module, inputs: Tensor) -> Run:
    return torch.compile(_Scores(head), dynamic=False, fullgraph=True)


def exported(head: nn.Module, inputs: Tensor) -> Run:
    return torch.export.export(_Scores(head), (inputs,)).module()  # pyright: ignore[reportReturnType]


def onnx(head: nn.Module, inputs: Tensor) -> Run:
    """What ONNX Runtime makes of it, on as many threads as torch has."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about its own insides
        program = torch.export.export(_Scores(head), (inputs,))
        made = torch.onnx.export(program, input_names=["features"], output_names=["scores"], dynamo=True, verbose=False)
        assert made is not None
        made.save(path := Path(folder, "head.onnx"))
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def run(features: Tensor) -> Tensor:
        (scores,) = session.run(None, {"features": features.numpy()})
        return torch.from_numpy(scores)

    return run


MAKERS: dict[str, Callable[[nn.Module, Tensor], Run]] = {"compiled": compiled, "exported": exported, "onnx": onnx}


def _apart(one: nn.Module, other: nn.Module, inputs: Tensor) -> float:
    return (_score(one, inputs) - _score(other, inputs)).abs().max().item()


def _ms(seconds: list[float]) -> float:
    return round(1000 * median(seconds), 4)


def _score(head: nn.Module, inputs: Tensor) -> Tensor:
    return head(inputs).scores


if __name__ == "__main__":
    main()
