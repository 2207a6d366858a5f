"""The pages and parts of the site that are made from the library: what stands in docs/generated/ and in no commit.

Commands come from their parsers, names from the registries, numbers from the lines of results, pictures from networks
that are trained while the site is built (`site_pictures.py`).
"""

from __future__ import annotations

import inspect
import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path

from blocks import RESULTS, compared, markdown
from claims import claims_part
from site_pictures import draw_routing

from torchcaps.cli import COMMANDS, main
from torchcaps.data.catalogue import CATALOGUE
from torchcaps.models import list_models
from torchcaps.papers import list_recipes, list_tables
from torchcaps.report.terms import TERMS
from torchcaps.revisions import REVISIONS
from torchcaps.routing import Spec, list_routings, routing_class
from torchcaps.tables.budget_names import BUDGETS

HERE = Path(__file__).parent
OUT = HERE / "generated"
MODULES = {  # of which all public names are documented, in the order in which data flow
    "torchcaps": "The names that one needs most; each stands in full at its home below.",
    "torchcaps.capsules": "Pure functions on poses.",
    "torchcaps.votes": "The lazy votes, and the sums that routings ask of them.",
    "torchcaps.routing": "Routings, and how one is registered.",
    "torchcaps.layers": "Transforms, layers and stacks, primary capsules, decoders.",
    "torchcaps.models": "Networks by name, and capsule heads on any network.",
    "torchcaps.losses": "Losses of scores and reconstructions.",
    "torchcaps.metrics": "Of single labels and of label sets.",
    "torchcaps.config": "What a run is configured by.",
    "torchcaps.data": "Data sets, splits and batches.",
    "torchcaps.train": "Training: `fit`, run folders, callbacks.",
    "torchcaps.cost": "Parameters, operations and memory.",
    "torchcaps.inspect": "What a trained network does with an image.",
    "torchcaps.deploy": "Trained models as they are used.",
    "torchcaps.testing": "Properties that any routing must have.",
}


def write_all() -> None:
    """Write all of docs/generated/; what is as it was stays untouched, so that a second build reads little."""
    OUT.mkdir(exist_ok=True)
    for name, text in (
        ("api-index.md", api_index()),
        *((f"api-{module}.rst", api_page(module)) for module in MODULES),
        ("commands.md", commands_page()),
        ("models.md", models_page()),
        ("glossary.md", glossary_page()),
        ("tables.md", tables_page()),
        ("environment.md", environment_page()),
        ("contribute.md", contribute_page()),
    ):
        _write(OUT / name, text)
    for spec in own_routings():
        _write(OUT / f"_cost-{spec.name}.md", cost_part(spec.name))
        _write(OUT / f"_claims-{spec.name}.md", claims_part(spec.name))
        draw_routing(spec, OUT)


def own_routings() -> list[Spec]:
    """The routings of torchcaps itself: a tutorial registers one more."""
    return [spec for spec in list_routings() if routing_class(spec.name).__module__.startswith("torchcaps.")]


def _write(path: Path, text: str) -> None:
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


def api_index() -> str:
    pages = "\n".join(f"{module} <api-{module}>" for module in MODULES)
    rows = [("module", "is"), *((f"[{module}](api-{module}.rst)", about) for module, about in MODULES.items())]
    return f"# API\n\n{markdown(rows)}\n\n```{{toctree}}\n:hidden:\n\n{pages}\n```\n"


def api_page(module: str) -> str:
    """Every public name of a module: those of `__all__`, or what it defines."""
    home = import_module(module)
    defined = [name for name, value in vars(home).items() if getattr(value, "__module__", "") == module]
    names = [name for name in getattr(home, "__all__", defined) if not name.startswith("_")]
    parts = [f"{module}\n{'=' * len(module)}\n", MODULES[module].replace("`", "``"), "", f".. module:: {module}", ""]
    for name in names:
        value, members = getattr(home, name), "   :members:\n" if module != "torchcaps" else ""
        again = "" if module != "torchcaps" else "   :no-index:\n"
        if not callable(value):
            continue  # a constant, whose docstring would be that of its type
        kind = "autoclass" if inspect.isclass(value) else "autofunction"
        shown = members + "   :show-inheritance:\n" if kind == "autoclass" else ""
        parts.append(f".. {kind}:: {module}.{name}\n{shown}{again}")
    return "\n".join(parts)


