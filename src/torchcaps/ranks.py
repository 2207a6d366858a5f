"""The processes that torchrun or SLURM's srun has started together, each of which is a part of one run.

Nothing here imports torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import NamedTuple


class Ranks(NamedTuple):
    """Where this process stands among those that were started with it."""

    world: int  # processes, of all machines
    rank: int  # of this one, from 0
    here: int  # processes of this machine
    local: int  # of this one among them
    by: str  # who started them
    address: str  # of the machine of rank 0
    port: int
    bound: bool = False  # whether SLURM shows each process the GPU that is its own, and no other (--gpus-per-task)

    @property
    def node(self) -> int:
        """Return the machine's number."""
        return self.rank // self.here


def given_ranks(variables: Mapping[str, str] = os.environ) -> Ranks | None:
    """Return what the environment says of the processes that were started together; None where this one is alone.

    Raises:
        ValueError: for machines with unequal numbers of processes, for a port that is none, and for variables that are
            none of theirs.
    """
    try:
        if "TORCHELASTIC_RUN_ID" in variables and "RANK" in variables:
            world, rank, here, local = (
                int(variables[name]) for name in ("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE", "LOCAL_RANK")
            )
            address, port = variables["MASTER_ADDR"], int(variables["MASTER_PORT"])
            found = Ranks(world, rank, here, local, "torchrun", address, port)
        elif "SLURM_STEP_NUM_TASKS" in variables and "SLURM_PROCID" in variables:
            found = _of_slurm(variables)
        else:
            return None
    except (KeyError, ValueError) as error:
        raise ValueError(f"the variables of torchrun or srun cannot be read: {error}") from error
    if found.world < 2:
        return None
    if found.world % found.here:
        raise ValueError(
            f"{found.by} started {found.world} processes, not as many on each machine: ask for equal numbers"
        )
    if not 0 < found.port < 2**16:
        raise ValueError(
            f"the processes that {found.by} started would meet at port {found.port}, where they never find each other: "
            "give one of 1 to 65535, or torchrun --standalone"
        )
    return found


def _of_slurm(variables: Mapping[str, str]) -> Ranks:
    """Return what a step of srun says. A batch script without srun has no step, and is one process."""
    world, rank, local = (int(variables[name]) for name in ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID"))
    machines = int(variables.get("SLURM_STEP_NUM_NODES", "1"))
    here = variables.get("SLURM_STEP_TASKS_PER_NODE", str(world // machines))  # such as 4, or 4(x2), or 4,3
    address = variables.get("MASTER_ADDR") or first_host(variables.get("SLURM_STEP_NODELIST", "127.0.0.1"))
    job = int(variables.get("SLURM_JOB_ID", "0")) + int(variables.get("SLURM_STEP_ID", "0"))
    port = int(variables.get("MASTER_PORT") or 20000 + job % 20000)
    counts = {part.partition("(")[0] for part in here.split(",")}
    each = int(counts.pop()) if len(counts) == 1 else world + 1  # unequal, which is said above
    bound = "SLURM_GPUS_PER_TASK" in variables or "gpu" in variables.get("SLURM_TRES_PER_TASK", "")
    return Ranks(world, rank, each, local, "srun", address, port, bound)


def first_host(names: str) -> str:
    """Return the first of SLURM's list of hosts, such as node[01-04,7],other."""
    found = re.fullmatch(r"([^,\[]*)(?:\[(\w+)[^]]*\])?([^,]*).*", names)
    assert found is not None, names
    return found[1] + (found[2] or "") + (found[3] or "")
