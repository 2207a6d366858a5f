"""Every recipe: complete, buildable, and listed without torch."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from torchcaps.config import Config, from_plain, to_plain
from torchcaps.data.catalogue import CATALOGUE
from torchcaps.losses import build_criterion
from torchcaps.models import create_model
from torchcaps.recipes import create_recipe, list_recipes
from torchcaps.train import build_phases

NAMES = list(list_recipes())


@pytest.mark.parametrize("name", NAMES)
def test_recipe_is_a_complete_config(name: str) -> None:
    config = create_recipe(name)
    assert config.recipe == name
    assert from_plain(Config, json.loads(json.dumps(to_plain(config)))) == config
    assert list_recipes()[name].endswith(".")


@pytest.mark.parametrize("name", NAMES)
def test_recipe_names_a_model_that_takes_its_data(name: str) -> None:
    config = create_recipe(name)
    entry = CATALOGUE[config.data.name]
    size = config.data.image_size or entry.image_size
    assert size is not None
    model = create_model(
        config.model.name,
        num_classes=len(entry.classes),
        in_channels=entry.channels,
        image_size=size,
        **config.model.options,
    )
    assert build_phases(model, config)[0].parameters
    build_criterion(config.loss)


def test_names_come_from_functions_and_match_patterns() -> None:
    assert {"digits", "capsnet-mnist", "capsnet-fashion-mnist", "capsnet-cifar10"} <= set(NAMES)
    assert list(list_recipes("*fashion*")) == ["capsnet-fashion-mnist"]


def test_nearest_recipe_is_named() -> None:
    with pytest.raises(ValueError, match="no recipe is named 'capsnet-minst'; the nearest is 'capsnet-mnist'"):
        create_recipe("capsnet-minst")


def test_recipes_import_no_torch() -> None:
    code = "import sys, torchcaps.recipes; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
