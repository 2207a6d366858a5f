"""The page in which a network answers: what it holds, that no stranger's code runs in it, and what a browser shows."""

from __future__ import annotations

import base64
import gzip
import io
import json
import math
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from browser import Browser, find_browser
from PIL import Image
from test_report import HOSTILE, Reader, page_data
from tiny import tiny_config
from torch import Tensor

import torchcaps
from torchcaps import create_model
from torchcaps.cli import main
from torchcaps.data import Images
from torchcaps.data.pictures import fit_picture
from torchcaps.data.prepare import to_input
from torchcaps.data.splits import in_turn
from torchcaps.deploy.classifier import Classifier
from torchcaps.deploy.module import ModuleRunner
from torchcaps.explore import write_explorer
from torchcaps.explore.examples import LOOKED, Examples, choose_rows, learn_hand
from torchcaps.explore.explore import ABSENT, UNREAD, explore, look
from torchcaps.explore.page import Explored, render
from torchcaps.explore.runtime import PACKAGE, PLACES, SCRIPT, VERSION, WASM, as_script, find_runtime, runtime_folder
from torchcaps.forms import DataForm, InputForm, ScoreForm
from torchcaps.inspect.couplings import trace_routing
from torchcaps.manifest import Manifest
from torchcaps.models import Model
from torchcaps.report.markup import read_part
from torchcaps.train import fit

SMALL: dict[str, Any] = {"channels": 4, "primary": 2, "primary_pose": 4, "class_pose": 4, "kernel": 3}
STAND_IN = (
    "/*! ONNX Runtime Web v1.2.3 */var a=1,b=2,c=3;export{a as InferenceSession,b as Tensor,c as env,a as default};"
)


def stand_in(folder: Path, place: str = "") -> Path:
    """A folder with files that are called as those of the runtime, and compute nothing."""
    home = folder / place
    home.mkdir(parents=True, exist_ok=True)
    (home / SCRIPT).write_text(f"{STAND_IN}\n//# sourceMappingURL=x.map\n")
    (home / WASM).write_bytes(b"\0asm and more")
    return folder


def small(
    model: Model, form: InputForm, score: ScoreForm, examples: Tensor | str = "there are none", undecoded: str = ""
) -> Explored:
    """What a page shows of a model that nobody has trained."""
    assert model.origin is not None
    classes = tuple(f"class {n}" for n in range(model.origin["num_classes"]))
    manifest = Manifest(model.origin, classes, form, score, DataForm("some-set"))
    found = examples
    if isinstance(examples, Tensor):
        found = Examples("test", examples, [[n % len(classes)] for n in range(len(examples))])
    return look(Classifier(manifest, ModuleRunner(model, "cpu")), found, undecoded)


def strokes(count: int = 3) -> Tensor:
    """Pictures of line art, 12 x 12: a bar 2 wide and 8 high."""
    pixels = torch.zeros(count, 1, 12, 12, dtype=torch.uint8)
    pixels[:, :, 2:10, 5:7] = 255
    return pixels


@pytest.fixture(scope="module")
def explored() -> Explored:
    torch.manual_seed(0)
    model = create_model("capsnet", num_classes=3, in_channels=1, image_size=12, **SMALL)
    return small(model, InputForm((12, 12), 1), ScoreForm("length", "none"), strokes())


@pytest.fixture(scope="module")
def page(explored: Explored, tmp_path_factory: pytest.TempPathFactory) -> str:
    return render(explored, find_runtime(stand_in(tmp_path_factory.mktemp("runtime"))))


@pytest.mark.parametrize("place", PLACES)
def test_runtime_is_found_wherever_npm_puts_it(place: str, tmp_path: Path) -> None:
    found = find_runtime(stand_in(tmp_path, place))
    assert found.version == "1.2.3" and found.wasm.startswith(b"\0asm")
    assert found.script.endswith("globalThis.ort={InferenceSession:a,Tensor:b,env:c};")


def test_one_version_of_the_runtime_is_named_everywhere() -> None:
    root = Path(__file__).parent.parent
    for name in ("Makefile", "docs/explore.md"):
        named = re.findall(rf"{PACKAGE}@([\w.]+)", (root / name).read_text(encoding="utf-8"))
        assert set(named) == {VERSION}, name


def test_runtime_of_the_cache_is_found_without_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHCAPS_CACHE", str(tmp_path))
    stand_in(runtime_folder(), PLACES[-1])
    assert find_runtime().version == "1.2.3"


