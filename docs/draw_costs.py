"""Write docs/costs-xnodr.md and docs/costs-encapnet.md: what the papers say that networks cost, and what we count."""

from __future__ import annotations

from pathlib import Path

from torchcaps.cost import cost_table, published_costs

TITLES = {"xnodr": "XnODR and XnIDR (Sun et al. 2023)", "encapnet": "EncapNet (Li et al. 2018)"}
LEGEND = """Made by `docs/draw_costs.py` from `torchcaps.cost.published_costs()`. "Their convention" is the paper's own
way of counting; "ours" counts every operation of our network or head, two for a multiply-add, routing included, and
trainable parameters, of timm's backbones. "yes": equal to the last printed digit; else why it cannot be reproduced."""


def main() -> None:
    for paper in TITLES:
        path = Path(__file__).parent / f"costs-{paper}.md"
        path.write_text(page(paper), encoding="utf-8")
        print(path)


def page(paper: str) -> str:
    """The whole page; every network of the paper is built without memory, and counted."""
    return f"# Costs: {TITLES[paper]}\n\n{LEGEND}\n\n{cost_table(published_costs(paper))}\n"


if __name__ == "__main__":
    main()
