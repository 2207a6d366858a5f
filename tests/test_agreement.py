"""Figure 2's agreement of votes with their parents, against loops over dense votes, and its picture."""

import math

import pytest
import torch

from torchcaps import create_model
from torchcaps.inspect.agreement import Agreement, draw_agreement, measure_agreement
from torchcaps.inspect.couplings import visiting


def build(routing):
    torch.manual_seed(0)
    options = {"types": 2, "channels": 2, "grid": 2}
    return create_model(f"capnet-6-{routing}", num_classes=3, in_channels=1, image_size=8, **options)


def batches():
    generator = torch.Generator().manual_seed(1)
    return [(torch.rand(n, 1, 8, 8, generator=generator), torch.randint(3, (n,), generator=generator)) for n in (3, 2)]


def loops(model, steps, true_class):
    """Percentages and mean lengths of each layer, a vote at a time."""
    number, length, seen = {}, {}, {}

    def visit(name, layer, children, t, step):
        seen[name] = layer.votes(children).dense()[:, 0], step.capsules.poses  # [b, i, j, d], [b, j, d]

    with torch.no_grad(), visiting(model.eval(), visit):
        for images, labels in batches():
            model(images)
            for name, (votes, parents) in seen.items():
                top = parents.shape[1] == 3
                for b, i, j in torch.cartesian_prod(*map(torch.arange, votes.shape[:3])).tolist():
                    if top and true_class and j != labels[b]:
                        continue
                    vote, parent = votes[b, i, j].tolist(), parents[b, j].tolist()
                    size = math.hypot(*vote)
                    cosine = sum(x * y for x, y in zip(vote, parent, strict=True)) / (size * math.hypot(*parent))
                    step = min(int((cosine + 1) / 2 * steps), steps - 1)
                    number.setdefault(name, [0] * steps)[step] += 1
                    length.setdefault(name, [0.0] * steps)[step] += size
    return {
        name: (
            [100 * n / sum(counts) for n in counts],
            [total / max(n, 1) for total, n in zip(length[name], counts, strict=True)],
        )
        for name, counts in number.items()
    }


@pytest.mark.parametrize("routing", ["dynamic", "em"])
@pytest.mark.parametrize("true_class", [True, False])
def test_equals_the_loops(routing, true_class):
    model = build(routing).train()
    found = measure_agreement(model, batches(), steps=6, true_class=true_class)
    assert model.training
    wanted = loops(model, 6, true_class)
    assert list(found) == list(wanted) == ["stack.0", "stack.1"]
    for name, agreement in found.items():
        assert agreement.routing == routing and sum(agreement.share) == pytest.approx(100)
        assert agreement.share == pytest.approx(wanted[name][0])
        assert agreement.length == pytest.approx(wanted[name][1], rel=1e-4)


def test_convolutional_capsules_and_label_sets_are_measured_too():
    model = create_model("capsnet", image_size=12, channels=4, primary=2, kernel=3)
    (agreement,) = measure_agreement(model, [(torch.rand(2, 1, 12, 12), torch.eye(10)[:2])]).values()
    assert sum(agreement.share) == pytest.approx(100) and len(agreement.share) == 20


def test_votes_without_a_direction_count_as_at_right_angles():
    model = build("dynamic")
    with torch.no_grad():
        for layer in model.stack.layers:
            layer.transform.weight.zero_()
    for agreement in measure_agreement(model, batches(), steps=4).values():
        assert agreement == Agreement("dynamic", (0, 0, 100, 0), (0, 0, 0, 0))


def test_the_figure_has_a_row_for_each_routing_and_a_panel_for_each_epoch(tmp_path):
    rows = {
        routing: {epoch: measure_agreement(build(routing), batches())["stack.0"] for epoch in epochs}
        for routing, epochs in (("dynamic", (1, 20, 80)), ("em", (1, 20)))
    }
    figure = draw_agreement(rows)
    titles = [axes.get_title() for axes in figure.axes if axes.get_title()]
    assert titles == [f"dynamic, epoch {n}" for n in (1, 20, 80)] + [f"em, epoch {n}" for n in (1, 20)]
    figure.savefig(tmp_path / "agreement.png")


def test_bad_steps_are_named():
    with pytest.raises(ValueError, match="steps is 1"):
        measure_agreement(build("dynamic"), batches(), steps=1)
