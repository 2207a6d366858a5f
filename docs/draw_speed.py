"""Write docs/speed.md and pictures/scale.png from the newest CPU lines of results/benchmarks.jsonl.

python docs/draw_speed.py
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchcaps.inspect.figures import INK, style
from torchcaps.markdown import markdown_table
from torchcaps.routing import list_routings
from torchcaps.tables.lines import read_lines

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DOCS = Path(__file__).parent
RESULTS = DOCS.parent / "results" / "benchmarks.jsonl"
COLOURS = {"dynamic": INK["accent"], "inverted-attention": INK["second"], "em": "#2a8f66", "fm": "#8a4fbf"}
AXES = {
    "children": "children",
    "parents": "parents",
    "batch": "images in a batch",
    "iterations": "iterations",
}
Lines = dict[str, dict[str, Any]]
MARK, OLD = "†", "‡"
MARKED = ("kernels", "networks", "routing", "first-step", "shares", "memory", "scale")  # groups whose rows have it

PAGE = """# Speed

Made by `docs/draw_speed.py` from the newest line of each benchmark in `results/benchmarks.jsonl`: {machine}{others}.
"Einsum" is the same algorithm written as public code writes it, with votes as a tensor (`benchmarks/naive.py`). That
both are equal is checked in the same run, or by `tests/test_naive.py`. Times are medians over turns of as many calls as
take 50 ms, at least one; ratios are medians of ratios of neighbouring turns. A step is forward and backward. Held is
what autograd keeps for backward, all distinct storages together, children and weights too. `make bench` measures it
anew, but for what takes code from elsewhere: earlier states of the library (`before.py`) and public code (`--public`).

Timed is with freed memory kept, as the library trains: else much of einsum's time goes into memory that the system has
to find and clear. Rows with ‡ are older: there it was not kept, and einsum of EM and of inverted attention computed a
step more than public code does (the densities behind the last parents, the agreement with parents of zeros). Their
ratios are too high, and no goal is called reached by them.

## Kernels

`python benchmarks/kernels.py`. The roofline of a pass is the larger of the bytes that it must move over the bandwidth
of a copy and of its operations over the rate of float32 multiply-adds, of a matrix product or in registers, whichever
is higher, both measured in the same run; shown is which part of that speed is reached, forward and step. Shares of
different runs, in this table and the last, do not compare: what a machine reaches differs from hour to hour. R is the
number of iterations.

{kernels}

Dynamic routing's goal of 1/20 counts children and weights, which backward needs: alone they are 10.1 MiB of the
{dynamic_held} MiB that ours holds, einsum {naive_held}.

{first_steps}{heads}## Whole networks

`python benchmarks/networks.py`. Training is forward, backward and optimiser step: ours as the library trains on the
machine, channels-last, and in bf16 where it multiplies in bf16 natively, else in float32; einsum in float32, votes made
anew in each step, and of the concurrent layers every step computed. Goals are judged like for like: both in float32,
and einsum without the steps that reach nothing. In float32 ours has the loss and, to
{difference}, the gradients of einsum. Ratios are of the newest line; the range is over all lines, of several machines
and states of the code, most of them in bf16.

{networks}

With two iterations most of `attention-resnet-cifar10`'s steps reach nothing and are left out. Einsum that leaves them
out as well is {skipping} times as fast as einsum that does not: that is {share} of all time saved. The kernels,
channels-last and, where it is native, bf16 save the rest.

{parts}## Every routing

`python benchmarks/routing.py`. Operations are counted by formula (`benchmarks/roofline.py`): as few as the algorithm
needs when no vote is kept, whatever the implementation does. Where there is no kernel, steps are plain; these save
memory first.{unmeasured}

"Compiled" is einsum under `torch.compile`, what a user would try first: the whole form for these shapes, compiled ahead
of the timing and timed in turns with the two others, with its time over ours, the median of ratios of neighbouring
turns. The goal for dynamic, EM, FM and inverted attention is {over_forward} times forward and {over_step} times the
step. "-" is not measured yet; "fails" did not compile. `--without-compiled` leaves this out: compiling takes its time.

