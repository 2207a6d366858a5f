"""The toy scene: every routing that shares parts out must send them to their whole."""

import pytest
import torch

from torchcaps.inspect.toy import (
    NOISE,
    PARTS,
    draw_toy_agreement,
    draw_toy_coefficients,
    draw_toy_couplings,
    draw_toy_transport,
    toy_coefficients,
    toy_couplings,
    toy_scene,
)

ROUTINGS = [("dynamic", {}), ("em", {"temperature": 5.0}), ("inverted-attention", {}), ("xnidr", {})]


@pytest.mark.parametrize(("routing", "options"), ROUTINGS)
def test_parts_go_to_their_whole(routing, options):
    couplings = toy_couplings(routing, 4, **options)
    assert couplings.shape == (4, 2 * PARTS + NOISE, 2)
    torch.testing.assert_close(couplings[0], torch.full_like(couplings[0], 0.5))
    torch.testing.assert_close(couplings.sum(-1), torch.ones(4, 2 * PARTS + NOISE))
    assert (couplings[-1, :PARTS, 0] > 0.5).all() and (couplings[-1, PARTS : 2 * PARTS, 1] > 0.5).all()


def test_votes_of_parts_agree_on_their_whole_only():
    children, transform = toy_scene(jitter=0.0)
    votes = torch.nn.functional.normalize(transform(children).dense()[0, 0], dim=-1)
    products = torch.einsum("ijd,kjd->jik", votes, votes)
    torch.testing.assert_close(products[0, :PARTS, :PARTS], torch.ones(PARTS, PARTS))
    assert products[1, :PARTS, :PARTS].triu(1).abs().max() < 0.9


def test_coefficients_of_the_parts_of_what_is_there_grow():
    start, *_, end = toy_coefficients()
    grown = end - start
    assert grown[:PARTS, 0].min() > 0 and grown[:PARTS, 0].mean() > 3 * grown[PARTS:, 0].abs().mean()
    assert end.abs().max() < 10


@pytest.mark.parametrize(
    "draw", [lambda: draw_toy_couplings("dynamic", 2), draw_toy_agreement, draw_toy_coefficients, draw_toy_transport]
)
def test_figures_are_drawn(tmp_path, draw):
    draw().savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000