def test_missing_runtime_names_the_command_that_fetches_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHCAPS_CACHE", str(tmp_path / "cache"))
    for flags in ([], ["--runtime", str(tmp_path)]):
        assert main(["explore", "digits", "--out", str(tmp_path / "page.html"), *flags]) == 2
        said = capsys.readouterr().err
        assert "does not hold onnxruntime-web" in said and said.count("\n") == 1
        assert f"npm install --prefix {tmp_path / 'cache' / 'onnxruntime-web'}" in said and "--runtime" in said
    assert not (tmp_path / "page.html").exists()
    stand_in(tmp_path)
    (tmp_path / WASM).unlink()
    with pytest.raises(FileNotFoundError, match=f"it lacks {re.escape(WASM)}"):
        find_runtime(tmp_path)


def test_files_that_are_no_runtime_are_named(tmp_path: Path) -> None:
    (stand_in(tmp_path) / WASM).write_bytes(b"<html>")
    with pytest.raises(ValueError, match=rf"{re.escape(WASM)} is no WebAssembly"):
        find_runtime(tmp_path)
    (stand_in(tmp_path) / SCRIPT).write_text("export{a as Tensor,b as env};")
    with pytest.raises(ValueError, match=rf"{re.escape(SCRIPT)} cannot be used: it is not the bundle"):
        find_runtime(tmp_path)
    with pytest.raises(ValueError, match="is not the bundle"):
        as_script("var nothing=1;")


def test_script_of_a_runtime_ends_where_its_tag_does() -> None:
    script = as_script(f'var s="</SCRIPT><!--";\r\n{STAND_IN}')
    assert '"\\x3c/SCRIPT>\\x3c!--"' in script and "\r" not in script and "export" not in script


def test_policy_allows_its_own_scripts_and_style_by_hash_and_no_request(page: str) -> None:
    import hashlib

    policy = re.findall(r'Content-Security-Policy"\s+content="(.*?)">', page, re.S)[0]
    rules = {rule.split()[0]: rule.split()[1:] for rule in policy.split(";")}
    hashed = [
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for text in (
            *re.findall(r'<script type="module">(.*?)</script>', page, re.S),
            *re.findall(r"<style>(.*?)</style>", page, re.S),
        )
    ]
    assert rules == {
        "default-src": ["'none'"],
        "img-src": ["data:"],
        "style-src": hashed[2:],
        "script-src": [*hashed[:2], "'wasm-unsafe-eval'"],
        "base-uri": ["'none'"],
        "form-action": ["'none'"],
    }
    reader = Reader(page)
    assert all(address.startswith("data:") for address in reader.fetched), reader.fetched
    assert reader.tags.count("script") == 6 and " style=" not in page


def test_page_holds_what_it_computes_with(page: str, explored: Explored) -> None:
    def unpacked(name: str) -> bytes:
        text = re.findall(rf'<script type="text/plain" id="{name}">(.*?)</script>', page)[0]
        return gzip.decompress(base64.b64decode(text))

    assert unpacked("runtime") == b"\0asm and more"
    assert unpacked("network") == explored.graphs.network and unpacked("decoder") == explored.graphs.decoder
    data = page_data(page)
    assert data["classes"] == ["class 0", "class 1", "class 2"] and data["word"] == "length" and data["same"]
    (layer,) = data["layers"]
    assert (layer["routing"], layer["iterations"], layer["places"], layer["top"]) == ("dynamic", 3, [4, 4], True)
    assert base64.b64decode(data["examples"][1]["pixels"]) == strokes()[1].numpy().tobytes()


def test_page_names_itself_and_explains_each_term_once(page: str) -> None:
    assert "<title>capsnet on some-set</title>" in page and "<h1>capsnet on some-set</h1>" in page
    said = re.findall(r"<dfn>(.*?)</dfn>", page)
    assert len(said) == len(set(said))
    assert {"capsule", "class capsule", "length", "pose", "decoder", "routing", "coupling", "iteration"} <= {*said}
    assert "probabilit" not in page.partition('<script type="application/json"')[0]
    assert "ONNX Runtime Web 1.2.3 (MIT licence)" in page


def test_names_of_a_stranger_stay_words(explored: Explored, tmp_path: Path) -> None:
    classes = (HOSTILE, "1", "2")
    manifest = replace(explored.manifest, classes=classes, data=DataForm(HOSTILE))
    absent = explored.graphs.absent | {"decoder": HOSTILE}
    hostile = explored._replace(
        manifest=manifest, classes=classes, graphs=explored.graphs._replace(absent=absent), examples=None,
        absent={"examples": HOSTILE},
    )  # fmt: skip
    text = render(hostile, find_runtime(stand_in(tmp_path)))
    reader = Reader(text)
    assert reader.tags.count("script") == 6 and "img" not in reader.tags
    assert page_data(text)["classes"][0] == HOSTILE


