"""What we use of other packages beyond what they promise: where one of these fails, a new version has changed it."""

from __future__ import annotations

import importlib.util
import sys
import tomllib
import warnings
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest
import torch
from numba.core.caching import IndexDataCacheFile

from torchcaps.capsules import transformed
from torchcaps.kernels import simd
from torchcaps.usage import read_box, usage_errors

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
ONE = (
    "from two import TWO\nfrom torchcaps.kernels.simd import compiled\n\n\n@compiled\ndef add(x):\n    return x + TWO\n"
)


def test_functions_of_others_without_a_module_compile_beside_ours():
    """As code generators make them; the listener that sets our options hears of all compilations."""
    numba = pytest.importorskip("numba")
    names: dict = {}
    exec("def double(x):\n    return 2 * x", names)
    names["double"].__module__ = None
    assert numba.njit(names["double"])(2) == 4


def test_numba_forgets_what_it_kept_when_another_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its stamp of a source is `_cache._cache_file._source_stamp`, where `simd.compiled` puts that of a folder."""
    monkeypatch.syspath_prepend(tmp_path)

    def added(two: int) -> tuple[float, int]:
        (tmp_path / "one.py").write_text(ONE, encoding="utf-8")
        (tmp_path / "two.py").write_text(f"TWO = {two}\n", encoding="utf-8")
        simd._source.cache_clear()
        for name in ("two", "one"):
            spec = importlib.util.spec_from_file_location(name, tmp_path / f"{name}.py")
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            monkeypatch.setitem(sys.modules, name, module)
            exec(compile((tmp_path / f"{name}.py").read_text(), str(tmp_path / f"{name}.py"), "exec"), vars(module))
        return module.add(1.0), sum(module.add.stats.cache_hits.values())

    said = f"numba {version('numba')} keeps compiled code by another rule: mend kernels/simd.py, `compiled`"
    assert [added(2), added(2), added(5)] == [(3.0, 0), (3.0, 1), (6.0, 0)], said


def adding(two: int, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A compiled function that adds `two`, of a file in `folder`, as another process would read it."""
    source = folder / "one.py"
    source.write_text(ONE.replace("from two import TWO", f"TWO = {two}"), encoding="utf-8")
    simd._source.cache_clear()
    module: dict[str, Any] = {"__name__": "one"}
    monkeypatch.setitem(sys.modules, "one", SimpleNamespace(**module))
    exec(compile(source.read_text(), str(source), "exec"), module)
    return module["add"]


@pytest.mark.parametrize("harm", ["cut index", "cut code", "no room"])
def test_what_numba_kept_and_cannot_be_read_or_written_is_compiled_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, harm: str
) -> None:
    simd._say_not_kept.cache_clear()

    def compiled_anew() -> int:
        add = adding(2, tmp_path, monkeypatch)
        assert add(1.0) == 3.0
        return sum(add.stats.cache_misses.values())

    if harm == "no room":

        def fill(self: Any, path: str) -> None:
            raise OSError(28, "No space left on device", f"{path}.tmp.{uuid4()}")

        monkeypatch.setattr(IndexDataCacheFile, "_open_for_write", fill)
        assert [compiled_anew(), compiled_anew()] == [1, 1]
        assert [each.getMessage() for each in caplog.records] == [
            "torchcaps: compiled kernels are not kept on disk, so each process compiles them anew: "
            "No space left on device; NUMBA_CACHE_DIR names another place"
        ]
        return
    assert [compiled_anew(), compiled_anew()] == [1, 0]
    (file,) = tmp_path.rglob("*.nbi" if harm == "cut index" else "*.nbc")
    file.write_bytes(file.read_bytes()[:40])
    assert [compiled_anew(), compiled_anew()] == [1, 0] and not caplog.records


def test_code_of_an_older_source_is_not_taken_where_the_disk_was_full_for_the_newer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numba writes its small index first, which then names the older code's file."""
    assert adding(2, tmp_path, monkeypatch)(1.0) == 3.0
    with monkeypatch.context() as patch:
        full = OSError(28, "No space left on device")
        patch.setattr(IndexDataCacheFile, "_save_data", lambda self, name, data: (_ for _ in ()).throw(full))
        assert adding(5, tmp_path, monkeypatch)(1.0) == 6.0
    assert adding(5, tmp_path, monkeypatch)(1.0) == 6.0


def test_code_is_not_kept_where_numba_has_no_place_for_our_stamp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simd, "njit", lambda **options: lambda function: options)
    kept = simd.compiled(test_code_is_not_kept_where_numba_has_no_place_for_our_stamp)
    assert kept == {"nogil": True, "error_model": "numpy", "no_cfunc_wrapper": True}


def test_a_subroutine_is_called_by_compiled_functions_alone() -> None:
    """It has no code that takes Python's objects, so numba would jump to the address 0."""

    @simd.subroutine
    def twice(x: float) -> float:
        return 2 * x

    @simd.compiled
    def fourfold(x: float) -> float:
        return twice(twice(x))

    assert fourfold(1.5) == 6.0
    with pytest.raises(TypeError, match="twice is a subroutine of compiled functions"):
        twice(1.5)


def test_torch_says_when_its_transforms_are_at_work() -> None:
    said = f"torch {torch.__version__} says it elsewhere: mend capsules.py, `transformed`"
    found = [transformed()]
    torch.func.vmap(lambda x: found.append(transformed()) or x)(torch.ones(2))
    with torch.autograd.forward_ad.dual_level():
        found.append(transformed())
    assert [*found, transformed()] == [False, True, True, False], said


def test_torch_says_when_it_traces_or_a_mode_sees_its_operations() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    from torchcaps.routing.fused import runs_now

    said = f"torch {torch.__version__} says it elsewhere: mend routing/fused.py, `runs_now`"
    one, found = torch.ones(2), []
    with torch.no_grad():
        found.append(runs_now(one))
        with FlopCounterMode(display=False):
            found.append(runs_now(one))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a trace is out of date, and a list is no part of it
            torch.jit.trace(lambda x: found.append(runs_now(one)) or x + 1, one, check_trace=False)
    assert found == [True, False, False], said


def test_tyro_says_in_a_box_what_is_wrong() -> None:
    import tyro

    def command(size: int = 1) -> None: ...

    with pytest.raises(ValueError) as error, usage_errors():
        tyro.cli(command, args=["--sise", "2"], prog="try")
    said = f"tyro {version('tyro')} draws another box: mend usage.py, `read_box`"
    assert str(error.value) == "Unrecognized options: --sise, 2; the nearest is --size (try --help shows more)", said


@pytest.mark.parametrize("box", ["", "\n", "╭─ Error ─╮\n╰────╯"])
def test_an_empty_box_is_said_all_the_same(box: str) -> None:
    assert read_box(box) == "the command line is wrong"


def test_every_dependency_has_a_lower_bound_that_the_pins_meet() -> None:
    """What the pins have is what was tried; upper bounds stand where internals are used."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {canonicalize_name(name): pin for name, _, pin in (line.partition("==") for line in lines) if pin}
    extras = PROJECT["optional-dependencies"]
    wanted = [Requirement(each) for each in (*PROJECT["dependencies"], *(r for each in extras.values() for r in each))]
    for each in wanted:
        if each.name != PROJECT["name"]:
            assert any(bound.operator == ">=" for bound in each.specifier), f"{each} has no lower bound"
            pin = pins.get(canonicalize_name(each.name))
            assert pin is None or each.specifier.contains(pin), f"{each}, but the pins have {pin}"
    assert {each.name for each in wanted if "<" in str(each.specifier)} == {"numba", "tyro"}
