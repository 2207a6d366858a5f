"""The names of budgets, and what stands in the place of one in a line that no run of a budget is behind.

What each makes of a recipe is said, and done, in `torchcaps.tables.budgets`.
"""

from __future__ import annotations

from typing import Literal, get_args

Budget = Literal["full", "fast", "short", "cpu", "smoke"]
BUDGETS: tuple[Budget, ...] = get_args(Budget)
REPRODUCTIONS: tuple[Budget, ...] = ("full", "fast", "short")  # the others are never shown as one
FULL: Budget = "full"  # as the paper trains, which needs no mark
EVIDENCE: Budget = "cpu"  # shown apart, where there is no reproduction
SMOKE: Budget = "smoke"  # that has learnt nothing to be shown
SHOWN: tuple[Budget, ...] = (*REPRODUCTIONS, EVIDENCE)
ONE_OF = f"{', '.join(BUDGETS[:-1])} or {BUDGETS[-1]}"

COUNT: Literal["count"] = "count"  # of numbers that need no training
FORMULA = "formula"  # of what is arithmetic alone
COST = "cost"  # of what a head of a comparison costs
EXAMINED = "examine"  # of what routing does in a finished run
