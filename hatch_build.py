"""What the package's metadata say of its address: read from where it stands, and nothing while it is empty."""

from __future__ import annotations

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface


class Address(MetadataHookInterface):
    """Fills `project.urls` from `ADDRESS` in src/torchcaps/usage.py."""

    def update(self, metadata: dict) -> None:
        source = (Path(self.root) / "src" / "torchcaps" / "usage.py").read_text(encoding="utf-8")
        found = re.search(r'^ADDRESS = "(.*?)"', source, re.MULTILINE)
        assert found is not None, "usage.py has no ADDRESS"
        metadata["urls"] = {"Homepage": found[1], "Issues": f"{found[1]}/issues"} if found[1] else {}
