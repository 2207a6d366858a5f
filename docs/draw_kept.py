"""Draw pictures/kept-discriminative.png: accuracy on the digits against primary capsules kept, from results/kept.jsonl.

python docs/draw_kept.py

One line is of networks that were trained with the proximal step on whole rows, at several lambda; the other is the
first of them, with its least important capsules taken away afterwards (`benchmarks/kept.py`).
"""

from __future__ import annotations

from pathlib import Path

from discriminative_blocks import newest_kept

from torchcaps.inspect.figures import draw_kept, style

PICTURES = Path(__file__).parent / "pictures"


def main() -> None:
    lines = newest_kept()
    curves = {
        "taken away afterwards": [(count, accuracy) for count, accuracy in lines[0]["taken_away"]],
        "trained, by lambda": [(line["kept"], line["test_accuracy"]) for line in lines],
    }
    with style():
        draw_kept(curves).savefig(PICTURES / "kept-discriminative.png", dpi=110)


if __name__ == "__main__":
    main()
