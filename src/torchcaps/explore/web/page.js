/* The page: what is shown goes through the network, and every part says what came out. Nothing leaves the browser. */
const data = JSON.parse(document.getElementById("data").textContent);
const { form } = data;
const SHOWN_CLASSES = 10;
const OPENED = 8; // dimensions of a pose that have sliders at once
const SLOW = 120; // milliseconds; a slower network waits until a stroke has ended
const INKS = [[77, 217, 89], [41, 158, 255], [255, 107, 41], [217, 89, 230]]; // of parts that are laid over each other
const find = (id) => document.getElementById(id);
const say = (text, wrong = false) => {
  find("status").textContent = text;
  find("status").classList.toggle("warn", wrong);
};
const clear = (count) => new Float32Array(count);
const numbers = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));

/* ---- the engine ---- */

/** The bytes of a script element that holds them compressed, as base64. */
async function unpack(id) {
  const node = find(id);
  const packed = numbers(node.textContent.trim());
  node.remove();
  const plain = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(plain).arrayBuffer());
}

/** ONNX Runtime with the graphs of the page: one thread, no worker, and one task after the other. */
async function startEngine() {
  const { env, InferenceSession, Tensor } = globalThis.ort;
  Object.assign(env.wasm, { numThreads: 1, proxy: false, wasmBinary: (await unpack("runtime")).buffer });
  env.logLevel = "error";
  const open = async (id) => InferenceSession.create(await unpack(id), { executionProviders: ["wasm"] });
  const network = await open("network");
  const decoder = data.decodes ? await open("decoder") : null;
  let last = Promise.resolve();
  const inTurn = (work) => {
    const next = last.then(work);
    last = next.catch(() => {});
    return next;
  };

  /** What the network says of views [c, h, w] of one picture: scores are averaged, all else is of the first. */
  const look = (views) => inTurn(async () => {
    const found = [];
    for (const view of views) found.push(await network.run({ images: new Tensor("float32", view, [1, ...data.image]) }));
    const of = (name) => (name in found[0] ? found[0][name].data : null);
    const scores = of("scores").map((_, n) => found.reduce((sum, each) => sum + each.scores.data[n], 0) / found.length);
    const layers = data.layers.map((_, n) => ({ maps: of(`maps${n}`), strength: of(`strength${n}`), given: of(`given${n}`) }));
    return { scores, poses: of("poses"), activations: of("activations"), layers };
  });

  /** Pictures [n][c * h * w] decoded from n sets of poses [j * d], each from one chosen class. */
  const decode = (poses, chosen) => inTurn(async () => {
    const all = clear(poses.length * poses[0].length);
    poses.forEach((each, n) => all.set(each, n * each.length));
    const feeds = {
      poses: new Tensor("float32", all, [poses.length, data.classes.length, data.pose]),
      chosen: new Tensor("int64", BigInt64Array.from(chosen, BigInt), [chosen.length]),
    };
    const { pictures } = await decoder.run(feeds);
    const size = pictures.data.length / poses.length;
    return poses.map((_, n) => pictures.data.subarray(n * size, (n + 1) * size));
  });
  return { look, decode };
}

/* ---- what is shown ---- */

const state = { answer: null, chosen: null, moves: clear(data.pose || 0), order: [], example: null, planes: null };
const [depth, tall, wide] = data.image;

/** Show an image of numbers in [0, 1], as it was decoded. */
function paint(canvas, image) {
  const area = tall * wide;
  const planes = Array.from({ length: depth }, (_, c) =>
    Uint8Array.from(image.subarray(c * area, (c + 1) * area), (x) => 255 * Math.min(1, Math.max(0, x)) + 0.5));
  showPlanes(canvas, planes.length === 3 ? planes : [planes[0]], [tall, wide]);
}

const picture = (...names) => make("canvas", { class: ["picture", ...names].join(" ") });
const framed = (canvas, ...below) => make("figure", {}, make("div", { class: data.dark ? "tile art" : "tile", style: { "aspect-ratio": `${canvas.dataset.ratio || `${wide} / ${tall}`}` } }, canvas), make("div", { class: "name" }, ...below));
const press = (buttons, chosen) => buttons.forEach((each, n) => each.setAttribute("aria-pressed", n === chosen));
const percent = (x) => `${(100 * x).toFixed(1)} %`;
const winner = () => shownClasses(state.answer.scores, { ...data.score, shown: 1 })[0];
const looked = () => (state.chosen === null ? winner() : state.chosen);
const name = (n) => data.classes[n];
const list = (classes) => (classes.length ? classes.map(name).join(" and ") : "none of the classes");

/** Lengths or activations of the class capsules. */
function measures({ poses, activations, scores }) {
  if (poses === null) return null;
  if (activations !== null) return activations;
  return scores.map((_, n) => Math.hypot(...poses.subarray(n * data.pose, (n + 1) * data.pose)));
}