Linear capsules, 1152 of 8 → 10 of 16, milliseconds and MiB:

{linear}

Convolutional capsules, 16x16x32 of 4x4, 3x3 stride 2 → 32 of 4x4:

{conv}

### Public code

`python benchmarks/routing.py --public DIR`. Einsum above is ours; what others published is measured where it lies in a
folder of the reader's, never in the repository. Each Python file there names a routing and gives a module from poses to
parents (`benchmarks/public.py`), and is timed in turns with einsum and ours on the same poses. "Apart" is the largest
difference of its parents from ours over the largest of ours, where the file takes our weights. The SHA-256 is of the
file alone, not of what it imports.

{public}

## Scale

`python benchmarks/scale.py` grows a linear layer one axis at a time, from {base}.

![Time of a training step and peak memory against children, parents, batch and iterations, on logarithmic axes: where
children, parents or images are most, einsum takes several times the memory and the time of ours](pictures/scale.png)

*A training step by einsum (dashed) and as layers take it (solid), on the machine of the tables below. Dotted: the
votes, if they were a tensor. Where these stay in the caches, at the small end, einsum is the faster for inverted
attention, and for EM too. The peaks of EM and inverted attention at batch 32 are weights and their gradients, several
copies of them, padded to 16 parents.*

Slopes of a straight line through the four largest sizes of an axis, on logarithmic axes; 1 is linear, and less means
that a part does not grow, as weights do not with the batch. Einsum's time grows faster than its work where votes leave
the caches. Held, and the largest single allocation of a step, stand over the size of all votes at the axis' end: ours
makes no vote tensor at any of these sizes. At batch 32 the weights alone are a quarter of the votes.

{slopes}

What fits 24 GB was not tried: peaks (children, weights, all that torch allocates in a step) lie on a straight line in
children, parents and batch, and the table says where that line, through the three largest sizes, reaches 24e9 bytes.
"Off" is how far the three lie from it. Ours is extrapolated by factors of hundreds to thousands, and scratch memory of
the kernels' loops, some kilobytes an image, is not counted: the largest batches of ours are upper bounds.

{fitting}
"""

FIRST_STEPS = """## The first step

`python benchmarks/first_step.py`. On a CPU kernels are compiled in the first step that needs them, once per machine and
user, forward and backward each when it comes; they are kept beside the package, or where that cannot be written in the
user's cache (`NUMBA_CACHE_DIR` names another place). At a terminal a line says so; `torchcaps warm` does it ahead.
Seconds of the first forward and backward pass of the layers above, linear ones at batch 128 and convolutional ones at
batch 8, in a process of its own, one thread. Compiling is work of one core, so the range over machines is wide; the
goals are a first process less than {goal} s over plain steps, and the next one less than {next_goal} s over them:

{rows}

"""

HEADS = """## Heads

`python benchmarks/heads.py`. Features to scores, in inference, milliseconds on one thread: what stands above a network
that is made of convolutions. Of one image the loops of a layer run all iterations at once (`kernels/few.py`); a packed
head has one bit a weight. "Over dense" is the time of the head as it is over that of the dense layers that it
replaces, the median of neighbouring turns. Goals at batch 1: at most three times dense for what is routed, less than
dense for what is packed. A packed head above MobileNet's features is mostly the fixed cost of a call, so the range over
machines and states of the code is wide.

{tables}

"""

SHARES = """### Which share of a step is routing

`python benchmarks/parts.py shares`, and of any network on any machine `torchcaps cost MODEL --profile`. The training
step of each paper's network as the library trains, by kind of module, backward with forward: what routing could gain a
network at most is its share. EncapNet's capsules are convolutions. "Between" is what no operation accounts for.

{rows}

"""

BEFORE = """### Before and now

`python benchmarks/before.py DIR`. Training steps of the papers' networks at full size, as the library trains them, by
an earlier commit and by a later one, one thread, in turns: medians, and the middle half of the ratios of neighbouring
steps. What has not become faster is convolutions and norms, which torch computes: see the shares above. Where the
quotient of the two medians lies outside the ratios, the machine's own speed changed in between: the ratios count.