def said(*words: str) -> str:
    """What a command prints, in lines of at most 100 letters, without the colours and the folder of this machine."""
    os.environ["COLUMNS"] = "100"
    file = io.StringIO()
    with redirect_stdout(file):
        main(list(words))
    return re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue()).rstrip()


def commands_page() -> str:
    """The help of every command, as its parser has it."""
    parts = ["# The command line", "", "Each as its parser says it; `torchcaps COMMAND --help` prints the same.", ""]
    for command, run in COMMANDS.items():
        words = {"train": ("train", "digits", "--help")}.get(command, (command, "--help"))
        about = inspect.cleandoc(run.__doc__ or "").split("\n\n")[0].replace("\n", " ")
        parts += [f"## {command}", "", about, "", "```text", said(*words), "```", ""]
    return "\n".join(parts)


def models_page() -> str:
    recipes = [("recipe", "is"), *((f"`{name}`", about) for name, about in list_recipes().items())]
    data = [("name", "is"), *((f"`{name}`", f"{e.about}: {e.facts()}") for name, e in CATALOGUE.items())]
    cards = sorted((HERE.parent / "weights").glob("*/README.md"))
    weights = "\n".join(f"../../{path.relative_to(HERE.parent).with_suffix('')}" for path in cards)
    budgets = ", ".join(f"`{name}`" for name in BUDGETS)
    models = " ".join(f"`{name}`" for name in list_models() if "." not in name)
    revisions = [
        ("part", "number", "why"),
        *((f"{each.kind} `{each.name}`", str(each.number), " ".join(each.why.split())) for each in REVISIONS),
    ]
    return (
        f"# Models, recipes, data\n\nFrom the registries, as `torchcaps list` prints them.\n\n## Models\n\n{models}\n\n"
        "With a head behind a dot, such as `resnet18.fm`:\n\n"
        f"{markdown(headed())}\n\n"
        "Any other timm model with a routing behind a dot is one too. `torchcaps cost MODEL` counts it.\n\n"
        f"## Weights\n\nThey lie in a checkout, and `torchcaps.load` takes their names there.\n\n"
        f"```{{toctree}}\n:maxdepth: 1\n\n{weights}\n```\n\n"
        f"## Recipes\n\nBudgets: {budgets}.\n\n{markdown(recipes)}\n\n## Data\n\n{markdown(data)}\n\n"
        f"## Revisions\n\nChanges of what a configuration computes.\n\n{markdown(revisions)}\n"
    )


def headed() -> Iterator[Sequence[str]]:
    """Backbones that have the same heads, and these."""
    by_backbone: dict[str, list[str]] = {}
    for name in list_models():
        backbone, dot, head = name.partition(".")
        if dot:
            by_backbone.setdefault(backbone, []).append(f"`{head}`")
    by_heads: dict[str, list[str]] = {}
    for backbone, heads in by_backbone.items():
        by_heads.setdefault(" ".join(heads), []).append(f"`{backbone}`")
    yield "backbone", "heads"
    yield from ((" ".join(backbones), heads) for heads, backbones in by_heads.items())


def glossary_page() -> str:
    terms = "\n".join(f"{term}\n  {text}\n" for term, text in sorted(TERMS.items()))
    return f"# Glossary\n\nThe words as reports and pages use them.\n\n```{{glossary}}\n{terms}```\n"


def tables_page() -> str:
    """All tables of the papers, by paper."""
    parts = ["# Tables of the papers", "", "What is printed beside what was measured, from the lines of results.", ""]
    kept = [each for each in list_tables() if (RESULTS / "tables" / f"{each.id}.md").exists()]
    for citation in dict.fromkeys(each.paper.citation for each in kept):
        rows = [each for each in kept if each.paper.citation == citation]
        parts += [f"## {citation}", ""]
        parts += [f"- [{each.printed}](../../results/tables/{each.id}.md): {each.title}" for each in rows]
        parts += ["", "```{toctree}", ":hidden:", ""]
        parts += [f"{each.printed} <../../results/tables/{each.id}>" for each in rows] + ["```", ""]
    others = sorted(path.relative_to(HERE.parent) for path in (RESULTS / "compare").rglob("*.md"))
    parts += ["## Compared", "", "```{toctree}", ":maxdepth: 1", ""]
    parts += [f"../../{path.with_suffix('')}" for path in others] + ["```", ""]
    return "\n".join(parts)