def test_a_page_names_no_folder_of_the_machine_it_was_made_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is made to be passed on; the terminal says the whole reason."""
    run = fit(tiny_config(tmp_path / "runs", epochs=1)).folder
    monkeypatch.setattr("torchcaps.explore.explore.look", lambda classifier, examples, undecoded: examples)
    for error, said in (
        (FileNotFoundError("there is no /home/ann/secret"), ABSENT),
        (ValueError("/home/ann/secret is cut"), UNREAD),
    ):

        def refuse(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr("torchcaps.explore.explore.read_examples", refuse)
        assert explore(run) == said and f"the page has no examples: {error}" in caplog.text


def test_graphs_say_what_torch_says(explored: Explored) -> None:
    import onnxruntime

    assert explored.graphs.difference is not None and explored.graphs.difference < 1e-5
    session = onnxruntime.InferenceSession(explored.graphs.decoder)
    torch.manual_seed(0)
    model = create_model("capsnet", num_classes=3, in_channels=1, image_size=12, **SMALL).eval()
    for count in (1, 5):
        poses, chosen = torch.rand(count, 3, 4), torch.arange(count) % 3
        (found,) = session.run(None, {"poses": poses.numpy(), "chosen": chosen.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), model.reconstruct(poses, chosen).detach())


@pytest.mark.slow
def test_parts_that_a_network_lacks_are_named(explored: Explored, tmp_path: Path) -> None:
    runtime = find_runtime(stand_in(tmp_path))
    torch.manual_seed(0)
    options = {"num_classes": 2, "in_channels": 3, "image_size": 10}
    form = InputForm((10, 10), 3, standardise="dataset", mean=(0.5,) * 3, std=(0.2,) * 3)
    uniform = create_model("capsnet", **options, **SMALL | {"routing": "uniform", "decoder": False})
    page = render(small(uniform, form, ScoreForm("length", "none")), runtime)
    assert "This network has no decoder" in page and "The routing of this network (uniform)" in page
    assert "<dfn>pose</dfn>" in page and "<dfn>decoder</dfn>" not in page
    assert "There are no examples here: there are none." in page and 'id="flows"' not in page
    assert "standardised as the training images" in page
    plain = create_model("tiny", **options)
    page = render(small(plain, form, ScoreForm("probability", "none")), runtime)
    assert "This network has no class capsules" in page and "routes no capsules" in page
    assert "<dfn>capsule</dfn>" not in page and page_data(page)["pose"] is None


def test_page_of_a_run_stands_in_its_folder_and_shows_its_test_images(tmp_path: Path) -> None:
    run = fit(tiny_config(tmp_path / "runs", epochs=1)).folder
    written = write_explorer(run, runtime=stand_in(tmp_path / "runtime"))
    assert written.path == run / "explore.html" and written.bytes == written.path.stat().st_size
    assert set(written.absent) == {"capsules", "routing"}
    page = written.path.read_text()
    assert "Examples from the test split" in page and "<title>tiny on digits</title>" in page
    data = page_data(page)
    assert [example["targets"] for example in data["examples"][:11]] == [[n % 10] for n in range(11)]
    test = torchcaps.train.load_run(run)[1].data
    source = torchcaps.data.load_data(test).test
    first = int((source.targets(torch.arange(100)) == 3).nonzero()[0])
    assert base64.b64decode(data["examples"][3]["pixels"]) == source.fetch(torch.tensor([first])).numpy().tobytes()
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*nowhere to write page\.html to"):
        write_explorer(run, tmp_path / "nowhere" / "page.html", tmp_path / "runtime")
    with pytest.raises(ValueError, match=r"model\.onnx is an export, without its couplings"):
        write_explorer(run / "model.onnx", runtime=tmp_path / "runtime")
    with pytest.raises(ValueError, match="is a folder; it must be a file"):
        write_explorer(run, tmp_path, tmp_path / "runtime")


def test_examples_come_one_of_each_class_in_turn() -> None:
    assert in_turn(torch.tensor([1, 1, 0, 2, 0, 1]), 5).tolist() == [2, 0, 3, 4, 1]
    assert in_turn(torch.eye(4, dtype=torch.uint8), 3).tolist() == [0, 1, 2]


def test_examples_of_a_split_that_lies_class_by_class_show_every_class() -> None:
    labels = torch.arange(4).repeat_interleave(LOOKED)
    split = Images(torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8), labels, ("a", "b", "c", "d"))
    assert split.targets(choose_rows(split, 6)).tolist() == [0, 1, 2, 3, 0, 1]


def test_hand_is_that_of_the_training_images() -> None:
    hand = learn_hand(strokes())
    assert hand is not None
    assert hand.pen == pytest.approx(2 / 12, rel=0.25)  # the ends of a bar count among its sides
    assert hand.frame == pytest.approx((6 / 12, 6 / 12, 8 / 12, 2 / 12))
    assert learn_hand(255 - strokes()) is None
    assert learn_hand(torch.zeros(2, 1, 12, 12, dtype=torch.uint8)) is None


# ---- the scripts, without a page ----

NODE = shutil.which("node")


def computed(call: str) -> Any:
    """The value of an expression that sees the functions of the page, none of which touches a document by itself."""
    if NODE is None:
        pytest.skip("no node is installed, which runs the page's scripts without a page")
    parts = [read_part(name, "torchcaps.explore") for name in ("prepare.js", "flows.js")]
    script = "\n".join([*parts, f"console.log(JSON.stringify({call}))"])
    done = subprocess.run([NODE, "-"], input=script, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    "form",
    [
        InputForm((4, 6), 2),
        InputForm((4, 6), 2, pad=9),
        InputForm((4, 6), 2, crop=3, views=5),
        InputForm((4, 6), 2, pad=9, crop=4),
    ],
    ids=["whole", "padded", "cut", "padded and cut"],
)
def test_flows_lie_over_the_picture_that_the_network_sees(form: InputForm) -> None:
    pixels = torch.randint(0, 256, (2, 4, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    plain = {name: getattr(form, name) for name in form.__dataclass_fields__}
    planes = f"{json.dumps([plane.flatten().tolist() for plane in pixels])}.map(p => Uint8Array.from(p))"
    seen = computed(f"(f => (v => [v.planes.map(p => [...p]), v.size])(firstView({planes}, f)))({json.dumps(plain)})")
    taken = to_input(pixels[None], form)[0, 0]
    assert seen[1] == list(taken.shape[1:])
    np.testing.assert_allclose(np.array(seen[0]).reshape(taken.shape) / 255, taken, atol=1e-6)


def test_places_that_are_taken_together_are_drawn_where_they_lie() -> None:
    """9 x 17 places: rows of 2 but for the last, columns of 3 but for the last; in a box of half the height."""
    layer = "{places: [9, 17], box: [0.5, 0, 0.5, 1], parents: 1, iterations: 1}"
    result = "{given: new Array(153).fill(1), maps: new Array(153).fill(1)}"
    grid, first, last, groups = computed(
        f"((l, g) => [[g.rows, g.columns], locate(0, l, g), locate(29, l, g), placesOf(l.places, g)])"
        f"({layer}, gather({layer}, {result}))"
    )
    assert grid == [5, 6] and first == pytest.approx([1.5 / 17, 0.5 + 1 / 18])
    assert last == pytest.approx([16 / 17, 0.5 + 8.5 / 18])
    wanted = torch.arange(30).view(5, 6).repeat_interleave(2, 0).repeat_interleave(3, 1)[:9, :17]
    assert groups == wanted.flatten().tolist()


@pytest.mark.parametrize(
    ("focus", "followed", "then"), [(-1, False, -1), (2, False, 2), (2, True, 1), (None, False, 1)]
)
def test_the_parents_that_are_looked_at_stay_with_the_next_picture(
    focus: int | None, followed: bool, then: int
) -> None:
    layer = "{places: [1, 1], box: null, parents: 3, iterations: 1, top: true}"
    result = "{size: [1, 1], layers: [{given: [1], maps: [1, 0, 0], strength: [1, 2, 3]}]}"
    given = f"{{layers: [{layer}], level: 0, t: null, focus: {json.dumps(focus)}, followed: {json.dumps(followed)}}}"
    shown = (
        f"(f => {{ Object.assign(f, {given}, {{place: null, slider: {{}}, bar: {{}}, tile: {{style: {{}}}},"
        f" stage: {{classList: {{toggle() {{}}}}}}, trace() {{}}}}); f.show({result}, 1); return f.focus; }})"
        "(Object.create(Flows.prototype))"
    )
    assert computed(shown) == then


# ---- in a browser ----


@pytest.fixture(scope="module")
def runtime() -> Path | None:
    """The folder of the real runtime: that of the cache, or the one that builds the site."""
    for folder in (None, Path(__file__).parent.parent / "build" / "onnxruntime-web"):
        try:
            find_runtime(folder)
            return folder
        except FileNotFoundError as error:
            said = str(error)
    pytest.skip(said)


@pytest.fixture(scope="module")
def digits(runtime: Path | None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    page = tmp_path_factory.mktemp("digits") / "digits.html"
    flags = [] if runtime is None else ["--runtime", str(runtime)]
    assert main(["explore", "digits", "--out", str(page), *flags]) == 0
    return page


@pytest.fixture
def browser() -> Iterator[Browser]:
    path = find_browser()
    if path is None:
        pytest.skip("no Chromium is installed: apt-get install chromium")
    with Browser(path, timeout=240) as opened:
        yield opened


@pytest.fixture
def host(digits: Path) -> Iterator[tuple[str, list[str]]]:
    """A local host of the page's folder, and the paths that it was asked for."""
    asked: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            asked.append(self.path)

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(digits.parent))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/{digits.name}", asked
        server.shutdown()