{rows}

"""

MEMORY = """### Memory

`python benchmarks/parts.py memory`. The peak of a training step in MB: weights, their gradients, the optimiser's state,
the batch, and all that torch allocates above them. Ours is as the library trains, and in float32; einsum is in float32.
The last column is the batch at which the straight line through two batches reaches 8e9 bytes: ours, float32, einsum.

{rows}

"""


def main() -> None:
    lines = newest(RESULTS)
    (DOCS / "speed.md").write_text(page(lines), encoding="utf-8")
    with style():
        draw_scale(lines).savefig(DOCS / "pictures" / "scale.png", dpi=110)


def newest(path: Path) -> Lines:
    """The last line of each benchmark on CPU, by name."""
    records = read_lines(path)
    lines = {_key(record): record for record in records if record.get("device", "cpu") == "cpu"}
    for name, line in lines.items():
        if "speed_up" in line:
            line["speed_ups"] = [each["speed_up"] for each in records if _key(each) == name and "speed_up" in each]
        if "first_seconds" in line:
            line["over_plain"] = [over_plain(each) for each in records if _key(each) == name]
        if "over_dense" in line:
            line["all_passed"] = [each["passed"] for each in records if _key(each) == name and "passed" in each]
            line["all_over_dense"] = [
                each["over_dense"] for each in records if _key(each) == name and "over_dense" in each
            ]
    return lines


def _key(record: dict[str, Any]) -> str:
    """A line's name, with what heads were measured at."""
    name = record["benchmark"]
    return f"{name}, {record['threads']}, {record['batch']}" if name.startswith("heads/") else name


def page(lines: Lines) -> str:
    pair = lines["networks/attention-resnet-cifar10, 2 iterations"]
    first, linear, conv = pair["environment"], under(lines, "routing", "/linear"), under(lines, "routing", "/conv")
    cpu = first["cpu"]
    rows = [line for group in MARKED for line in under(lines, group)]
    base, dynamic = lines["scale/dynamic/children"]["base"], lines["kernels/dynamic, 1152x8 -> 10x16"]
    differences = [line["difference"]["gradients"] for line in under(lines, "networks") if "difference" in line]
    growing = [line for line in under(lines, "scale") if line["axis"] != "iterations"]
    return PAGE.format(
        machine=f"{first['cpu']}, {first['cores']} cores, {pair['threads']} threads, no GPU, torch {first['torch']}",
        others=other_machines(rows, cpu),
        kernels=markdown_table(
            ("layer", "batch", "forward", "step", "held", "roofline"),
            map(marked(kernel_row, cpu), under(lines, "kernels")),
        ),
        first_steps=first_steps(under(lines, "first-step"), cpu),
        heads=heads([line for line in under(lines, "heads") if "times_ms" in line and line["threads"] == 1], cpu),
        dynamic_held=dynamic["held_mb"],
        naive_held=dynamic["naive_held_mb"],
        difference=f"{max(differences):.0e}",
        networks=markdown_table(
            ("network", "batch", "einsum", "ours", "found", "goal"),
            map(marked(network_row, cpu), under(lines, "networks")),
        ),
        parts=shares(under(lines, "shares"), cpu)
        + before(under(lines, "before"))
        + memory(under(lines, "memory"), cpu),
        skipping=pair["skipping_speed_up"],
        share=f"{pair['skipping_share_of_time_saved']:.0%}",
        unmeasured=unmeasured(linear, "of linear capsules") + unmeasured(conv, "of windows"),
        over_forward=OVER_COMPILED["forward"],
        over_step=OVER_COMPILED["step"],
        linear=markdown_table(ROUTING, map(marked(routing_row, cpu), linear)),
        conv=markdown_table(ROUTING, map(marked(routing_row, cpu), conv)),
        public=public(under(lines, "public")),
        base=f"{base['children']} children of 8 → {base['parents']} of 16, batch {base['batch']}, "
        f"{base['iterations']} iterations (FM: 1)",
        slopes=markdown_table(SLOPES, map(marked(slope_row, cpu), under(lines, "scale"))),
        fitting=markdown_table(FITTING, map(marked(fitting_row, cpu), growing)),
    )


