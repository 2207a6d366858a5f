"""Every routing beside its rivals: what a line holds of compiled einsum, and how the page shows it."""

import draw_speed
import pytest
import routing
import torch
from roofline import Machine

from torchcaps.layers import LinearTransform

SMALL = routing.Size(lambda: LinearTransform(6, 3, 4, 5), (6, 4), 2, 1)
CPU, SLOW = torch.device("cpu"), Machine(operations=1e9, bytes=1e9)
KEYS = {f"compiled_{key}" for key in ("forward_ms", "forward_speed_up", "step_ms", "step_speed_up")}


def test_compiled_einsum_is_compiled_ahead_and_timed_with_the_others(monkeypatch):
    """In one call with the others; forward and backward once before that."""
    calls = []

    def compile_slowly(plain, **options):
        assert options == {"dynamic": False}
        return lambda: calls.append("compiled") or plain()

    def interleaved(functions, repeats):
        assert calls.count("compiled") == len(timed) + 1  # what compiles, then one call of each timing
        timed.append(len(functions))
        for function in functions:
            function()
        return [[1.0 + n] * repeats for n in range(len(functions))]

    timed = []
    monkeypatch.setattr(torch, "compile", compile_slowly)
    monkeypatch.setattr(routing, "interleaved", interleaved)
    values = routing.compare(SMALL, "dynamic", 2, 3, CPU, SLOW)
    assert timed == [3, 3]
    assert values["naive_step_ms"] == 1000 and values["step_ms"] == 2000 and values["step_speed_up"] == 0.5
    assert values["compiled_forward_ms"] == values["compiled_step_ms"] == 3000
    assert values["compiled_forward_speed_up"] == values["compiled_step_speed_up"] == 1.5
    assert f"{3000:9.1f}" in routing.summary("dynamic", values)


def test_a_compile_that_fails_is_said_and_gives_none(monkeypatch, caplog):
    def refuse(plain, **_):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", lambda plain, **_: lambda: refuse(plain))
    values = routing.compare(SMALL, "uniform", 2, 1, CPU, SLOW)
    assert {values[key] for key in KEYS} == {None} and values["naive_step_ms"] > 0
    assert "uniform: einsum does not compile: RuntimeError: no compiler here" in caplog.text
    assert routing.summary("uniform", values).count("        -") == 2


def test_without_compiled_a_line_has_nothing_of_it(monkeypatch):
    monkeypatch.setattr(torch, "compile", None)
    values = routing.compare(SMALL, "uniform", 2, 1, CPU, SLOW, with_compiled=False)
    assert not KEYS & set(values)


@pytest.mark.slow
def test_einsum_compiles_and_is_equal():
    pair = routing.build(SMALL, "dynamic", 2, CPU)
    compiled = routing.compile_naive(pair.plain, "dynamic")
    assert compiled is not None
    torch.testing.assert_close(compiled(), pair.plain())


def test_the_page_shows_compiled_einsum_and_where_there_is_none():
    line = {
        **{"benchmark": "routing/fm/linear", "iterations": 1, "batch": 9, "fused": True},
        **dict.fromkeys(("forward_ms", "naive_forward_ms", "step_ms", "naive_step_ms"), 1.0),
        **dict.fromkeys(("held_mb", "naive_held_mb", "forward_of_roofline", "step_of_roofline"), 0.5),
    }
    made = [*draw_speed.routing_row(line)]
    assert len(made) == len(draw_speed.ROUTING) and made[2] == 9 and made[5] == made[8] == "-"
    times = {
        "compiled_forward_ms": 10.5,
        "compiled_forward_speed_up": 10.5,
        "compiled_step_ms": 7,
        "compiled_step_speed_up": 7,
    }
    made = [*draw_speed.routing_row(line | times)]
    assert made[5] == "10.5 (10.5x)" and draw_speed.is_old(line)  # einsum was timed otherwise then: no goal is judged
    line |= {"baseline": 2}
    made = [*draw_speed.routing_row(line | times)]
    assert made[5] == "10.5 (10.5x, reached)" and made[8] == "7.0 (7.0x, missed)"
    assert [*draw_speed.routing_row(line | times | {"benchmark": "routing/xnidr/linear"})][5] == "10.5 (10.5x)"
    assert [*draw_speed.routing_row(line | dict.fromkeys(times))][5] == "fails"


def test_einsum_leaves_out_what_reaches_nothing(monkeypatch):
    """As public code does: no agreement with parents of zeros, no densities behind the last parents."""
    called = []
    softmax = torch.Tensor.softmax
    monkeypatch.setattr(torch.Tensor, "softmax", lambda *given, **named: called.append(1) or softmax(*given, **named))
    votes = torch.rand(2, 1, 5, 3, 4)
    routing.route_naively.__globals__["naive"].inverted_attention(votes, torch.ones(4), torch.zeros(4), 3)
    assert len(called) == 2
    called.clear()
    routing.route_naively.__globals__["naive"].em(votes, torch.rand(2, 1, 5), torch.rand(3), torch.rand(3), 3)
    assert len(called) == 2


def test_the_page_names_the_routings_that_are_not_measured():
    lines = [{"benchmark": f"routing/{name}/linear"} for name in routing.ITERATIONS]
    assert draw_speed.unmeasured(lines, "anywhere") == ""
    left = [line for line in lines if "/em/" not in line["benchmark"]]
    assert draw_speed.unmeasured(left, "of windows") == " Not measured yet of windows: `em`."
