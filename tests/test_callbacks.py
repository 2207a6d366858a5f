"""Callbacks see a run and leave it as it would be without them."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_config

from torchcaps.config import ModelConfig
from torchcaps.train import Callback, fit


class Busy(Callback):
    """Draws, counts and evaluates, as one that plots would."""

    def __init__(self):
        self.steps, self.results = [], []

    def on_step(self, step, loss, accuracy):
        torch.rand(step)
        self.steps.append(step)

    def on_epoch_end(self, epoch, model, data):
        np.random.seed(0)
        model.eval()
        images, _ = next(iter(data.evaluation("train", 4).epoch(0)))
        with torch.no_grad():
            return {"mean_score": float(model(images).scores.mean()), "drawn": torch.rand(1).item()}

    def on_end(self, result):
        self.results.append(result)


class Meddling(Callback):
    def on_epoch_end(self, epoch, model, data):
        with torch.no_grad():
            model.conv.weight.mul_(2)
        return {}


def lines(result):
    return [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_with_callbacks_is_the_run_without_bit_for_bit(tmp_path):
    options, busy = {"norm": True, "dropout": 0.5}, Busy()
    plain = fit(tiny_config(tmp_path / "plain", options))
    seen = fit(tiny_config(tmp_path / "seen", options), callbacks=[busy])
    assert busy.results == [seen] and busy.steps == list(range(1, lines(seen)[-1]["step"] + 1))
    assert all({"mean_score", "drawn"} <= line.keys() for line in lines(seen))
    assert [line["train_loss"] for line in lines(seen)] == [line["train_loss"] for line in lines(plain)]
    for kept in ("best", "last"):
        weights = [load_file(each.folder / kept / "model.safetensors") for each in (plain, seen)]
        assert weights[0].keys() == weights[1].keys()
        assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())


def test_a_callback_that_changes_the_model_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"Meddling changed 'conv\.weight'"):
        fit(tiny_config(tmp_path), callbacks=[Meddling()])


def test_a_callback_that_changes_images_or_iterations_is_named(tmp_path):
    class Blind(Callback):
        def on_epoch_end(self, epoch, model, data):
            data.train.pixels.zero_()
            return {}

    class Impatient(Callback):
        def on_epoch_end(self, epoch, model, data):
            model.get_submodule("stack").iterations = 7
            return {}

    with pytest.raises(ValueError, match="Blind changed pixels of the train split"):
        fit(tiny_config(tmp_path), callbacks=[Blind()])
    capsnet = tiny_config(
        tmp_path, model=ModelConfig("capsnet", {"channels": 8, "primary": 2, "kernel": 3, "decoder": False})
    )
    with pytest.raises(ValueError, match="Impatient changed iterations or schedule"):
        fit(capsnet, callbacks=[Impatient()])


def test_the_line_of_an_epoch_is_not_the_callbacks_to_change(tmp_path):
    class Boasting(Callback):
        def on_record(self, record):
            record["train_loss"] = 0.0
            record["penalties"] = record["said"]["deep"] = 0.0

        def on_epoch_end(self, epoch, model, data):
            return {"said": {"deep": 1.0}}

    result = fit(tiny_config(tmp_path), callbacks=[Boasting(), Busy()])
    assert all(line["train_loss"] > 0 and line["said"] == {"deep": 1.0} for line in lines(result))


def test_two_callbacks_cannot_say_the_same_thing(tmp_path):
    with pytest.raises(ValueError, match=r"two callbacks say 'drawn'.*Busy is the second"):
        fit(tiny_config(tmp_path), callbacks=[Busy(), Busy()])


def test_a_probe_without_its_callback_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"agreement is 8.*find_probes"):
        fit(tiny_config(tmp_path, agreement=8), callbacks=[Busy()])
    assert not list(tmp_path.iterdir())


def test_the_modes_of_a_models_parts_are_put_back(tmp_path):
    seen = []

    class Switching(Callback):
        def on_epoch_end(self, epoch, model, data):
            seen.append({name: module.training for name, module in model.named_modules()})
            model.train(not model.training)
            return {}

    fit(tiny_config(tmp_path), callbacks=[Switching(), Switching()])
    assert seen[0] == seen[1] and seen[2] == seen[3]