SETTLED = """torchcaps.ready.then(() => new Promise(done => {
  const look = () => torchcaps.busy() ? setTimeout(look, 30) : done();
  setTimeout(look, 60);
})).then(() => document.querySelector('#answer b').textContent)"""
# of a 3, in shares of the board: one stroke
THREE = [
    *((0.5 - 0.2 * math.cos(a), 0.3 - 0.2 * math.sin(a)) for a in np.linspace(0.5, 4.2, 14)),
    *((0.5 + 0.22 * math.sin(a), 0.72 - 0.22 * math.cos(a)) for a in np.linspace(0.2, 4.0, 14)),
]


def settled(browser: Browser) -> str:
    """The answer, once nothing is computed any more."""
    return browser.run(SETTLED)


def board_points(browser: Browser, points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    left, top, width, height = browser.run(
        "(() => { const b = document.getElementById('board'); b.scrollIntoView({block: 'center', behavior: 'instant'});"
        " const r = b.getBoundingClientRect(); return [r.left, r.top, r.width, r.height]; })()"
    )
    return [(left + x * width, top + y * height) for x, y in points]


def draw_by_mouse(browser: Browser, points: list[tuple[float, float]]) -> None:
    places = board_points(browser, points)
    kinds = ["mousePressed", *["mouseMoved"] * (len(places) - 1)]
    for kind, (x, y) in zip(kinds, places, strict=True):
        browser.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)
    x, y = places[-1]
    browser.ask("Input.dispatchMouseEvent", type="mouseReleased", x=x, y=y, button="left", clickCount=1)


