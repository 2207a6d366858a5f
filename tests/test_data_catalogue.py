"""The list of data sets, and what an import of it brings along."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from torchcaps.cli import main
from torchcaps.data import CATALOGUE, data_root, find
from torchcaps.data.catalogue import register
from torchcaps.data.entries import CIFAR100


class TestImports:
    """What an import brings with it, in a fresh interpreter."""

    @pytest.mark.parametrize(
        ("module", "unwanted"),
        [
            ("torchcaps.data.catalogue", ["torch", "numpy"]),
            ("torchcaps.data", ["torchvision", "PIL", "scipy"]),
            ("torchcaps.data.load, torchcaps.data.folder", ["torchvision", "PIL", "scipy"]),
        ],
    )
    def test_import_leaves_out(self, module, unwanted):
        code = f"import sys, {module}; print([m for m in {unwanted} if m in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"

    def test_every_public_name_resolves(self):
        import torchcaps.data as package

        assert all(hasattr(package, name) for name in package.__all__)
        with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
            _ = package.Nothing


class TestCatalogue:
    def test_every_reader_exists(self):
        from importlib import import_module

        for entry in CATALOGUE.values():
            module, function = entry.reader.split(":")
            assert callable(getattr(import_module(module), function))
            assert "\n" not in entry.facts() + entry.about

    def test_unknown_name_tells_the_nearest(self):
        with pytest.raises(ValueError, match="no data set is named 'fashion_mnist'; the nearest is 'fashion-mnist'"):
            find("fashion_mnist")
        with pytest.raises(ValueError, match="'npz:PATH'"):
            find("npz")
        with pytest.raises(ValueError, match="lacks its path"):
            find("folder:")

    def test_homes_that_are_not_known(self):
        with pytest.raises(ValueError, match="no data set is named '~nobody_here'"):
            find("~nobody_here")
        with pytest.raises(ValueError, match=r"~nobody_here/a begins with ~, .*, or \./~nobody_here/a where that is"):
            find("folder:~nobody_here/a")
        with pytest.raises(ValueError, match="~nobody_here begins with ~"):
            data_root(Path("~nobody_here"))

    def test_path_may_hold_colons(self):
        assert find("npz:C:/data.npz")[1] == Path("C:/data.npz")

    def test_a_name_is_registered_once(self):
        with pytest.raises(ValueError, match="'digits' is already registered"):
            register(replace(CATALOGUE["digits"], reader="mine:read"))

    def test_an_entry_that_is_registered_again_takes_its_own_place(self, monkeypatch):
        monkeypatch.setattr("torchcaps.data.catalogue.CATALOGUE", dict(CATALOGUE))
        mine = register(replace(CATALOGUE["digits"], name="mine"))
        register(replace(mine, about="as when a cell of a notebook is run twice"))
        assert find("mine")[0].about == "as when a cell of a notebook is run twice"
        with pytest.raises(ValueError, match="'digits' is already registered, read by torchcaps"):
            register(replace(CATALOGUE["digits"], about="another"))

    def test_a_user_without_a_home_is_told_what_to_set(self, monkeypatch, capsys):
        """As in a container under a number that no name belongs to."""

        def fail():
            raise RuntimeError("Could not determine home directory.")

        for name in ("TORCHCAPS_DATA", "TORCHCAPS_CACHE", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(Path, "home", fail)
        assert main(["data", "list"]) == 2
        assert "this user has no home folder to keep data in: set TORCHCAPS_CACHE" in capsys.readouterr().err

    def test_root_is_argument_then_variable_then_cache(self, monkeypatch):
        monkeypatch.setenv("TORCHCAPS_DATA", "/variable")
        monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
        assert data_root(Path("/argument")) == Path("/argument")
        assert data_root() == Path("/variable")
        monkeypatch.delenv("TORCHCAPS_DATA")
        assert data_root() == Path("/cache/torchcaps/data")
        monkeypatch.delenv("XDG_CACHE_HOME")
        assert data_root() == Path.home() / ".cache/torchcaps/data"

    def test_cifar100_has_a_hundred_classes_in_order(self):
        assert len(CIFAR100) == 100 and list(CIFAR100) == sorted(CIFAR100)
