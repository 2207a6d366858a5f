"""What a routing's page shows of published and measured numbers: cells of the tables that test it."""

from __future__ import annotations

from blocks import cells

from torchcaps.papers import find_tables
from torchcaps.tables.budget_names import REPRODUCTIONS, SHOWN, Budget

NO_RUN = "No run of a paper's table with this routing is there yet.\n"
CLAIMS: dict[str, tuple[tuple[str, ...], ...]] = {
    # Of a routing: a table, the cells in it that choose the budget, and the rivals that are shown beside them.
    "uniform": (("fm/figure4", "*-dynamic-1-code", "*-code"),),  # dynamic routing of one iteration
    "dynamic": (
        ("fm/figure4", "*-dynamic-?-code", "*-code"),
        ("discriminative/table2", "*-dr", "*-l?", "*-control"),
        ("xnodr/table8", "*-dynamic-*"),
        ("xnodr/table4", "*-plain-*"),
        ("encapnet/table1", "dynamic-*", "*-cifar10"),
        ("inverted-attention/figure4", "convergence-dynamic-?", "convergence-em-?", "convergence-attention-?"),
        ("fm/table3", "dynamic-*", "*-affine-digits"),
    ),
    "em": (
        ("encapnet/table1", "em-*", "*-cifar10"),
        ("inverted-attention/figure4", "convergence-em-?", "convergence-dynamic-?", "convergence-attention-?"),
        ("fm/table3", "em-*", "*-affine-digits"),
    ),
    "fm": (
        ("fm/table2", "ours-*"),
        ("fm/figure4", "*-fm-code", "*-code"),
        ("fm/table3", "fm-*", "*-affine-digits"),
    ),
    "inverted-attention": (
        ("inverted-attention/table1", "attention-*", "dynamic-*", "em-*"),
        ("inverted-attention/figure4", "convergence-dynamic-?", "convergence-em-?", "convergence-attention-?"),
    ),
    "inverted-attention-c": (("inverted-attention/figure4", "ablation-c-*", "convergence-attention-[25]"),),
    "discriminative": (("discriminative/table2", "*-l?", "*-l?-fc", "*-dr", "*-dr-fc", "*-control"),),
    "xnodr": (("xnodr/table4", "*-xnodr-*", "*-xnidr-*", "*-linear-*"), ("xnodr/table8", "*-dynamic-*")),
    "xnidr": (("xnodr/table4", "*-xnidr-*", "*-xnodr-*", "*-linear-*"), ("xnodr/table8", "*-dynamic-*")),
    "xnodr-xnidr": (
        ("xnodr/text-both", "*-xnodr-xnidr-*"),
        ("xnodr/figure4", "*-xnodr-xnidr-*", "mobilenet-*-plain"),
    ),
    "variational-bayes": (("variational-bayes/table-quoted", "*"),),
    "self-routing": (("self-routing/table-poster", "*"),),
    "self-attention": (("efficient-capsnet/table2", "*"),),
}


def claims_part(routing: str) -> str:
    """Return of each table the budgets at full size that have runs, or the narrowed one where none has."""
    parts: list[str] = []
    for table, own, *rivals in CLAIMS[routing]:
        run: list[Budget] = [budget for budget in SHOWN if _has_rows(cells(table, budget, own))]
        full: list[Budget] = [each for each in run if each in REPRODUCTIONS]
        for budget in full or run:
            printed, made = _caption(table), cells(table, budget, own, *rivals)
            parts += [f"[{printed}](../../results/tables/{table}.md), budget `{budget}`:", "", made, ""]
    return "\n".join(parts) or NO_RUN


def _caption(table: str) -> str:
    (found,) = find_tables(table)
    return f"{found.paper.citation}, {found.printed}: {found.title}"


def _has_rows(made: str) -> bool:
    return made.count("\n") > 1