def under(lines: Lines, group: str, end: str = "") -> list[dict[str, Any]]:
    """Lines of a group of benchmarks; of routings in the order of their list."""
    found = [line for name, line in lines.items() if name.startswith(group + "/") and end in name]
    order = {spec.name: n for n, spec in enumerate(list_routings())}
    return sorted(found, key=lambda line: order.get(line["benchmark"].split("/")[1], 0))


def marked(row: Callable[[dict[str, Any]], Iterable[object]], cpu: str) -> Callable[[dict[str, Any]], list[object]]:
    """Return `row`, whose first cell has a mark where a line was measured on another machine than `cpu`."""

    def with_mark(line: dict[str, Any]) -> list[object]:
        first, *rest = row(line)
        marks = [MARK] if line["environment"]["cpu"] != cpu else []
        marks += [OLD] if is_old(line) else []
        return [" ".join([str(first), *marks]), *rest]

    return with_mark


def is_old(line: dict[str, Any]) -> bool:
    """Whether einsum was timed as it no longer is."""
    timed = any(name.startswith(("naive_", "einsum_")) for name in line)
    return timed and "baseline" not in line


def judged(line: dict[str, Any], mark: bool) -> str:
    """How a goal was met; nothing of older lines."""
    return "" if is_old(line) else passed(mark)


def other_machines(lines: Iterable[dict[str, Any]], cpu: str) -> str:
    """Say which machines the marked rows are of, and where a name does not tell machines apart; empty where there is
    one alone.
    """
    names = {line["environment"]["cpu"] for line in lines}
    others, said = sorted(names - {cpu}), ""
    if others:
        said = f". Rows with {MARK} were measured, both sides, on another machine: {', '.join(others)}"
    vague = sorted(name for name in names if "(family" not in name)
    if vague and said:
        stand = "stands" if len(vague) == 1 else "stand"
        said += f" ({' and '.join(vague)} {stand} for any generation: older lines do not say which)"
    return said


def first_steps(lines: Sequence[dict[str, Any]], cpu: str) -> str:
    """The section of first steps; empty where no line is there yet."""
    head = ("routing", "plain", "first process", "next process", "first over plain", "next over plain")
    rows = markdown_table(head, map(marked(first_row, cpu), lines))
    return FIRST_STEPS.format(goal=FIRST_GOAL, next_goal=NEXT_GOAL, rows=rows) if lines else ""


def first_row(line: dict[str, Any]) -> Sequence[str]:
    seconds = [f"{line[f'{name}_seconds']:.2f} s" for name in ("plain", "first", "again")]
    found = f"{over_plain(line):.1f} s{spread(line.get('over_plain', []), 1)}"
    later = line["again_seconds"] - line["plain_seconds"]
    elsewhere = ", missed elsewhere" if over_plain(line) < FIRST_GOAL <= max(line.get("over_plain", [0])) else ""
    marks = found + passed(over_plain(line) < FIRST_GOAL) + elsewhere, f"{later:.1f} s{passed(later < NEXT_GOAL)}"
    return f"`{line['benchmark'].partition('/')[2]}`", *seconds, *marks


def over_plain(line: dict[str, Any]) -> float:
    """Seconds of a first process more than plain steps take."""
    return line["first_seconds"] - line["plain_seconds"]


def spread(found: Sequence[float], digits: int) -> str:
    """How far all measurements of a number lie apart; empty where there is one alone."""
    if len(found) < 2:
        return ""
    return f" (in {len(found)} measurements {min(found):.{digits}f} to {max(found):.{digits}f})"


FIRST_GOAL, NEXT_GOAL = 5, 0.5  # seconds over plain

RUNNERS = {"eager": "ours", "compiled": "`torch.compile`", "exported": "exported", "onnx": "ONNX Runtime"}