/** The classes that have a row: all of a few, else those of the highest scores and the one that is looked at. */
function listed() {
  const { scores } = state.answer;
  if (scores.length <= SHOWN_CLASSES) return Array.from(scores, (_, n) => n);
  const top = shownClasses(scores, { ...data.score, shown: SHOWN_CLASSES });
  return top.includes(looked()) ? top : [...top, looked()];
}

function showAnswer() {
  const { answer } = state;
  const read = toProbabilities(answer.scores, data.score);
  const measured = measures(answer);
  const shown = shownClasses(answer.scores, data.score);
  const value = (n) => (data.word === "probability" ? percent(read[n]) : answer.scores[n].toFixed(2));
  const truth = state.example === null ? null : data.examples[state.example].targets;
  const right = truth && truth.length === shown.length && truth.every((n) => shown.includes(n));
  find("answer").replaceChildren(
    make("b", {}, shown.length || data.score.shown !== null ? list(shown) : "nothing"),
    make("span", {}, shown.length === 1 ? `${data.word} ${value(shown[0])}` : shown.map((n) => `${name(n)} ${value(n)}`).join(", ")),
    ...(truth ? [make("span", { class: right ? "good" : "bad" }, right ? "which is right" : `it is ${list(truth)}`)] : []));
  const rows = listed();
  const made = rows.map((n) => {
    const there = (truth || []).includes(n);
    const cells = [
      ...(measured && !data.same ? [make("em", {}, measured[n].toFixed(2))] : []),
      make("em", {}, value(n)),
    ];
    return make(data.capsules ? "button" : "div",
      { class: `class${there ? " there" : ""}`, title: name(n), style: { "--share": `${100 * read[n]}%` },
        ...(data.capsules ? { onclick: () => choose(n) } : {}) },
      make("span", {}, name(n)), make("u"), ...cells);
  });
  const [focused, column] = [document.activeElement, find("classes")];
  const at = Array.from(column.children).indexOf(focused);
  column.replaceChildren(...made);
  if (at >= 0 && made[at]) made[at].focus();
  if (data.capsules) press(made, rows.indexOf(looked()));
}

let choosing = 0;

/** Look at the capsule of a class. */
async function choose(n) {
  state.chosen = n;
  showAnswer();
  if (flows) flows.show(shown(), n);
  choosing += 1;
  await pose.show(true);
  choosing -= 1;
}

const shown = () => ({ ...state.answer, ...firstView(state.planes, form) });

/** The class poses of the answer, with the one that is looked at moved. */
function moved(by) {
  const poses = Float32Array.from(state.answer.poses);
  by.forEach((x, d) => (poses[looked() * data.pose + d] += x));
  return poses;
}

/* ---- the pose: what is decoded, and its sliders ---- */

