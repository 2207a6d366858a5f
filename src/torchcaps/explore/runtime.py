"""ONNX Runtime Web, by which a page computes: where it lies on this machine, and as it stands in a page.

It is in no commit and in no wheel of torchcaps. npm fetches it once, into the user's cache or where `--runtime` says.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from torchcaps.data.catalogue import cache_root
from torchcaps.files import check_plain, expand_home
from torchcaps.shell import typed

PACKAGE, VERSION = "onnxruntime-web", "1.30.0"  # of npm; the version that the tests run
SCRIPT, WASM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
PLACES = (  # below a folder that is given
    "",
    "dist",
    "package/dist",
    f"{PACKAGE}/dist",
    f"node_modules/{PACKAGE}/dist",
)
NEEDED = ("InferenceSession", "Tensor", "env")  # of what the script exports
MAGIC = b"\0asm"
_EXPORTS = re.compile(r"export\s*\{([^{}]*)\}\s*;?\s*(?://#[^\n]*)?\s*$")
_VERSION = re.compile(r"ONNX Runtime Web v([0-9][0-9A-Za-z.-]*)")


class Runtime(NamedTuple):
    """What a page needs to compute."""

    script: str  # which leaves `ort` behind, in place of what the module exports
    wasm: bytes
    version: str  # "" where the script does not say


def runtime_folder() -> Path:
    """Return the folder of the user's cache in which the runtime is looked for."""
    return cache_root() / PACKAGE


def fetch_command(folder: Path) -> str:
    """Return the command that has npm put the runtime into `folder`."""
    return typed(["npm", "install", "--prefix", str(folder), "--ignore-scripts", f"{PACKAGE}@{VERSION}"])


def find_runtime(folder: str | Path | None = None) -> Runtime:
    """Return the runtime in `folder`: that of the two files, of npm's package, or the one in which npm installed it.

    None: the folder of the user's cache, see `runtime_folder`.

    Raises:
        FileNotFoundError: when it is not there; says the command that fetches it.
        ValueError: when one of the files is not what its name says.
    """
    home = runtime_folder() if folder is None else expand_home(folder)
    found = next((home / place for place in PLACES if (home / place / SCRIPT).exists()), None)
    if found is None or not (found / WASM).exists():
        lacks = f"it lacks {WASM}" if found is not None else f"there is no {SCRIPT} in it"
        raise FileNotFoundError(
            f"{home} does not hold {PACKAGE}, by which the page computes ({lacks}): fetch it once with "
            f"`{fetch_command(runtime_folder())}`, or give --runtime the folder of the two files"
        )
    for name in (SCRIPT, WASM):
        check_plain(found / name)
    wasm = (found / WASM).read_bytes()
    if not wasm.startswith(MAGIC):
        raise ValueError(f"{found / WASM} is no WebAssembly: fetch it again with `{fetch_command(runtime_folder())}`")
    try:
        text = (found / SCRIPT).read_text(encoding="utf-8")
        version = _VERSION.search(text)
        return Runtime(as_script(text), wasm, version[1] if version else "")
    except ValueError as error:
        raise ValueError(f"{found / SCRIPT} cannot be used: {error}") from error


def as_script(module: str) -> str:
    """Return a module as it may stand in a page: what it exports becomes `globalThis.ort`, and no tag ends it early.

    Raises:
        ValueError: when it does not end by exporting what the page needs.
    """
    match = _EXPORTS.search(module)
    pairs = [each.split() for each in match[1].split(",") if each.strip()] if match else []
    names = {pair[-1]: pair[0] for pair in pairs}
    if match is None or any(name not in names for name in NEEDED):
        raise ValueError(f"it is not the bundle of {PACKAGE}, which exports {', '.join(NEEDED)}")
    given = ",".join(f"{name}:{names[name]}" for name in NEEDED)
    text = f"{module[: match.start()]}globalThis.ort={{{given}}};"
    return re.sub(r"<(?=/script|!--)", r"\\x3c", text, flags=re.IGNORECASE).replace("\r\n", "\n").replace("\r", "\n")