def heads(lines: Sequence[dict[str, Any]], cpu: str = "") -> str:
    """The section of heads, a table a network and batch, with the machine where it is not `cpu`; empty where no line is
    there yet.
    """
    tables = []
    for line in lines:
        head = ("head", *RUNNERS.values(), "over dense")
        name, machine = line["benchmark"].partition("/")[2], line.get("environment", {}).get("cpu", cpu)
        where = f", on {machine}" if cpu and machine != cpu else ""
        rows = markdown_table(head, map(head_row(line), line["times_ms"]))
        tables.append(f"Features of {name}, batch {line['batch']}{where}:\n\n{rows}")
    return HEADS.format(tables="\n\n".join(tables)) if tables else ""


def head_row(line: dict[str, Any]) -> Callable[[str], Iterator[str]]:
    """What makes the row of a head."""

    def row(form: str) -> Iterator[str]:
        yield f"`{form.replace('_', ', ')}`"
        times = line["times_ms"][form]
        yield from (f"{times[each]:.3g}" if each in times else "-" for each in RUNNERS)
        if form not in line["over_dense"]:
            yield "1"
            return
        has_goal = form in line.get("passed", {})
        found = [each[form] for each in line.get("all_over_dense", []) if form in each] if has_goal else []
        mark = passed(line["passed"][form]) if has_goal else ""
        if has_goal and line["passed"][form] and not all(each.get(form, True) for each in line.get("all_passed", [])):
            mark += ", missed elsewhere"
        yield f"{line['over_dense'][form]:.2f}{spread(found, 2)}{mark}"

    return row


def kernel_row(line: dict[str, Any]) -> Iterator[object]:
    yield from (line["benchmark"].removeprefix("kernels/") + f", R = {line['iterations']}", line["batch"])
    for key in ("forward", "step"):
        yield (
            f"{line['naive_' + key + '_ms']:.0f} → {line[key + '_ms']:.1f} ms, {line['ratios'][key]}x "
            f"(goal {line['goals'][key]}x{judged(line, line['passed'][key])})"
        )
    yield f"1/{line['ratios']['held']:.0f} (goal 1/{line['goals']['held']:.0f}{passed(line['passed']['held'])})"
    yield f"{line['forward_of_roofline']:.0%}, {line['step_of_roofline']:.0%}"


def network_row(line: dict[str, Any]) -> tuple[object, ...]:
    name, goal = line["benchmark"].removeprefix("networks/"), line["goal"]
    if "speed_up" not in line:
        times = f"convolutions {line['convolutions_ms']} ms", f"network {line['network_ms']} ms"
        found = f"{line['capsules_above_convolutions']:.1%} above"
        return name, line["batch"], *times, found, f"at most {goal:.0%}{passed(line['passed'])}"
    rates = f"{line['einsum_images_per_second']} images/s", f"{line['images_per_second']} images/s"
    said = [f"float32: {line['fp32_speed_up']}x"] if line.get("precision", "bf16") == "bf16" else ["in float32"]
    if "like_for_like" in line:
        said.append(f"like for like: {line['like_for_like']}x")
    elif "skipping_images_per_second" in line:
        alike = line["fp32_images_per_second"] / line["skipping_images_per_second"]
        said.append(f"float32 over einsum that skips: {alike:.1f}x")
    if len(ratios := line.get("speed_ups", [])) > 1:
        said.append(f"in {len(ratios)} measurements {min(ratios):.1f} to {max(ratios):.1f}x")
    found = f"{line['speed_up']}x ({'; '.join(said)})"
    return f"{name}, training", line["batch"], *rates, found, f"{goal}x{judged(line, line['passed'])}"


def shares(lines: Sequence[dict[str, Any]], cpu: str) -> str:
    """The section of the shares of a step; empty where no line is there yet."""
    if not lines:
        return ""
    head = ("network", "batch", "step", *lines[0]["shares"])
    return SHARES.format(rows=markdown_table(head, map(marked(shares_row, cpu), lines)))


