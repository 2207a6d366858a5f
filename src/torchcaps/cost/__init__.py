"""What a model costs: parameters, multiply-adds, memory."""

from torchcaps.cost.measure import Cost, measure_cost

__all__ = ["Cost", "measure_cost"]
