"""Commands as a user types them."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterable


def typed(words: Iterable[str]) -> str:
    """Return `words` as one line for the shell of the system, quoted where it needs that."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)