def shares_row(line: dict[str, Any]) -> Iterator[object]:
    yield from (f"`{line['benchmark'].partition('/')[2]}`", line["batch"], f"{line['step_ms']:,.0f} ms")
    yield from (f"{each:.0%}" for each in line["shares"].values())


def before(lines: Sequence[dict[str, Any]]) -> str:
    """The section of steps by an earlier commit; empty where no line is there yet."""
    head = ("network", "batch", "before", "now", "times as fast", "commits", "machine")
    return BEFORE.format(rows=markdown_table(head, map(before_row, lines))) if lines else ""


def before_row(line: dict[str, Any]) -> Iterator[object]:
    low, high = line["ratios"]
    yield f"`{line['benchmark'].partition('/')[2]}`"
    yield line["batch"]
    yield f"{line['before_ms']:,.0f} ms"
    yield f"{line['now_ms']:,.0f} ms"
    yield f"{line['ratio']:.2f} ({low:.2f} to {high:.2f})"
    yield " → ".join(line["commits"])
    yield f"{line['environment']['cpu']}, torch {line['environment']['torch']}"


FORMS = ("ours", "float32", "einsum")


def memory(lines: Sequence[dict[str, Any]], cpu: str) -> str:
    """The section of peaks; empty where no line is there yet."""
    head = ("network", "batch", *FORMS, "largest batch in 8 GB")
    return MEMORY.format(rows=markdown_table(head, map(marked(memory_row, cpu), lines))) if lines else ""


def memory_row(line: dict[str, Any]) -> Iterator[object]:
    peaks, fitting = line["peak_bytes"], line["largest_in_8_gb"]
    yield from (f"`{line['benchmark'].partition('/')[2]}`", line["sizes"][-1])
    yield from (f"{peaks[form][-1] / 1e6:,.0f}" if form in peaks else "-" for form in FORMS)
    yield ", ".join(f"{fitting[form]:,}" if form in fitting else "-" for form in FORMS)


ROUTING = (
    *("routing", "R", "batch", "forward", "einsum", "compiled", "step", "einsum", "compiled", "held", "einsum"),
    *("of roofline", "steps"),
)


def unmeasured(lines: Sequence[dict[str, Any]], where: str) -> str:
    """A sentence with the routings that no line is of; empty where all are measured."""
    measured = {line["benchmark"].split("/")[1] for line in lines}
    missing = [f"`{spec.name}`" for spec in list_routings() if spec.name not in measured]
    return f" Not measured yet {where}: {', '.join(missing)}." if missing else ""


OVER_COMPILED = {"forward": 10, "step": 8}  # goals
WITH_GOALS = ("dynamic", "em", "fm", "inverted-attention")


def routing_row(line: dict[str, Any]) -> Iterator[object]:
    name = line["benchmark"].split("/")[1]
    yield from (f"`{name}`", line["iterations"], line["batch"])
    for key in ("forward", "step"):
        yield from (f"{line[f'{form}{key}_ms']:.1f}" for form in ("", "naive_"))
        yield compiled(line, key, name in WITH_GOALS)
    yield from (f"{line[key]:.1f}" for key in ("held_mb", "naive_held_mb"))
    yield f"{line['forward_of_roofline']:.0%}, {line['step_of_roofline']:.0%}"
    yield "fused" if line["fused"] else "plain"


def compiled(line: dict[str, Any], key: str, has_goal: bool) -> str:
    """Time of einsum under torch.compile and how many times ours it is, with the mark of the goal."""
    if f"compiled_{key}_ms" not in line:
        return "-"
    time, ratio = line[f"compiled_{key}_ms"], line[f"compiled_{key}_speed_up"]
    if time is None:
        return "fails"
    return f"{time:.1f} ({ratio:.1f}x{judged(line, ratio >= OVER_COMPILED[key]) if has_goal else ''})"


PUBLIC = (
    *("file", "SHA-256", "routing", "R", "batch", "forward", "einsum", "ours", "step", "einsum", "ours"),
    *("over ours", "apart"),
)


