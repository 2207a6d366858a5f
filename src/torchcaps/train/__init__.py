"""Training: a `Config` in, a `Result` and the folder of a run out, on Lightning Fabric."""

from torchcaps.train.callbacks import Callback
from torchcaps.train.evaluation import evaluate
from torchcaps.train.fitting import fit
from torchcaps.train.interrupt import Interrupted
from torchcaps.train.meter import Score
from torchcaps.train.opened import load_run
from torchcaps.train.phases import Phase, build_phases
from torchcaps.train.resuming import unfinished_runs
from torchcaps.train.run import InUse, Result, RunFolder

__all__ = [
    "Callback",
    "InUse",
    "Interrupted",
    "Phase",
    "Result",
    "RunFolder",
    "Score",
    "build_phases",
    "evaluate",
    "fit",
    "load_run",
    "unfinished_runs",
]