def draw_by_touch(browser: Browser, points: list[tuple[float, float]]) -> None:
    places = board_points(browser, points)
    for n, (x, y) in enumerate(places):
        kind = "touchMove" if n else "touchStart"
        browser.ask("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y}])
    browser.ask("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])


def press(browser: Browser, key: str, times: int = 1) -> None:
    text = {"text": " "} if key == " " else {}
    for _ in range(times):
        browser.ask("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        browser.ask("Input.dispatchKeyEvent", type="keyUp", key=key)


@pytest.mark.slow
def test_a_drawn_3_is_a_3_and_nothing_is_asked_for(browser: Browser, digits: Path) -> None:
    browser.open(digits)
    assert settled(browser) == "0"
    assert browser.run("document.querySelector('#answer .good').textContent") == "which is right"
    browser.run("document.getElementById('clear').click()")
    draw_by_mouse(browser, THREE)
    assert settled(browser) == "3"
    assert browser.run("document.querySelector('#answer .good')") is None
    assert browser.run("torchcaps.state.answer.scores[3]") > 0.5
    assert browser.faults == []
    assert {each for each in browser.requests if not each.startswith("data:")} == {digits.resolve().as_uri()}


@pytest.mark.slow
def test_page_works_from_a_host_and_asks_it_for_nothing_more(browser: Browser, host: tuple[str, list[str]]) -> None:
    address, asked = host
    browser.open(address)
    settled(browser)
    browser.run("document.querySelectorAll('#examples .thumb')[7].click()")
    assert settled(browser) == "7"
    assert asked == [f"/{address.rpartition('/')[2]}"]
    assert {each for each in browser.requests if not each.startswith("data:")} == {address}
    assert browser.faults == []


@pytest.mark.slow
def test_the_browser_computes_what_torch_computes(browser: Browser, digits: Path) -> None:
    browser.open(digits)
    settled(browser)
    model = torchcaps.load("digits", device="cpu").model
    images = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(3))
    for image in images:
        found = browser.run(
            f"torchcaps.look([Float32Array.from({image.flatten().tolist()})]).then(a => ({{scores: [...a.scores], "
            "poses: [...a.poses], layers: a.layers.map(l => [[...l.maps], [...l.strength]])}))"
        )
        with torch.no_grad():
            output = model(image[None])
        (layer,) = trace_routing(model, image[None])
        pairs = [
            (found["scores"], output.scores),
            (found["poses"], output.capsules[-1].poses),
            (found["layers"][0][0], layer.maps),
            (found["layers"][0][1], layer.strength),
        ]
        for mine, theirs in pairs:
            torch.testing.assert_close(torch.tensor(mine), theirs.flatten(), atol=1e-5, rtol=0)
        poses = output.capsules[-1].poses
        decoded = browser.run(
            f"torchcaps.decode([Float32Array.from({poses.flatten().tolist()})], [4]).then(a => Array.from(a[0]))"
        )
        wanted = model.reconstruct(poses, torch.tensor([4])).detach().flatten()
        torch.testing.assert_close(torch.tensor(decoded), wanted, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_pictures_become_what_predict_makes_of_them(browser: Browser, digits: Path) -> None:
    """Those of a file to the same whole numbers, and whole numbers to the same input, for every form of input."""
    browser.open(digits)
    settled(browser)
    classifier = torchcaps.load("digits", device="cpu")
    noise = torch.randint(0, 256, (37, 53, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)).numpy()
    for mode, within in (("L", 0), ("RGB", 0), ("RGBA", 1)):
        picture = Image.fromarray(noise).convert(mode)
        file = io.BytesIO()
        picture.save(file, "PNG")
        letters = base64.b64encode(file.getvalue()).decode()
        found = browser.run(
            f"torchcaps.read(new Blob([Uint8Array.from(atob('{letters}'), c => c.charCodeAt(0))]))"
            ".then(planes => planes.map(plane => [...plane]))"
        )
        wanted = classifier.read(picture).astype(int)
        assert np.abs(np.array(found).reshape(wanted.shape) - wanted).max() <= within, mode
    pixels = noise[..., :3].transpose(2, 0, 1)
    means = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.3, 0.4)}
    forms = [
        InputForm((16, 16), 3, fit="crop", crop=11, views=10, standardise="image"),
        InputForm((20, 31), 3, fit="pad", ground="#804020", pad=40, standardise="dataset", **means),
        InputForm((60, 70), 3, crop=50, views=5, standardise="dataset", standardise_first=True, enlarge=77, **means),
        InputForm((9, 53), 3, standardise="image", standardise_first=True),
        InputForm((16, 16), 3, standardise="channel"),
    ]
    for form in forms:
        plain = {name: getattr(form, name) for name in form.__dataclass_fields__} | {"ground": [128, 64, 32]}
        planes = json.dumps([plane.flatten().tolist() for plane in pixels])
        fitted, views = browser.run(
            f"(form => {{ const planes = torchcaps.fit({planes}.map(p => Uint8Array.from(p)), [37, 53], form);"
            " return [planes.map(p => Array.from(p)), torchcaps.input(planes, form).map(v => Array.from(v))]; })"
            f"({json.dumps(plain)})"
        )
        whole = fit_picture(pixels, (form.size[0], form.size[1]), form.fit, form.ground)
        assert np.array_equal(np.array(fitted).reshape(whole.shape), whole)
        taken = to_input(whole[None], form)[0]
        np.testing.assert_allclose(np.array(views).reshape(taken.shape), taken, atol=1e-5)


@pytest.mark.slow
def test_upload_of_a_photographed_digit_is_turned_round(browser: Browser, digits: Path, tmp_path: Path) -> None:
    browser.open(digits)
    settled(browser)
    data = page_data(digits.read_text())
    pixels = np.frombuffer(base64.b64decode(data["examples"][5]["pixels"]), np.uint8).reshape(16, 16)
    Image.fromarray(255 - pixels).resize((64, 64)).save(tmp_path / "five.png")
    document = browser.ask("DOM.getDocument")["root"]["nodeId"]
    node = browser.ask("DOM.querySelector", nodeId=document, selector="#file")["nodeId"]
    browser.ask("DOM.setFileInputFiles", nodeId=node, files=[str(tmp_path / "five.png")])
    browser.run("new Promise(done => setTimeout(done, 500))")
    assert settled(browser) == "5"
    assert browser.run("document.getElementById('invert').checked && !document.getElementById('turned').hidden")
    (tmp_path / "five.txt").write_text("no picture")
    browser.ask("DOM.setFileInputFiles", nodeId=node, files=[str(tmp_path / "five.txt")])
    browser.run("new Promise(done => setTimeout(done, 500))")
    assert browser.run("document.getElementById('status').textContent").startswith("five.txt is no picture")
    assert browser.faults == []


@pytest.mark.slow
def test_sliders_move_the_image_and_iterations_the_flows(browser: Browser, digits: Path) -> None:
    browser.open(digits)
    settled(browser)
    shown = (
        "(c => { c.drawImage(document.querySelector('canvas.large'), 0, 0);"
        " return [...c.getImageData(0, 0, 16, 16).data]; })(new OffscreenCanvas(16, 16).getContext('2d'))"
    )
    move = (
        "(s => {{ s.value = {1}; s.dispatchEvent(new Event('input', {{bubbles: true}})) }})"
        "(document.querySelectorAll({0!r})[{2}])"
    )
    first = np.array(browser.run(shown))
    browser.run(move.format(".slide input", 100, 0))
    settled(browser)
    second = np.array(browser.run(shown))
    browser.run(move.format(".slide input", -100, 1))
    settled(browser)
    third = np.array(browser.run(shown))
    assert np.abs(first - second).max() > 40 and np.abs(second - third).max() > 20
    assert browser.run("Array.from(torchcaps.state.moves).filter(x => x !== 0).length") == 2
    assert browser.run("document.querySelector('.slide em').textContent") == "+0.50"
    browser.run("document.querySelector('#capsule .bar button').click()")
    settled(browser)
    assert np.array_equal(np.array(browser.run(shown)), first)
    browser.run("document.querySelectorAll('#decoded .thumb')[8].click()")
    settled(browser)
    assert browser.run("document.querySelectorAll('.class[aria-pressed=true]')[0].title") == "8"
    assert "capsule of 8" in browser.run("document.querySelectorAll('#capsule .name')[1].textContent")

    widths = "Array.from(document.querySelectorAll('.lines path'), p => p.style.strokeWidth)"
    last = browser.run(widths)
    assert len(last) == 16 * 10
    browser.run(move.format(".flows input", 0, 0))
    assert browser.run(widths) != last
    assert browser.run("document.querySelector('.flows .bar label span').textContent") == "iteration 1 of 3"
    assert browser.run("document.querySelectorAll('.lines path.less.lit').length") == 0  # all give all the same
    browser.run("document.querySelectorAll('.parent')[2].click()")
    assert "2 gets 10 %" in browser.run("document.querySelector('.told').textContent")
    browser.run("document.querySelector('.flows button').click()")  # plays from the first iteration on
    turned = (
        "(look => new Promise(done => look(done)))(function look(done) { document.querySelector('.flows input').value"
    )
    assert browser.run(f"{turned} === '1' ? done(true) : setTimeout(() => look(done), 50); }})")
    assert browser.faults == []


@pytest.mark.slow
def test_keyboard_draws_chooses_and_moves(browser: Browser, digits: Path) -> None:
    """An L-shaped stroke, undone again; a class by Enter; a place of the routing by arrows."""
    browser.open(digits)
    settled(browser)
    browser.run("document.getElementById('clear').click(); document.getElementById('board').focus()")
    press(browser, "ArrowUp", 6)
    press(browser, " ")
    press(browser, "ArrowDown", 12)
    press(browser, " ")
    settled(browser)
    assert browser.run("torchcaps.board.strokes[0].points.length") == 13
    assert browser.run("torchcaps.state.planes[0].filter(x => x > 127).length") > 15
    press(browser, "Backspace")
    settled(browser)
    assert browser.run("torchcaps.board.empty")
    browser.run("document.querySelectorAll('#examples .thumb')[4].click()")
    assert settled(browser) == "4"
    browser.run("document.querySelectorAll('.class')[10].focus()")
    browser.ask("Input.dispatchKeyEvent", type="keyDown", key="Enter", text="\r")
    browser.ask("Input.dispatchKeyEvent", type="keyUp", key="Enter")
    assert browser.run("document.activeElement.title + document.activeElement.getAttribute('aria-pressed')") == "9true"
    browser.run("document.querySelector('.stage .tile').focus()")
    press(browser, "ArrowRight")
    press(browser, "ArrowDown")
    assert browser.run("document.querySelector('.told').textContent").startswith("This place gives")
    assert browser.faults == []


@pytest.mark.slow
@pytest.mark.parametrize("dark", [False, True])
def test_page_fits_a_phone_and_is_drawn_on_by_touch(browser: Browser, digits: Path, dark: bool) -> None:
    browser.ask("Emulation.setTouchEmulationEnabled", enabled=True)
    browser.open(digits, 390, dark)
    settled(browser)
    assert browser.run("document.documentElement.scrollWidth") <= 390
    browser.run("document.getElementById('clear').click()")
    draw_by_touch(browser, THREE)
    assert settled(browser) == "3"
    ink, paper = browser.run("(s => [s.color, s.backgroundColor])(getComputedStyle(document.body))")
    brightness = [sum(map(int, re.findall(r"\d+", colour))) for colour in (ink, paper)]
    assert (brightness[0] > brightness[1]) is dark
    small = "Array.from(document.querySelectorAll('button.plain, .parent'), b => b.getBoundingClientRect().height)"
    assert min(browser.run(small)) >= 30
    assert browser.faults == []


CHOOSE = "(s => {{ s.value = {1}; s.dispatchEvent(new Event('change')) }})(document.querySelector({0!r}))"


def write_small(folder: Path, runtime: Path | None, explored: Explored) -> Path:
    (folder / "page.html").write_text(render(explored, find_runtime(runtime)))
    return folder / "page.html"


@pytest.mark.slow
def test_colours_logits_and_layers_of_convolutional_capsules(
    browser: Browser, runtime: Path | None, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"channels": 4, "capsules": 2, "pose": 4, "iterations": 3}
    model = create_model("attention-simple-cifar10", **options)
    form = InputForm((32, 32), 3, standardise="dataset", mean=(0.5,) * 3, std=(0.25,) * 3)
    photos = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    browser.open(write_small(tmp_path, runtime, small(model, form, ScoreForm("logit", "softmax"), photos)), 390)
    settled(browser)
    assert browser.run("document.documentElement.scrollWidth") <= 390
    assert "%" in browser.run("document.querySelector('#answer span').textContent")
    columns = "Array.from(document.querySelectorAll('.class.head em'), e => e.textContent)"
    assert browser.run(columns) == ["norm", "probability"]
    assert browser.run("document.querySelectorAll('.flows option').length") == 2
    assert browser.run("document.querySelectorAll('.lines path').length") == 5 * 5 * 10
    browser.run(CHOOSE.format(".flows select", 0))
    assert browser.run("document.querySelectorAll('.lines path').length") == 7 * 7 * 2
    assert browser.run("document.querySelector('.parent').title") == "parent 1"
    before = browser.run("[...torchcaps.state.answer.scores]")
    draw_by_mouse(browser, THREE)
    settled(browser)
    assert browser.run("[...torchcaps.state.answer.scores]") != before
    assert browser.faults == []


@pytest.mark.slow
def test_several_classes_at_once_and_more_than_have_rows(
    browser: Browser, runtime: Path | None, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = create_model("capsnet", num_classes=12, in_channels=1, image_size=12, **SMALL)
    explored = small(model, InputForm((12, 12), 1), ScoreForm("length", "none", shown=2), strokes())
    browser.open(write_small(tmp_path, runtime, explored))
    assert " and " in settled(browser)
    assert browser.run("document.querySelectorAll('#classes > *').length") == 10
    assert browser.run("document.querySelectorAll('#decoded option').length") == 12
    assert browser.run("document.querySelectorAll('#capsule figure').length") == 3
    last = browser.run("[...torchcaps.state.answer.scores].map((x, n) => [x, n]).sort((a, b) => a[0] - b[0])[0][1]")
    browser.run(CHOOSE.format("#decoded select", last))
    settled(browser)
    assert browser.run("document.querySelector('.class[aria-pressed=true]').title") == f"class {last}"
    assert browser.run("document.querySelectorAll('#classes > *').length") == 11
    assert browser.faults == []


@pytest.mark.slow
def test_network_without_capsules_has_scores_alone(browser: Browser, runtime: Path | None, tmp_path: Path) -> None:
    plain = create_model("tiny", num_classes=2, in_channels=3, image_size=10)
    explored = small(plain, InputForm((10, 10), 3), ScoreForm("probability", "none"))
    browser.open(write_small(tmp_path, runtime, explored))
    assert settled(browser).startswith("class")
    assert browser.run("document.querySelectorAll('button.class').length") == 0
    assert browser.run("document.querySelectorAll('#classes > *').length") == 2
    assert browser.faults == []