def public(lines: Sequence[dict[str, Any]]) -> str:
    """The table of public code; a sentence where no line is there yet."""
    return markdown_table(PUBLIC, map(public_row, lines)) if lines else "Not measured yet."


def public_row(line: dict[str, Any]) -> Iterator[object]:
    _, file, size = line["benchmark"].split("/", 2)
    yield from (f"`{file}`, {size}", f"`{line['sha256'][:12]}`")
    yield from (f"`{line['routing']}`", line["iterations"], line["batch"])
    for key in ("forward", "step"):
        yield from (f"{line[f'{form}{key}_ms']:.1f}" for form in ("public_", "naive_", ""))
    yield f"{line['forward_speed_up']:.1f}x, {line['step_speed_up']:.1f}x"
    yield "-" if line["difference"] is None else f"{line['difference']:.0e}"


OVER_VOTES = ("held over votes: einsum", "ours", "largest piece over votes: einsum", "ours")
SLOPES = ("routing", "axis", "time: einsum", "ours", "memory: einsum", "ours", *OVER_VOTES)


def slope_row(line: dict[str, Any]) -> Iterator[str]:
    yield from scale_names(line)
    for key in ("naive_step_ms", "step_ms", "naive_peak_bytes", "peak_bytes"):
        yield f"{line['slopes'][key]:.2f}"
    for key in ("naive_held", "held", "naive_largest_piece", "largest_piece"):
        yield f"{line[key + '_bytes'][-1] / line['votes_bytes'][-1]:.2g}"


FITTING = ("routing", "axis", "measured up to", "einsum", "off", "ours", "off", "ours over einsum")


def fitting_row(line: dict[str, Any]) -> Iterator[str]:
    yield from scale_names(line)
    yield f"{line['sizes'][-1]:,}"
    for prefix in ("naive_", ""):
        yield f"{line[prefix + 'largest_in_24_gb']:,}"
        yield f"{line[prefix + 'fit_error']:.1%}"
    yield f"{line['largest_in_24_gb'] / line['naive_largest_in_24_gb']:.1f}"


def scale_names(line: dict[str, Any]) -> tuple[str, str]:
    _, routing, axis = line["benchmark"].split("/", 2)
    return f"`{routing}`", axis


def passed(mark: bool) -> str:
    return ", reached" if mark else ", missed"


def draw_scale(lines: Lines) -> Figure:
    """Time and peak memory, a column an axis; a colour a routing, dashed by einsum."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    figure = Figure(figsize=(11, 5.6), layout="constrained")
    panels = figure.subplots(2, len(AXES), sharey="row", squeeze=False)
    for (axis, label), (time, memory) in zip(AXES.items(), panels.T, strict=True):
        for routing, colour in COLOURS.items():
            line = lines.get(f"scale/{routing}/{axis}")
            if line is not None:
                draw_line(time, line, "step_ms", 1, colour)
                draw_line(memory, line, "peak_bytes", 1e-6, colour)
                votes = [value * 1e-6 for value in line["votes_bytes"]]
                memory.plot(line["sizes"], votes, ":", color=INK["muted"], lw=1.2)
        memory.set_xlabel(label)
    panels[0, 0].set_ylabel("training step, ms")
    panels[1, 0].set_ylabel("peak memory, MB")
    marks = [Line2D([], [], color=colour, label=routing) for routing, colour in COLOURS.items()]
    marks += [Line2D([], [], color=INK["ink"], ls=ls, label=name) for ls, name in (("--", "einsum"), ("-", "ours"))]
    marks += [Line2D([], [], color=INK["muted"], ls=":", label="votes")]
    figure.legend(handles=marks, loc="outside upper center", ncols=len(marks))
    return figure


def draw_line(axes: Axes, line: dict[str, Any], key: str, unit: float, colour: str) -> None:
    for prefix, form in (("naive_", "--"), ("", "-")):
        values = [value * unit for value in line[prefix + key]]
        axes.plot(line["sizes"], values, form, marker=".", ms=4, color=colour, lw=1.4)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xticks(line["sizes"], map(str, line["sizes"]), minor=False)


if __name__ == "__main__":
    main()
