(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const root = document.getElementById("examples");
  const percent = (p) => (100 * p).toFixed(1) + "%";
  const rounded = (x) => (x === null ? "not a number" : x.toFixed(2));
  const scored = (p) => (data.word === "probability" && p !== null ? percent(p) : rounded(p));
  const names = (list) => list.map((n) => data.classes[n]).join(" + ") || "nothing";

  /** Show the picture at (row, column) of a sheet in `layer`, which is as large as one picture. */
  function place(layer, sheet, row, column) {
    const at = (index, count) => (count > 1 ? (100 * index) / (count - 1) : 0) + "%";
    layer.style.backgroundImage = `url(${sheet.uri})`;
    layer.style.backgroundSize = `${100 * sheet.columns}% ${100 * sheet.rows}%`;
    layer.style.backgroundPosition = `${at(column, sheet.columns)} ${at(row, sheet.rows)}`;
  }

  function tile(sheet, row, column, art = data.art) {
    const picture = make("i", { class: "picture" });
    place(picture, sheet, row, column);
    const style = { "aspect-ratio": data.aspect };
    return make("div", { class: art ? "tile art" : "tile", style }, picture);
  }

  /** What the page says at the first use of terms. */
  const explain = (part) => (data.terms[part] || []).map(([term, said]) =>
    make("p", { class: "term" }, make("dfn", {}, term), " " + said));

  const view = (node, ...name) => make("div", {}, node, make("div", { class: "name" }, ...name));

  /** Names of classes, each with the colour that it is decoded in. */
  const coloured = (set) => set.flatMap((label, n) => {
    const background = `rgb(${data.colours[n % data.colours.length].map((c) => 100 * c + "%").join(" ")})`;
    return [make("i", { class: "dot", style: { background } }), data.classes[label] + " "];
  });

  function detail(example) {
    const decoded = make("div");
    const decode = (position, button) => {
      const label = `decoded as ${data.classes[example.classes[position]]}`;
      decoded.replaceChildren(view(tile(example.sheet, 0, 1 + position), label));
      press(rows, button);
    };
    const rows = example.classes.map((label, position) => {
      const there = example.targets.includes(label);
      const found = example.predicted.includes(label);
      const p = example.probabilities[position];
      return make(
        example.decodes ? "button" : "div",
        {
          class: "class" + (there ? " there" : found ? " false" : ""),
          title: data.classes[label] + (there ? ", which is there" : "") + (found ? ", which was found" : ""),
          style: { "--share": percent(p) },
          ...(example.decodes ? { onclick: (event) => decode(position, event.currentTarget) } : {}),
        },
        make("span", {}, data.classes[label]), make("u"), make("em", {}, scored(p)),
      );
    });
    const longest = Math.min(16, Math.max(3, ...example.classes.map((label) => data.classes[label].length + 1)));
    const best = example.classes.indexOf(example.winner);
    if (example.decodes) decode(best, rows[best]);
    const sets = [["there: ", example.targets], ["found: ", example.predicted], ["not there: ", example.absent === null ? [] : [example.absent]]];
    const parts = sets.map(([name, set], n) => example.parts && !(n === 1 && example.right)
      && view(tile(example.parts, 0, n, false), name, ...coloured(set))).filter(Boolean);
    const views = [view(tile(example.sheet, 0, 0), `input, image ${example.index}`), ...(example.decodes ? [decoded] : []), ...parts];
    const told = example.right
      ? make("span", {}, `found ${names(example.predicted)}, which is right`)
      : make("span", { class: "bad" }, `found ${names(example.predicted)}, is ${names(example.targets)}`);
    const hint = example.decodes ? `The ${data.word} of each class; choose one to decode the image from its pose.` : `The ${data.word} of each class.`;
    const wide = example.sweep ? "" : " wide";
    return make("div", { class: "detail" + wide }, make("div", { class: "views" }, ...views),
      make("div", { class: "classes", style: { "--names": `${longest}ch` } }, make("p", {}, told, make("br"), make("span", { class: "note" }, hint)), ...rows));
  }

  /** A row for each of `dimensions`: the image decoded while that one is moved. */
  function strips(sheet, dimensions) {
    const [width, height] = data.aspect.split(" / ").map(Number);
    const rows = dimensions.map((dimension) => {
      const strip = make("i", { class: "picture" });
      strip.style.backgroundImage = `url(${sheet.uri})`;
      strip.style.backgroundSize = `100% ${100 * sheet.rows}%`;
      strip.style.backgroundPosition = `0 ${sheet.rows > 1 ? (100 * dimension) / (sheet.rows - 1) : 0}%`;
      const ratio = `${sheet.columns * width} / ${height}`;
      const frame = make("div", { class: data.art ? "tile art" : "tile", style: { "aspect-ratio": ratio } }, strip);
      return make("div", { class: "strip", role: "img", "aria-label": `dimension ${dimension} moved` },
        make("span", { class: "name" }, `dim ${dimension}`), frame);
    });
    const ends = make("div", { class: "strip ends" }, make("span"),
      make("div", { class: "name" }, make("span", {}, `−${data.reach}`), make("span", {}, "the pose as it is"), make("span", {}, `+${data.reach}`)));
    return make("div", { class: "strips" }, ends, ...rows);
  }

  /** The picture that the page opens on: the dimensions of the pose that change the image most. */
  function grid(example) {
    const [first, rest] = [example.telling.slice(0, data.telling), example.telling.slice(data.telling)];
    const more = rest.length
      ? [make("details", {}, make("summary", {}, `The other ${rest.length} dimensions, which change it less`), strips(example.sweep, rest))]
      : [];
    return make("div", { class: "lead" },
      make("h3", {}, `Pose sweep: what the capsule of ${data.classes[example.winner]} knows about this image`),
      ...explain("sweep"),
      make("p", { class: "note" }, `A row for each dimension, those first that change the image most; each is moved by up to ${data.reach} to both sides.`),
      strips(example.sweep, first), ...more);
  }

  function sweeps(example) {
    const sheet = example.sweep;
    const middle = (sheet.columns - 1) / 2;
    const setters = [];
    const cards = Array.from({ length: sheet.rows }, (_, dimension) => {
      const frame = tile(sheet, dimension, middle);
      const shown = make("span");
      const slider = make("input", { type: "range", min: 0, max: sheet.columns - 1, "aria-label": `pose dimension ${dimension}` });
      const set = (position) => {
        const moved = (data.reach * (position - middle)) / middle;
        place(frame.firstChild, sheet, dimension, position);
        slider.value = position;
        shown.textContent = (moved > 0 ? "+" : moved < 0 ? "−" : "±") + Math.abs(moved).toFixed(2);
      };
      slider.addEventListener("input", () => set(Number(slider.value)));
      setters.push(set);
      set(middle);
      return make("div", { class: "sweep" }, frame, slider, make("div", { class: "name" }, make("b", {}, `dim ${dimension}`), shown));
    });
    const swing = Array.from({ length: 4 * middle }, (_, n) => middle + (n < middle ? n : n < 3 * middle ? 2 * middle - n : n - 4 * middle));
    const play = player("Move all", swing, 90, (position) => setters.forEach((set) => set(position)));
    const back = make("button", { class: "plain", onclick: () => { play.stop(); setters.forEach((set) => set(middle)); } }, "Back to the pose");
    const node = make("details", { class: "part" }, make("summary", {}, "Move each dimension by hand"),
      make("div", { class: "bar" }, play.button, back), make("div", { class: "cards" }, ...cards));
    node.addEventListener("toggle", () => node.open || play.stop());
    return node;
  }

  let layerChosen = -1;

  function routing(example) {
    const layers = example.routed;
    const body = make("div");
    let stop = () => {};
    const show = (index) => {
      stop();
      layerChosen = index;
      const made = layerView(example, layers.at(index));
      stop = made.stop;
      body.replaceChildren(made.node);
    };
    const select = make("select", { "aria-label": "layer", onchange: () => show(Number(select.value)) },
      ...layers.map((layer, n) => make("option", { value: n }, `${layer.name}: ${layer.routing}`)));
    const index = layerChosen < 0 || layerChosen >= layers.length ? layers.length - 1 : layerChosen;
    select.value = index;
    show(index);
    const choice = layers.length > 1 ? [make("div", { class: "bar" }, select)] : [];
    const said = "A place is the middle of the field that its capsules see. Orange places give a parent more than an " +
      "equal share of what they give in all, blue ones less. The bar is the parent's length or activation.";
    const title = make("h3", {}, "Routing: which parent each part goes to");
    const node = make("div", { class: "part" }, title, ...explain("routing"), make("p", { class: "note" }, said), ...choice, body);
    return { node, stop: () => stop() };
  }

  function layerView(example, layer) {
    const setters = [];
    const largest = Math.max(1e-6, ...layer.strength.flat().map(Math.abs));
    const cards = layer.parents.map((parent, column) => {
      const picture = layer.box ? tile(example.sheet, 0, 0) : make("div", { class: "tile", style: { "aspect-ratio": "1" } });
      const heat = make("i", { class: "heat" });
      if (layer.box) {
        const [y, x, h, w] = layer.box.map((share) => 100 * share + "%");
        for (const [name, value] of Object.entries({ inset: "auto", top: y, left: x, height: h, width: w })) heat.style[name] = value;
      }
      picture.prepend(heat);
      const value = make("span");
      const level = make("i");
      setters.push((t) => {
        place(heat, layer.sheet, t, column);
        value.textContent = rounded(layer.strength[t][column]);
        level.style.width = percent(Math.abs(layer.strength[t][column]) / largest);
      });
      const there = layer.top && example.targets.includes(parent);
      const name = make("b", there ? { class: "there" } : {}, layer.top ? data.classes[parent] : `parent ${parent + 1}`);
      return make("div", { class: "route" }, picture, make("div", { class: "meter" }, level), make("div", { class: "name" }, name, value));
    });
    const steps = layer.strength.length;
    const said = make("span");
    const slider = make("input", { type: "range", min: 0, max: steps - 1, "aria-label": "iteration" });
    const set = (t) => {
      setters.forEach((each) => each(t));
      slider.value = t;
      said.textContent = `iteration ${t + 1} of ${steps}`;
    };
    slider.addEventListener("input", () => set(Number(slider.value)));
    set(steps - 1);
    const play = player("Play", [...Array(steps).keys()], 900, set);
    const most = layer.largest === null ? "not a number" : Number((100 * layer.largest).toPrecision(2)) + "%";
    const scale = make("span", { class: "scale" }, `−${most}`, make("i"), `+${most} against an equal share of ${percent(layer.equal)}`);
    const controls = steps > 1 ? [play.button, make("label", {}, slider, said)] : [];
    return { node: make("div", {}, make("div", { class: "bar" }, ...controls, scale), make("div", { class: "cards routes" }, ...cards)), stop: play.stop };
  }

  function agreement(example) {
    const layers = example.agreed.map((layer) => {
      const cards = layer.parents.map((parent, n) => {
        const picture = layer.ring ? make("div", { class: "tile ring" }) : tile(example.sheet, 0, 0);
        picture.append(pairs(layer.lines[n], layer.ring || []));
        const there = layer.top && example.targets.includes(parent);
        const name = make("b", there ? { class: "there" } : {}, layer.top ? data.classes[parent] : `parent ${parent + 1}`);
        return make("div", { class: "agree" }, picture, make("div", { class: "name" }, name, make("span", {}, rounded(layer.activations[n]))));
      });
      return make("div", { class: "cards" }, ...cards);
    });
    const said = "Lines join the two parts of each of the strongest pairs: those whose votes for this parent have the largest " +
      "products, of which FM agreement is the sum. The number is the parent's activation. Parts that stand nowhere in " +
      "the image, as those of a deep network do, stand on a circle, the first at its top.";
    return make("div", { class: "part" }, make("h3", {}, "Agreement: which pairs of parts made a parent"), ...explain("agreement"),
      make("p", { class: "note" }, said), ...layers);
  }

  /** Lines [x1, y1, x2, y2, strength] in shares of a picture, and dots [x, y], as a layer over it. */
  function pairs(lines, dots) {
    const draw = (tag, attributes) => {
      const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
      for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
      return node;
    };
    const layer = draw("svg", { class: "pairs", viewBox: "0 0 1 1", preserveAspectRatio: "none" });
    for (const [x1, y1, x2, y2, strength] of lines) {
      layer.append(draw("line", { x1, y1, x2, y2, "stroke-opacity": strength }));
    }
    for (const [cx, cy] of dots) layer.append(draw("circle", { cx, cy, r: 0.014 }));
    return layer;
  }

  /** A button that shows each of `frames` in turn, again and again, until it is pressed once more. */
  function player(name, frames, pause, show) {
    let timer = 0;
    let position = 0;
    const button = make("button", { class: "plain", onclick: () => (timer ? stop() : start()) }, name);
    function start() {
      position = 0;
      button.textContent = "Stop";
      timer = setInterval(() => {
        if (!button.isConnected) return stop();
        show(frames[position++ % frames.length]);
      }, pause);
      show(frames[position++]);
    }
    function stop() {
      clearInterval(timer);
      timer = 0;
      button.textContent = name;
    }
    return { button, stop };
  }

  function press(buttons, chosen) {
    buttons.forEach((button) => button.setAttribute("aria-pressed", button === chosen));
  }

  let leave = () => {};
  function open(example, button) {
    leave();
    press(thumbs, button);
    const seen = make("div", {}, ...explain("detail"), detail(example));
    const parts = example.sweep ? [make("div", { class: "opening" }, grid(example), seen), sweeps(example)] : [seen];
    if (!example.sweep && example.decodes) parts.push(make("p", { class: "note" }, "No pose sweep was kept of this image, to keep the page small."));
    if (example.routed.length) {
      const made = routing(example);
      leave = made.stop;
      parts.push(made.node);
    }
    if (example.agreed.length) parts.push(agreement(example));
    body.replaceChildren(...parts);
  }

  const body = make("div", { id: "detail" });
  const thumbs = data.examples.map((example) => {
    const few = example.right || example.parts;
    const label = few ? names(example.predicted) : `${names(example.targets)} → ${names(example.predicted)}`;
    return make("button", {
      class: example.right ? "thumb" : "thumb wrong",
      title: example.right ? `${label}, right` : `is ${names(example.targets)}, found ${names(example.predicted)}`,
      onclick: (event) => open(example, event.currentTarget),
    }, tile(example.sheet, 0, 0), make("span", {}, label));
  });
  if (root && thumbs.length) {
    root.append(make("div", { class: "thumbs" }, ...thumbs), body);
    open(data.examples[0], thumbs[0]);
  }
})();
