"""What a model costs: parameters, multiply-adds, all operations, memory; and what the papers say that theirs cost."""

from typing import TYPE_CHECKING

from torchcaps.lazy import resolver

if TYPE_CHECKING:
    from torchcaps.cost.measure import Cost, count_cost, measure_cost
    from torchcaps.cost.operations import count_operations
    from torchcaps.cost.published import PublishedCost, cost_table, published_costs

_HOMES = {
    "measure": ("Cost", "count_cost", "measure_cost"),
    "operations": ("count_operations",),
    "published": ("PublishedCost", "cost_table", "published_costs"),
}

__all__ = ["Cost", "PublishedCost", "cost_table", "count_cost", "count_operations", "measure_cost", "published_costs"]

__getattr__ = resolver(__name__, _HOMES)
