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
from torchcaps.papers import create_recipe, list_recipes, registry
from torchcaps.train import build_phases

NAMES = [name for name in list_recipes() if "/" not in name]
CELLS = [name for name in list_recipes() if "/" in name]


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
    assert list(list_recipes("capsnet-fashion*")) == ["capsnet-fashion-mnist"]
    assert "fm/table2/ours-cifar10" in list_recipes("fm/*")
    assert len(CELLS) > 300


@pytest.mark.parametrize("budget", [None, "full", "fast", "short", "cpu", "smoke"])
def test_every_recipe_has_every_budget(budget) -> None:
    digits = create_recipe("digits", budget)
    assert digits.recipe == ("digits" if budget is None else f"digits.{budget}")
    cell = create_recipe(CELLS[0], budget)
    assert cell.recipe.startswith(CELLS[0].replace("/", ".") + "." + (budget or "full"))
    with pytest.raises(ValueError, match="budget is 'huge'"):
        create_recipe("digits", "huge")  # pyright: ignore[reportArgumentType]


def test_nearest_recipe_is_named() -> None:
    with pytest.raises(ValueError, match="no recipe is named 'capsnet-minst'; the nearest is 'capsnet-mnist'"):
        create_recipe("capsnet-minst")


def test_recipes_import_no_torch() -> None:
    code = "import sys, torchcaps.papers; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_recipes_are_entered_as_routings_and_models_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_RECIPES", dict(registry._RECIPES))

    def mine() -> Config:
        """Train mine."""
        return Config()

    for _ in range(2):
        assert registry.recipe(mine) is mine and "mine" in list_recipes()
    mine.__name__ = "digits"
    with pytest.raises(ValueError, match=r"recipe 'digits' is torchcaps\.papers\..* already: give .*mine another name"):
        registry.recipe(mine)
    mine.__name__ = "_Mine"
    with pytest.raises(ValueError, match="a recipe is named '-Mine'; it must be lower-case words and digits"):
        registry.recipe(mine)
    mine.__name__, mine.__doc__ = "other", None
    with pytest.raises(ValueError, match="recipe 'other' has no docstring"):
        registry.recipe(mine)
    with pytest.raises(ValueError, match="--import FILE brings your own"):
        create_recipe("minee")
