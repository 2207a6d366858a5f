"""The file of `gpu_all.py`: a line of JSON for each item as it begins and as it ends, on the disk before the next.

It is made to be sent to strangers. What a script says holds paths, and these the names of a user and of folders.
"""

from __future__ import annotations

import getpass
import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

SETTLED = ("done", "failed", "died", "absent")  # an item that ended so is not run again
ATTEMPTS = 3  # of an item that is cut each time


class Log:
    """What was found so far, and what is still to do."""

    def __init__(self, path: Path):
        self.path = path
        self.lines: list[dict[str, Any]] = []
        if path.exists():
            for text in path.read_text(encoding="utf-8").splitlines():
                try:
                    self.lines.append(json.loads(text))
                except ValueError:
                    continue  # the machine was taken away in the middle of it

    def write(self, line: dict[str, Any]) -> None:
        """Append a line; it is on the disk when this returns."""
        self.lines.append(line)
        cut = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a", encoding="utf-8") as file:
            file.write(("\n" if cut else "") + hide(json.dumps(line)) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def begin(self, item: str) -> None:
        self.write({"item": item, "began": round(time.time(), 1)})

    def end(self, item: str, outcome: str, **found: Any) -> None:
        self.write({"item": item, "outcome": outcome, **found})

    def open_item(self) -> str | None:
        """The item that was begun last and has not ended."""
        for line in reversed(self.lines):
            if "item" in line:
                return line["item"] if "began" in line else None
        return None

    def settled(self, item: str) -> bool:
        """Whether nothing more is to be found out of it."""
        mine = [line for line in self.lines if line.get("item") == item]
        ended = any(line.get("outcome") in SETTLED for line in mine)
        return ended or sum(("began" in line) - line.get("goes_on", False) for line in mine) >= ATTEMPTS


def hide(line: str) -> str:
    """A line of JSON with other names for the folders of the checkout, of Python and of the user's home, and for the
    user's name where another path has it.
    """
    folders = {Path(__file__).resolve().parent.parent: "CHECKOUT", Path(sys.prefix): "PYTHON", Path.home(): "~"}
    for folder, name in sorted(folders.items(), key=lambda each: -len(str(each[0]))):  # one may lie in another
        if len(folder.parts) > 1:  # "/" is nobody's
            line = line.replace(json.dumps(str(folder))[1:-1], name)
    return re.sub(rf"(?<=[/\\]){re.escape(_user())}(?=[/\\\"])", "USER", line)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a number without a name
        return Path.home().name or "USER"