def environment_page() -> str:
    """Variables that the code reads, each with the lines of its docstrings and comments that name it."""
    source = HERE.parent / "src"
    found: dict[str, list[str]] = {}
    for path in sorted(source.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for name in dict.fromkeys(re.findall(r"TORCHCAPS_[A-Z_]+", text)):
            found.setdefault(name, []).append(f"`{path.relative_to(source)}`")
    unknown = sorted(found.keys() - VARIABLES.keys())
    assert not unknown, f"environment variables without a word in VARIABLES: {unknown}"
    rows = [
        ("variable", "is", "read in"),
        *((f"`{name}`", about, ", ".join(found[name])) for name, about in VARIABLES.items()),
    ]
    others = [("variable", "is"), *((f"`{name}`", about) for name, about in OTHERS.items())]
    return f"# Environment variables\n\n{markdown(rows)}\n\n## Of other packages\n\n{markdown(others)}\n"


def contribute_page() -> str:
    """Where a contributor begins; CONTRIBUTING.md where there is one."""
    guide = "\n```{toctree}\n\n../../CONTRIBUTING\n```\n" if (HERE.parent / "CONTRIBUTING.md").exists() else ""
    text = (
        "`make test` runs style, types and all quick tests, `make test-all` the long ones too, `make docs` builds this "
        "site. [The architecture](../architecture.md) says how torchcaps is built and why. A routing or a model of "
        "one's own needs no change here: [a routing of your own](../tutorials/plot_4_routing.rst)."
    )
    return f"# Contribute\n\n{text}\n{guide}"


VARIABLES = {
    "TORCHCAPS_DATA": "the folder of the data sets, where `data.root` does not say it",
    "TORCHCAPS_CACHE": "the folder of what is decoded or fetched once",
    "TORCHCAPS_IMPORTED": "set by the library itself: what `--import` brought in, for processes that it starts",
}

OTHERS = {
    "XDG_CACHE_HOME": "the user's cache, in which `torchcaps` is the folder of what is decoded or fetched once where "
    "`TORCHCAPS_CACHE` does not name it",
    "MALLOC_*, GLIBC_TUNABLES": "settings of glibc's memory: where one is set, "
    "training on a CPU leaves memory as it says, and does not keep what tensors give back",
    "OMP_NUM_THREADS": "threads of torch and of the kernels on a CPU. They wait for the slowest of them many times a "
    "step, so where other programs take a core, fewer threads than cores can be faster",
    "NUMBA_CACHE_DIR": "the folder of compiled CPU kernels, in place of that beside the package, or of that in the "
    "user's cache where that cannot be written",
    "NUMBA_OPT": "the level at which they are compiled, 0 to 3; by default 2",
    "NUMBA_DISABLE_JIT": "1: none are compiled, and layers take plain steps",
    "WANDB_MODE, WANDB_PROJECT, WANDB_NAME": "settings of Weights & Biases, for `--log wandb`",
}


def cost_part(routing: str) -> str:
    """The orders of a routing, and what it costs on the one backbone where all were compared."""
    spec = next(each for each in list_routings() if each.name == routing)
    return (
        f"Time is $O({_tex(spec.time)})$, memory held for backward $O({_tex(spec.memory)})$, with $b$ images, $I$ "
        "children, $J$ parents, $d$ and $d'$ the elements of their poses and $R$ iterations. It "
        f"{'has' if spec.couplings else 'has no'} couplings, is {'' if spec.iterative else 'not '}iterative, and its "
        f"gradient is {'exact' if spec.exact_gradient else 'let straight through a sign'}.\n\n"
        f"On the backbone of [the comparison](../which-routing.md), beside its controls:\n\n"
        f"{compared('linear', 'uniform', routing)}\n"
    )


def _tex(order: str) -> str:
    return order.replace(" ", r"\,")