const pose = (() => {
  if (!data.decodes) return { show: () => {}, busy: () => false };
  const input = picture();
  const output = picture("large");
  const parts = picture();
  const label = make("span");
  const several = make("span");
  const reach = () => {
    const own = state.answer.poses.subarray(looked() * data.pose, (looked() + 1) * data.pose);
    return data.reach * Math.max(1, Math.hypot(...own) / Math.sqrt(data.pose));
  };
  const sliders = Array.from({ length: data.pose }, (_, d) => {
    const ends = [picture(), picture()];
    const told = make("em", {}, "0");
    const slider = make("input", { type: "range", min: -100, max: 100, value: 0, "aria-label": `dimension ${d} of the pose` });
    slider.addEventListener("input", () => {
      state.moves[d] = (reach() * Number(slider.value)) / 100;
      tell();
      repaint();
    });
    const set = (x) => (slider.value = Math.round((100 * x) / reach()));
    const write = () => {
      const x = state.moves[d];
      told.textContent = x === 0 ? "0" : `${x > 0 ? "+" : "−"}${Math.abs(x).toFixed(2)}`;
    };
    const tiles = ends.map((end) => make("div", { class: data.dark ? "tile art" : "tile", style: { "aspect-ratio": `${wide} / ${tall}` } }, end));
    const node = make("label", { class: "slide" }, make("span", {}, `dim ${d}`), tiles[0], slider, tiles[1], told);
    return { node, ends, set, write };
  });
  const first = make("div", { class: "slides" });
  const more = make("div", { class: "slides" });
  const rest = make("details", {}, make("summary", {}, `The other ${data.pose - OPENED} dimensions, which change it less`), more);
  const back = make("button", { class: "plain", onclick: () => move(() => 0) }, "Back to the pose");
  const chance = make("button", { class: "plain", onclick: () => move(() => reach() * (2 * Math.random() - 1)) }, "Move all by chance");
  const thumbs = make("div", { class: "thumbs" });
  const any = make("select", { "aria-label": "class to decode" }, ...data.classes.map((each, n) => make("option", { value: n }, each)));
  any.addEventListener("change", () => choose(Number(any.value)));
  const many = data.classes.length > SHOWN_CLASSES ? [make("div", { class: "bar" }, make("label", {}, "any class: ", any))] : [];
  find("capsule").append(
    make("div", { class: "pair" }, framed(input, "what the network sees"), framed(output, label), ...(data.score.shown === 1 ? [] : [framed(parts, several)])),
    make("div", {}, make("p", { class: "note" }, "The sliders that change the image most come first; the small images show where each leads."),
      first, ...(data.pose > OPENED ? [rest] : []), make("div", { class: "bar" }, back, chance)));
  find("decoded").append(...many, thumbs);

  const tell = () => sliders.forEach((each) => each.write());
  const move = (by) => {
    state.moves = state.moves.map(by);
    sliders.forEach((each, d) => each.set(state.moves[d]));
    tell();
    repaint();
  };

  let painting = false;
  let stale = false;
  /** Decode the pose as the sliders have it; of several changes in between the last one counts. */
  async function repaint() {
    if (painting) {
      stale = true;
      return;
    }
    painting = true;
    do {
      stale = false;
      const chosen = looked();
      const [image] = await engine.decode([moved(state.moves)], [chosen]);
      paint(output, image);
      label.textContent = `decoded from the capsule of ${name(chosen)}`;
    } while (stale);
    painting = false;
  }

  /** Order the sliders by how much they change the image, and show where they lead. */
  async function lead() {
    const one = (d, x) => moved(clear(data.pose).map((_, k) => (k === d ? x : 0)));
    const far = reach();
    const ends = sliders.flatMap((_, d) => [one(d, -far), one(d, far)]);
    const images = await engine.decode(ends, ends.map(() => looked()));
    const change = sliders.map((_, d) => images[2 * d].reduce((sum, x, n) => sum + Math.abs(x - images[2 * d + 1][n]), 0));
    state.order = change.map((_, d) => d).sort((a, b) => change[b] - change[a]);
    sliders.forEach(({ ends: [left, right] }, d) => {
      paint(left, images[2 * d]);
      paint(right, images[2 * d + 1]);
    });
    first.replaceChildren(...state.order.slice(0, OPENED).map((d) => sliders[d].node));
    more.replaceChildren(...state.order.slice(OPENED).map((d) => sliders[d].node));
  }

  async function decodeEach() {
    const rows = listed();
    const images = await engine.decode(rows.map(() => state.answer.poses), rows);
    const made = rows.map((n, k) => {
      const canvas = picture();
      paint(canvas, images[k]);
      const tile = make("div", { class: data.dark ? "tile art" : "tile", style: { "aspect-ratio": `${wide} / ${tall}` } }, canvas);
      return make("button", { class: "thumb", onclick: () => choose(n) }, tile, make("span", {}, name(n)));
    });
    const at = Array.from(thumbs.children).indexOf(document.activeElement);
    thumbs.replaceChildren(...made);
    if (at >= 0 && made[at]) made[at].focus();
    press(made, rows.indexOf(looked()));
  }

  /** Classes that were found, each in a colour of its own over the dim picture. */
  async function lay() {
    const found = shownClasses(state.answer.scores, data.score).slice(0, INKS.length);
    const images = found.length ? await engine.decode(found.map(() => state.answer.poses), found) : [];
    const area = tall * wide;
    const planes = [0, 1, 2].map((c) => Uint8Array.from({ length: area }, (_, n) => {
      const ink = images.reduce((sum, image, k) => {
        let light = 0;
        for (let d = 0; d < depth; d++) light += image[d * area + n];
        return sum + (light / depth) * INKS[k][c];
      }, 0);
      return Math.min(255, ink);
    }));
    showPlanes(parts, planes, [tall, wide]);
    several.replaceChildren("found: ", ...found.flatMap((n, k) => [make("i", { class: "dot", style: { background: `rgb(${INKS[k].join(" ")})` } }), `${name(n)} `]));
  }

  return {
    busy: () => painting,
    async show(settled) {
      const seen = firstView(state.planes, form);
      showPlanes(input, seen.planes, seen.size);
      any.value = looked();
      state.moves.fill(0);
      sliders.forEach((each) => each.set(0));
      tell();
      await repaint();
      if (!settled) return;
      await decodeEach();
      await lead();
      if (data.score.shown !== 1) await lay();
    },
  };
})();

/* ---- the board ---- */

const flows = data.layers.length ? new Flows(data.layers, name) : null;
if (flows) find("flows").append(flows.node);

