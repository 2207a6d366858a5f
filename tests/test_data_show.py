"""Contact sheets, the listing of sets, and their commands."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from torchcaps.cli import main
from torchcaps.config import AugmentConfig, ComposeConfig, DataConfig
from torchcaps.data import CATALOGUE, Data, Images, load_data
from torchcaps.data.listing import list_sets
from torchcaps.data.show import draw_sheet, write_sheet


class TestSheet:
    def test_labels_and_images_are_those_of_the_set(self):
        data = load_data(DataConfig())
        figure = draw_sheet(data, AugmentConfig(), 12)
        axes = figure.axes
        assert [each.get_title() for each in axes[:12]] == [*"0123456789", "0", "1"]
        first = {label: torch.where(data.train.targets(torch.arange(99)) == label)[0][0] for label in range(10)}
        shown = axes[7].images[0].get_array()
        assert np.allclose(shown, data.train.fetch(first[7][None])[0, 0].numpy() / 255)
        assert len(axes) == 36 and [each.get_ylabel() for each in axes[::12]] == ["before", "after, 1", "after, 2"]
        assert np.allclose(axes[12 + 7].images[0].get_array(), shown), "nothing was to be changed"

    def test_overlapped_parts_are_green_and_blue(self):
        data = load_data(DataConfig(name="diverse-multimnist", compose=ComposeConfig(base="digits")))
        figure = draw_sheet(data, AugmentConfig(crop=4), 8)
        titles = [each.get_title() for each in figure.axes[:8]]
        parts = [np.asarray(each.images[0].get_array()) for each in figure.axes[8:16]]
        assert {len(title.split(" + ")) for title in titles} == {1, 2}
        for title, part in zip(titles, parts, strict=True):
            blue = (part[..., 2] > part[..., 1]).any()
            assert blue == ("+" in title), title

    def test_files(self, tmp_path):
        config = DataConfig(augment=AugmentConfig(shift=1))
        picture, page = write_sheet(config, tmp_path, 5)
        assert picture == tmp_path / "digits.png" and Image.open(picture).size[0] > 400
        text = page.read_text()
        inlined = re.search(r'src="data:image/png;base64,([^"]+)"', text)
        assert inlined and base64.b64decode(inlined[1]) == picture.read_bytes()
        assert "default-src 'none'" in text and "base-uri 'none'; form-action 'none'" in text
        assert "shift 1" in text and "CC BY 4.0" in text and not re.search(r'(src|href)="http', text)

    def test_names_are_no_formulas_and_no_paths(self, tmp_path):
        names = ("a$x_b", "$\\frac", "c")
        images = Images(torch.arange(9 * 64).view(9, 1, 8, 8).to(torch.uint8), torch.arange(9) % 3, names)
        figure = draw_sheet(Data(images, images, images), AugmentConfig(), 3)
        assert [axes.get_title() for axes in figure.axes[:3]] == ["a$x b", "$\\frac", "c"]
        figure.savefig(io.BytesIO(), format="png")

    def test_a_sheet_s_name_is_one_file_on_every_system(self, tmp_path, monkeypatch):
        monkeypatch.setattr("torchcaps.data.show.load_data", lambda config: load_data(DataConfig()))
        monkeypatch.setattr("torchcaps.data.show._page", lambda *args: "")
        (tmp_path / "folder-C-x-pics.html").symlink_to(tmp_path / "victim")
        picture, page = write_sheet(DataConfig(r"folder:C:\x\pics"), tmp_path, 2)
        assert (picture.name, page.name) == ("folder-C-x-pics.png", "folder-C-x-pics.html")
        assert not page.is_symlink() and not (tmp_path / "victim").exists()


class TestListing:
    def test_says_what_is_there(self, tmp_path):
        listings = {listing.name: listing for listing in list_sets(tmp_path)}
        assert list(listings) == list(CATALOGUE)
        assert listings["digits"].there is True and listings["npz:PATH"].there is None
        assert listings["mnist"].there is False and "and 3 more" in listings["mnist"].how
        assert listings["smallnorb"].place == str(tmp_path / "smallNORB") and "cs.nyu.edu" in listings["smallnorb"].how
        for group in CATALOGUE["smallnorb"].files:
            (tmp_path / group[1]).parent.mkdir(exist_ok=True)
            (tmp_path / group[1]).touch()
        listings = {listing.name: listing for listing in list_sets(tmp_path)}
        assert listings["smallnorb-azimuth"].there is True and listings["affnist"].there is False

    def test_needs_no_torch(self):
        code = "import sys, torchcaps.data.listing; print([m for m in ('torch', 'numpy') if m in sys.modules])"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == "[]"


class TestCommands:
    def test_list(self, tmp_path, capsys):
        assert main(["data", "list", "--root", str(tmp_path)]) == 0
        printed = capsys.readouterr().out
        assert all(f"{name}: " in printed for name in CATALOGUE)
        assert "licence: research only, not to be sold" in printed and "inside torchcaps: there" in printed
        assert main(["data", "list", "--json"]) == 0
        assert {record["name"] for record in json.loads(capsys.readouterr().out)} == set(CATALOGUE)

    def test_show(self, tmp_path, capsys):
        flags = ["--data.compose.base", "digits", "--images", "3", "--out", str(tmp_path)]
        assert main(["data", "show", "multimnist", *flags]) == 0
        assert [line.rsplit("/", 1)[1] for line in capsys.readouterr().out.split()] == [
            "multimnist.png",
            "multimnist.html",
        ]

    @pytest.mark.parametrize(
        ("args", "message"),
        [(["show", "nist"], "the nearest is 'mnist'"), (["show", "digits", "--images", "0"], "images is 0")],
    )
    def test_faults_are_one_line(self, args, message, capsys):
        assert main(["data", *args]) == 2
        assert message in capsys.readouterr().err
