"""The command line, in process; what must not import torch is asked in a process of its own."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace
from functools import reduce
from pathlib import Path

import pytest
from tiny import tiny_config

from torchcaps.cli import COMMANDS, main, parse_flags
from torchcaps.cli.flags import take_budget
from torchcaps.cli.helping import COMMON
from torchcaps.config import Config, ModelConfig
from torchcaps.papers import create_recipe, registry
from torchcaps.report.reproduce import reproduce_command
from torchcaps.shell import show_option
from torchcaps.tables.records import config_hash, find_run
from torchcaps.terminal import show_time

FLAGS = [
    "batch-size",
    "checkpoint-every",
    "clip",
    "coefficients.lr",
    "coefficients.steps",
    "data.augment.crop",
    "data.augment.flip",
    "data.augment.rotate",
    "data.augment.scale",
    "data.augment.shear",
    "data.augment.shift",
    "data.download",
    "data.image-size",
    "data.name",
    "data.root",
    "data.split-seed",
    "data.standardise",
    "data.validation",
    "device",
    "epochs",
    "loss.name",
    "loss.reconstruction",
    "model.name",
    "model.options",
    "optimiser.lr",
    "optimiser.momentum",
    "optimiser.name",
    "optimiser.weight-decay",
    "out",
    "precision",
    "processes",
    "recipe",
    "resume",
    "schedule.gamma",
    "schedule.lr-min",
    "schedule.milestones",
    "schedule.name",
    "schedule.step-size",
    "schedule.warmup",
    "seed",
]


def common_flags() -> list[str]:
    """Each of the flags of the short help, typed with its value in `Config`."""
    values = ((name, reduce(getattr, name.split("."), Config())) for name in COMMON)
    return [f"--{name.replace('_', '-')}={value}" for name, value in values if not isinstance(value, bool | dict)]


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A recipe named "tiny" that is there during one test."""
    config = tiny_config(tmp_path / "runs", {"width": 3})
    monkeypatch.setitem(registry._RECIPES, "tiny", lambda: config)
    return config


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["list", "recipes"],
        ["list", "data"],
        ["list", "tables"],
        ["train", "--help"],
    ],
)
def test_answers_without_torch(args: list[str]) -> None:
    code = (
        f"import sys; from torchcaps.cli import main; status = main({args}); sys.exit(status or 'torch' in sys.modules)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout


def test_module_answers_as_the_command_does() -> None:
    answer = subprocess.run([sys.executable, "-m", "torchcaps", "list", "recipes"], capture_output=True, text=True)
    assert (answer.returncode, answer.stdout.split()[0]) == (0, "digits")


def test_flags_are_the_fields_of_the_config(capsys: pytest.CaptureFixture[str]) -> None:
    """Flags may be added; one of `FLAGS` that goes or is renamed breaks the scripts of users."""

    def leaves(kind: type, prefix: str = "") -> list[str]:
        return [
            name
            for field in fields(kind)
            for value in [getattr(kind(), field.name)]
            for name in (
                leaves(type(value), f"{prefix}{field.name}.") if is_dataclass(value) else [prefix + field.name]
            )
        ]

    assert main(["train", "digits", "--help-all"]) == 0
    shown = set(re.findall(r"--([a-z][\w.-]*)", capsys.readouterr().out))
    derived = {*(name.replace("_", "-") for name in leaves(Config)), "resume", "dry-run", "max-minutes", "from", "log"}
    assert set(FLAGS) <= derived
    assert derived <= shown


def test_every_flag_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    """A comment that stood behind a default within brackets had been left out, of 15 flags."""
    for command in ("train digits --help-all", "compare --help", "data show --help", "predict --help"):
        assert main(command.split()) == 0
        said: dict[str, str] = {}
        name = ""
        for line in capsys.readouterr().out.splitlines():
            text = line.strip("│|╭╰+- ") if not line.strip("│| ").startswith("--") else line.strip("│| ")
            if match := re.match(r"--([a-z][\w.-]*)", text):
                name = match[1]
                said[name] = " ".join(re.split(r"\s{2,}", text)[1:])  # where it is short it stands beside
            elif said:
                said[name] += f" {text}"
        silent = [name for name, text in said.items() if re.fullmatch(r"(\(default:.*\))?", text.strip())]
        assert len(said) > 3 and not silent, (command, silent)


def test_every_command_s_help_has_an_example_of_flags_that_exist(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        assert main([command, "--help"]) == 0
        said = " ".join(capsys.readouterr().out.split())
        found = re.search(r"[Ff]or example: `torchcaps (\S+) ?([^`]*)`", said)
        assert found and found[1] == command, command
        flags = re.findall(r"--[a-z][\w.-]*", found[2])
        if command not in ("train", "evaluate", "data"):  # whose flags stand in a help of their own
            assert [flag for flag in flags if flag not in said.replace(found[0], "")] == [], command


def test_help_of_a_recipe_fits_two_screens_and_lists_the_options_of_its_model(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("digits", "fm/table2/ours-cifar10"):
        assert main(["train", name, "--help"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) <= 60 and max(map(len, lines)) <= 110
        assert lines[1].startswith(f"for example: torchcaps train {name} ")
        shown = {line.split()[0]: line.split()[1:] for line in lines if line.startswith("  ")}
        assert shown["--optimiser.lr"][0] == str(create_recipe(name).optimiser.lr)
    assert shown["blocks"] == ["8,8,8", "tuple[int,", "...]"] and shown["l2"] == ["True", "bool"]
    assert main(["train", "digits", "--model.name", "resnet18.em", "--help"]) == 0
    said = capsys.readouterr().out
    assert "Options of resnet18.em" in said and "routing_growth" in said
    assert parse_flags(Config(), common_flags()) == (Config(), False)


def test_flags_replace_values_and_add_options() -> None:
    config = Config(model=ModelConfig("capsnet", {"channels": 32, "primary": 8}))
    flags = "--epochs 3 --data.augment.shift 1 --clip 0.5 --schedule.milestones 4 6 --resume"
    options = "--model.options channels 64 share 0.5 deep True kind a"
    parsed, resume = parse_flags(config, f"{flags} {options}".split())
    assert resume
    assert replace(parsed, changed=()) == replace(
        config,
        epochs=3,
        clip=0.5,
        data=replace(config.data, augment=replace(config.data.augment, shift=1)),
        schedule=replace(config.schedule, milestones=(4, 6)),
        model=ModelConfig("capsnet", {"channels": 64, "primary": 8, "share": 0.5, "deep": True, "kind": "a"}),
    )
    assert parsed.changed[0] == "clip=0.5" and "schedule.milestones=4,6" in parsed.changed
    for text, value in {"16,": (16,), "(8, 8)": (8, 8), "[4]": (4,), "()": (), "a,b": "a,b", "-1,2": (-1, 2)}.items():
        read, _ = parse_flags(config, ["--model.options", "hidden", text])
        assert read.model.options["hidden"] == value
        again = show_option(value)
        assert parse_flags(config, ["--model.options", "hidden", again])[0] == read
    assert parse_flags(config, ["--out", "elsewhere"])[0].changed == ()
    assert parse_flags(config, []) == (config, False)
    with pytest.raises(ValueError, match="--changed is written by the command line itself"):
        parse_flags(config, ["--changed", "a"])


def test_options_of_the_recipe_are_its_model_s(capsys: pytest.CaptureFixture[str]) -> None:
    config = Config(model=ModelConfig("capsnet", {"channels": 32, "hidden": (4, 5)}))
    parsed, _ = parse_flags(config, ["--model.name", "resnet18.fm", "--model.options", "scaled", "True"])
    assert parsed.model == ModelConfig("resnet18.fm", {"scaled": True})
    said = "options of capsnet that resnet18.fm is not given: channels 32, hidden 4,5"
    assert capsys.readouterr().err == f"torchcaps: {said}\n"
    assert parse_flags(config, ["--model.name", "capsnet"])[0].model == config.model
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("flags", [["--budget", "cpu"], ["--budget=cpu"]])
def test_a_paper_s_cell_is_a_recipe_of_any_budget(flags: list[str]) -> None:
    budget, others = take_budget(["--epochs", "3", *flags, "--seed", "1"])
    assert (budget, others) == ("cpu", ["--epochs", "3", "--seed", "1"])
    config, _ = parse_flags(create_recipe("fm/table2/ours-cifar10", budget), others)
    assert (config.recipe, config.epochs, config.changed) == (
        "fm.table2.ours-cifar10.cpu.4-wide-16-8-capsules",
        3,
        ("epochs=3",),
    )
    command = shlex.split(reproduce_command(config, Path("x")))
    assert command[:5] == ["torchcaps", "train", "fm/table2/ours-cifar10", "--budget", "cpu"]
    budget, others = take_budget(command[3:])
    assert parse_flags(create_recipe(command[2], budget), others)[0] == config
    with pytest.raises(ValueError, match="--budget needs a value"):
        take_budget(["--budget"])


def test_what_flags_changed_fills_no_cell() -> None:
    config = create_recipe("digits")
    line = {"config_hash": config_hash(config), "budget": "full", "seed": 0}
    assert config_hash(replace(config, changed=("epochs=3",))) == config_hash(config)
    assert find_run([line], config, "full") == line
    assert find_run([line | {"changed": ["epochs=3"]}], config, "full") is None


def test_train_then_evaluate(recipe: Config, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "tiny", "--epochs", "1", "--seed", "3", "--model.options", "norm", "True"]) == 0
    folder = recipe.out / "tiny-3"
    printed = capsys.readouterr()
    assert printed.out.splitlines()[-1] == str(folder)
    assert "unfinished" not in printed.err
    result = json.loads((folder / "result.json").read_text())
    assert f"{result['test_errors']} of 360" in printed.out
    config = json.loads((folder / "config.json").read_text())
    assert (config["epochs"], config["recipe"]) == (1, "tiny")
    assert config["model"]["options"] == {"width": 3, "norm": True}
    assert main(["evaluate", str(folder), "--json"]) == 0
    score = json.loads(capsys.readouterr().out)
    assert (score["accuracy"], score["errors"], score["split"]) == (
        result["test_accuracy"],
        result["test_errors"],
        "test",
    )
    assert main(["evaluate", str(folder), "--split", "validation"]) == 0
    assert f"accuracy {result['validation_accuracy']:.2%}" in capsys.readouterr().out


def test_unfinished_run_is_announced_and_resumed_on_demand(recipe: Config, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "tiny", "--resume"]) == 2
    assert "nothing to resume" in capsys.readouterr().err
    assert main(["train", "tiny"]) == 0
    (recipe.out / "tiny-0" / "result.json").unlink()
    capsys.readouterr()
    assert main(["train", "tiny"]) == 0
    printed = capsys.readouterr()
    assert f"{recipe.out / 'tiny-0'} is unfinished; the same command with --resume continues it" in printed.err
    assert printed.out.splitlines()[-1] == str(recipe.out / "tiny-0-2")
    assert main(["train", "tiny", "--resume"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(recipe.out / "tiny-0")


def test_a_dry_run_says_what_is_ahead_and_leaves_no_folder(
    recipe: Config, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchcaps.tables.ahead.step_seconds", lambda config, batch, device, patience: 6.0)
    assert main(["train", "tiny", "--epochs", "4", "--batch-size", "100", "--dry-run"]) == 0
    said = capsys.readouterr().out
    seconds = 6 * 4 * (12 + 144 / 100 / 3)
    assert said.startswith("4 epochs of 12 steps of 100 images, 4,800 in all; about ")
    assert f"about {show_time(seconds)} at 6 s a step" in said and said.endswith("MB in one\n")
    assert not recipe.out.exists()
    assert main(["train", "tiny", "--data.fraction", "0.25", "--batch-size", "100", "--dry-run"]) == 0
    assert " epochs of 3 steps of 100 images" in capsys.readouterr().out
    assert main(["train", "tiny", "--batch-size", "5000", "--dry-run"]) == 2
    assert "batch_size 5000 exceeds the images to train on" in capsys.readouterr().err


def test_a_run_may_be_given_minutes(recipe: Config, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "tiny", "--max-minutes", "0"]) == 130
    said = capsys.readouterr().err.splitlines()
    assert said[0].startswith("torchcaps: ahead: 2 epochs of 5 steps of 256 images, 2,560 in all; about ")
    assert said[-1].startswith("torchcaps: stopped after step 1 of 10")
    assert main(["train", "tiny", "--resume"]) == 0


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("train digit", "no recipe is named 'digit'; the nearest is 'digits'"),
        ("train fm/table2", "begin so, such as 'fm/table2/"),
        ("reproduce fm/table2/ours-cifar10", "`torchcaps reproduce fm/table2 --cells ours-cifar10`"),
        (
            "train tiny --model.name capsnt",
            "the nearest is 'capsnet' (`torchcaps list models` shows all; --import FILE brings",
        ),
        ("train tiny --data.name .", "data.name is '.', a folder: pictures in folders of their classes are folder:."),
        ("train digits --model.options hidden 16", "it must be tuple[int, ...], typed 8,8, or 8, where there is one"),
        ("train tiny --epochs 0", "epochs is 0"),
        ("train --epochs 3 tiny", "train takes RECIPE before its flags: torchcaps train RECIPE --epochs"),
        ("evaluate --json runs/x", "evaluate takes RUN before its flags: torchcaps evaluate RUN --json"),
        ("train tiny --processes 3 --batch-size 64 --dry-run", "it must be a positive multiple of processes (3)"),
        ("train tiny --head-epochs 1 --dry-run", "head_epochs is 1, but tiny is no backbone under a head"),
        ("cost capsnt", "the nearest is 'capsnet'"),
        ("cost tiny --image-size 0", "image_size is 0"),
    ],
)
def test_user_errors_take_one_line(
    recipe: Config, capsys: pytest.CaptureFixture[str], command: str, message: str
) -> None:
    assert main(command.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("torchcaps: error: ") and printed.err.count("\n") == 1
    assert message in printed.err
    assert main([*command.split(), "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "fly", "list planets", "train tiny --wings 2"])
def test_wrong_usage_is_status_two(recipe: Config, capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert main(command.split()) == 2
    assert capsys.readouterr().err


def test_other_faults_are_status_one(
    recipe: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def crash() -> Config:
        raise ZeroDivisionError("by zero")

    monkeypatch.setitem(registry._RECIPES, "tiny", crash)
    assert main(["train", "tiny"]) == 1
    assert capsys.readouterr().err == "torchcaps: error: by zero (ZeroDivisionError; --debug shows where)\n"


@pytest.mark.parametrize(("code", "status"), [(None, 0), (0, 0), (3, 3), ("no more", 1)])
def test_what_ends_a_command_says_with_which_status(
    code: object, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def end(args: object) -> None:
        raise SystemExit(code)

    monkeypatch.setattr("torchcaps.cli.dispatch", end)
    assert main(["list", "models"]) == status
    assert ("no more" in capsys.readouterr().err) == (code == "no more")


def test_lists_name_what_is_registered(capsys: pytest.CaptureFixture[str]) -> None:
    for kind, name in {"models": "capsnet", "recipes": "capsnet-mnist", "routings": "dynamic", "data": "mnist"}.items():
        assert main(["list", kind]) == 0
        assert name in [line.split()[0] for line in capsys.readouterr().out.splitlines()]
        assert main(["list", kind, f"{name[:-1]}?"]) == 0
        listed = [line.split()[0] for line in capsys.readouterr().out.splitlines() if not line.startswith("name ")]
        assert name in listed and all(each.startswith(name[:-1]) and len(each) == len(name) for each in listed)


def test_a_pattern_that_nothing_matches_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "recipes", "fm/table2"]) == 0
    said = capsys.readouterr()
    assert not said.out and said.err.startswith("torchcaps: no recipes match 'fm/table2'; ")
    assert said.err.endswith(" match '*fm/table2*'\n")
    assert main(["list", "tables", "zz"]) == 0
    assert capsys.readouterr().err == "torchcaps: no tables match 'zz'\n"


def test_cost_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    command = "cost tiny --image-size 8 --channels 2 --classes 5 --options width 3 coefficient False --json"
    assert main(command.split()) == 0
    cost = json.loads(capsys.readouterr().out)
    assert cost["parameters"] == (2 * 9 * 3 + 3) + (27 * 5 + 5) + (5 * 3 + 3)
    assert cost["multiply_adds"] == 9 * (2 * 9 * 3) + 27 * 5 + 5 * 3
    assert main(command.removesuffix(" --json").split()) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0].replace(" ", "_") for line in said] == list(cost)
    assert f"{cost['multiply_adds']:,}  an image" in said[1]


@pytest.mark.slow
def test_command_trains_in_two_processes(tmp_path: Path) -> None:
    command = f"-m torchcaps train digits --epochs 1 --processes 2 --device cpu --out {tmp_path}".split()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    answer = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment)
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.splitlines()[-1] == str(tmp_path / "digits-0")
    assert answer.stderr.count("epoch 1/1") == 1