let engine = null;
let wanted = null; // whether the picture is settled that is to be looked at; null: none is
let working = false;
let took = 0;

/** Have the network look at the board; while it works, of several changes the last one counts. */
async function refresh(settled) {
  if (!settled && took > SLOW) return;
  wanted = wanted || settled;
  if (working || engine === null) return;
  working = true;
  try {
    while (wanted !== null) {
      const rest = wanted;
      wanted = null;
      state.planes = board.compose();
      const begin = performance.now();
      state.answer = await engine.look(toInput(state.planes, form));
      took = performance.now() - begin;
      showAnswer();
      await pose.show(rest);
      if (flows) flows.show(shown(), looked());
      say(board.empty ? "Draw something, or take an example." : `Computed in ${took < 10 ? took.toFixed(1) : Math.round(took)} ms, in this page.`);
    }
  } catch (error) {
    say(`The network could not answer: ${error.message}`, true);
  }
  working = false;
}

const board = new Board(find("board"), form, data.hand, data.dark, (live) => {
  state.example = null;
  state.chosen = null;
  press(examples, -1);
  refresh(!live);
});

const examples = data.examples.map(({ pixels, targets }, n) => {
  const bytes = numbers(pixels);
  const area = form.size[0] * form.size[1];
  const planes = Array.from({ length: form.channels }, (_, c) => bytes.slice(c * area, (c + 1) * area));
  const canvas = picture();
  showPlanes(canvas, planes.length === 3 ? planes : [planes[0]], form.size);
  const tile = make("div", { class: data.dark ? "tile art" : "tile", style: { "aspect-ratio": `${form.size[1]} / ${form.size[0]}` } }, canvas);
  return make("button", { class: "thumb", title: `example ${n + 1}: ${list(targets)}`, onclick: () => begin(planes, n) }, tile, make("span", {}, targets.map(name).join(", ")));
});

/** Put planes on the board: those of an example, those of a file, or none. */
function begin(planes, example = null) {
  Object.assign(state, { example, chosen: null });
  press(examples, example);
  find("turned").hidden = true;
  board.load(planes);
  refresh(true);
}

let taken = null; // what the last file held

/** Read a file as `torchcaps predict` does, and put it on the board. */
async function take(file) {
  if (!file) return;
  try {
    taken = await readPicture(file, form);
  } catch {
    return say(`${file.name} is no picture that this browser can read.`, true);
  }
  find("invert").checked = data.hand !== null && onPaper(taken.planes, taken.size);
  await show();
}

async function show() {
  const turned = find("invert").checked;
  const planes = fitPlanes(taken.planes, taken.size, form);
  begin(turned ? planes.map((plane) => plane.map((level) => 255 - level)) : planes);
  find("turned").hidden = false;
  find("shrunk").hidden = !taken.shrunk;
}

function listen() {
  find("file").addEventListener("change", (event) => take(event.target.files[0]).then(() => (event.target.value = "")));
  find("invert").addEventListener("change", () => taken && show());
  find("clear").addEventListener("click", () => begin(null));
  find("undo").addEventListener("click", () => board.undo());
  find("width").value = Math.round(100 * board.width);
  find("width").addEventListener("input", (event) => (board.width = Number(event.target.value) / 100));
  find("fitted").addEventListener("change", (event) => {
    board.fitted = event.target.checked;
    refresh(true);
  });
  find("colour").value = board.colour;
  find("colour").addEventListener("input", (event) => (board.colour = event.target.value));
  for (const [kind, give] of [["drop", (event) => event.dataTransfer.files[0]], ["paste", (event) => event.clipboardData.files[0]]]) {
    document.addEventListener(kind, (event) => {
      if (!give(event)) return;
      event.preventDefault();
      if (form.pictures) take(give(event));
    });
  }
  document.addEventListener("dragover", (event) => event.preventDefault());
}

document.body.classList.toggle("drawn", data.dark);
listen();
if (examples.length) find("examples").append(...examples);
press(examples, -1);

const ready = (async () => {
  try {
    engine = await startEngine();
    if (data.examples.length) examples[0].click();
    else await refresh(true);
  } catch (error) {
    say(`This browser cannot run the page: ${error.message}. It needs WebAssembly and DecompressionStream, as browsers since 2023 have them.`, true);
    throw error;
  }
})();

/* For whoever looks under the hood, and for the tests. */
globalThis.torchcaps = {
  ready,
  busy: () => working || wanted !== null || choosing > 0 || pose.busy(),
  look: (views) => engine.look(views),
  decode: (poses, chosen) => engine.decode(poses, chosen),
  read: async (file) => {
    const { planes, size } = await readPicture(file, form);
    return fitPlanes(planes, size, form);
  },
  fit: fitPlanes,
  input: toInput,
  board,
  state,
};
