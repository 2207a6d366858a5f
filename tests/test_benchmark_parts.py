"""Steps of networks in parts: einsum's form computes what ours does, and its peaks and shares are shown."""

import draw_speed
import parts
import pytest
import torch

from torchcaps.layers import CapsuleLayer, CapsuleStack, LinearTransform
from torchcaps.models import HeadedModel
from torchcaps.models.heads import CapsuleHead

SMALL = parts.CASES["efficient-capsnet-mnist"]


@pytest.fixture
def recorded(monkeypatch):
    lines = []
    monkeypatch.setattr(
        parts,
        "record",
        lambda name, values: lines.append({"benchmark": name, **values, "environment": {"cpu": "here"}}),
    )
    return lines


def test_a_step_with_more_images_holds_more_and_einsum_most(recorded):
    parts.memory("small", SMALL._replace(sizes=(2, 6)))
    (line,) = recorded
    assert line["difference"] < 1e-5 and set(line["peak_bytes"]) == set(draw_speed.FORMS)
    for form, (few, many) in line["peak_bytes"].items():
        assert few < many
        assert 6 < line["largest_in_8_gb"][form] < 8e9 / (many - few) * 4 + 2
    for cpu, mark in (("here", ""), ("elsewhere", " †")):
        made = draw_speed.memory(recorded, cpu)
        assert f"| `small`{mark} | 6 | {line['peak_bytes']['ours'][1] / 1e6:,.0f} |" in made
    assert draw_speed.memory([], "here") == draw_speed.shares([], "here") == ""


def test_a_line_through_two_peaks_says_which_batch_fits():
    assert parts.largest_batch((2, 4), [1_000_000_000, 3_000_000_000]) == 9


def test_shares_are_parts_of_a_whole(recorded):
    parts.shares("small", SMALL._replace(batch=4), 1)
    (line,) = recorded
    assert sum(line["shares"].values()) == pytest.approx(1, abs=1e-3)
    assert line["shares"]["capsules"] > 0
    assert "| network | batch | step | convolutions |" in draw_speed.shares(recorded, "here")
    assert "| `small` | 4 |" in draw_speed.shares(recorded, "here")
    assert "| `small` † | 4 |" in draw_speed.shares(recorded, "elsewhere")


@pytest.mark.parametrize(("routing", "options"), [("em", {}), ("fm", {"hidden": (3,)}), ("dynamic", {"hidden": (3,)})])
def test_einsum_routes_every_layer_of_a_stack_as_ours_does(routing, options):
    torch.manual_seed(0)
    model = HeadedModel(torch.nn.Flatten(), CapsuleHead(routing, 32, 3, **options))
    einsum = parts.einsum_form(model)
    assert einsum is not None
    images = torch.randn(4, 2, 4, 4)
    torch.testing.assert_close(einsum(images).scores, model(images).scores, rtol=1e-4, atol=1e-5)


def test_what_einsum_is_not_written_for_is_left_out():
    placed = CapsuleLayer(LinearTransform(6, 2, 9, 9, matrix=True, coordinates=True))
    assert parts.einsum_form(torch.nn.Sequential(CapsuleStack([placed]))) is None
    assert parts.einsum_form(torch.nn.Sequential(torch.nn.ReLU())) is None
