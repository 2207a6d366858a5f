/*
 * Routing as flows: from each place of the picture a line to each parent, as wide as what the place gives to it. The
 * lines move from iteration to iteration.
 */
const GRID = 8; // places a side that are drawn; more are taken together
const CHILDREN = 48; // that have no place in the picture
const PARENTS = 10;
const WIDEST = 11; // pixels of a line
const SVG = "http://www.w3.org/2000/svg";
const HEAT = [[226, 92, 30], [40, 96, 200]]; // of more than an equal share, and of less

function draw(tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  return node;
}

/**
 * Of one layer: `given[t][place]`, shares of all, and `share[t][place][parent]`, with neighbours together, `fy` x `fx` of
 * them but for the last of a row or column, which may have fewer.
 */
function gather(layer, result) {
  const [height, width] = layer.places;
  const [fy, fx] = layer.box ? [height, width].map((side) => Math.ceil(side / GRID)) : [1, 1];
  const [rows, columns] = [Math.ceil(height / fy), Math.ceil(width / fx)];
  const count = rows * columns;
  const groups = placesOf(layer.places, { columns, fy, fx });
  const steps = Array.from({ length: layer.iterations }, (_, t) => {
    const given = new Float64Array(count);
    const to = Array.from({ length: count }, () => new Float64Array(layer.parents));
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const place = groups[y * width + x];
        const weight = result.given[(t * height + y) * width + x] + 1e-9;
        given[place] += weight;
        for (let j = 0; j < layer.parents; j++) {
          to[place][j] += weight * result.maps[((t * layer.parents + j) * height + y) * width + x];
        }
      }
    }
    const all = given.reduce((a, b) => a + b, 0);
    return { given: given.map((x) => x / all), share: to.map((row, place) => row.map((x) => x / given[place])) };
  });
  let places = Array.from({ length: count }, (_, n) => n);
  if (!layer.box && count > CHILDREN) {
    const last = steps.at(-1).given;
    places = places.sort((a, b) => last[b] - last[a]).slice(0, CHILDREN).sort((a, b) => a - b);
  }
  return { steps, places, rows, columns, fy, fx };
}

/** The middle of the n-th group of `size` places, of `side` in all, as a share of the grid. */
const middleOf = (n, size, side) => (n * size + Math.min((n + 1) * size, side)) / 2 / side;

/** Where a place of `gather` lies in the picture: [x, y], in shares of its width and height. */
function locate(place, layer, { columns, fy, fx }) {
  const [[height, width], [top, left, tall, wide]] = [layer.places, layer.box];
  return [left + wide * middleOf(place % columns, fx, width), top + tall * middleOf(Math.floor(place / columns), fy, height)];
}

/** The place of `gather` that each place of the grid is counted to, row by row. */
function placesOf([height, width], { columns, fy, fx }) {
  return Array.from({ length: height * width }, (_, n) => Math.floor(n / width / fy) * columns + Math.floor((n % width) / fx));
}

class Flows {
  /** layers: what is fixed about them. name: of a parent of the last layer. percent: of a share. */
  constructor(layers, name) {
    Object.assign(this, { layers, name, level: layers.length - 1, t: null, focus: null, place: null, timer: 0 });
    this.said = make("span", { "aria-live": "polite" });
    this.slider = make("input", { type: "range", min: 0, step: 1, "aria-label": "iteration" });
    this.slider.addEventListener("input", () => this.stop() || this.step(Number(this.slider.value)));
    this.player = make("button", { class: "plain", onclick: () => (this.timer ? this.stop() : this.play()) }, "Play");
    this.select = make("select", { "aria-label": "layer" },
      ...layers.map((layer, n) => make("option", { value: n }, `layer ${n + 1} of ${layers.length}: ${layer.routing}`)));
    this.select.value = this.level;
    this.select.addEventListener("change", () => {
      Object.assign(this, { level: Number(this.select.value), focus: null, place: null });
      this.stop();
      this.show(this.result);
    });
    this.picture = make("canvas", { class: "picture" });
    this.heat = make("canvas", { class: "heat" });
    this.tile = make("div", { class: "tile", tabindex: 0, role: "img", "aria-label": "places of the picture; arrow keys choose one" }, this.picture, this.heat);
    this.parents = make("div", { class: "parents" });
    this.lines = draw("svg", { class: "lines", "aria-hidden": "true" });
    this.stage = make("div", { class: "stage" }, this.tile, this.parents);
    this.stage.append(this.lines);
    this.told = make("p", { class: "told", "aria-live": "polite" });
    this.scale = make("p", { class: "note" });
    this.bar = make("div", { class: "bar" }, this.player, make("label", {}, this.slider, this.said));
    this.node = make("div", { class: "flows" }, ...(layers.length > 1 ? [make("div", { class: "bar" }, this.select)] : []),
      this.bar, this.stage, this.told, this.scale);
    this.tile.addEventListener("pointermove", (event) => this.point(event));
    this.tile.addEventListener("pointerdown", (event) => this.point(event));
    this.tile.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && this.choosePlace(null));
    this.tile.addEventListener("keydown", (event) => this.press(event));
    new ResizeObserver(() => this.result && this.trace()).observe(this.stage);
  }

  get layer() {
    return this.layers[this.level];
  }

  /** Show what routing did; `winner` is the class that the page looks at. */
  show(result, winner = this.winner) {
    const { layer } = this;
    Object.assign(this, { result, winner, gathered: gather(layer, result.layers[this.level]) });
    const { strength } = result.layers[this.level];
    const last = (layer.iterations - 1) * layer.parents;
    const order = Array.from({ length: layer.parents }, (_, j) => j).sort((a, b) => strength[last + b] - strength[last + a]);
    const few = order.slice(0, PARENTS);
    if (layer.top && !few.includes(winner)) few.splice(-1, 1, winner);
    this.kept = few.sort((a, b) => a - b);
    const shown = this.focus === -1 || this.kept.includes(this.focus);
    if (!shown || this.followed) {
      this.focus = layer.top ? winner : order[0];
      this.followed = true;
    }
    if (this.place !== null && !this.gathered.places.includes(this.place)) this.place = null;
    this.t = this.t === null ? layer.iterations - 1 : Math.min(this.t, layer.iterations - 1);
    this.slider.max = layer.iterations - 1;
    this.bar.hidden = layer.iterations < 2;
    const flat = layer.box === null;
    this.tile.hidden = flat;
    this.stage.classList.toggle("flat", flat);
    this.tile.style.aspectRatio = `${result.size[1]} / ${result.size[0]}`;
    if (!flat) showPlanes(this.picture, result.planes, result.size);
    this.trace();
  }

  /** Lay the nodes out, and the lines between them. */
  trace() {
    const { layer, gathered } = this;
    this.buttons = this.kept.map((j) => {
      const chosen = () => {
        Object.assign(this, { focus: this.focus === j && !this.followed ? -1 : j, followed: false, place: null });
        this.step(this.t);
      };
      const bar = make("i");
      const value = make("em");
      const label = layer.top ? this.name(j) : `parent ${j + 1}`;
      return { bar, value, node: make("button", { class: "parent", onclick: chosen, title: label }, make("span", {}, label), make("u", {}, bar), value) };
    });
    this.parents.replaceChildren(...this.buttons.map((each) => each.node));
    const stage = this.stage.getBoundingClientRect();
    if (!stage.width) return;
    const tile = this.tile.getBoundingClientRect();
    const ends = this.buttons.map(({ node }) => node.getBoundingClientRect());
    this.dots = gathered.places.map((place, n) => {
      if (layer.box === null) return [18, ((n + 0.5) / gathered.places.length) * stage.height];
      const [x, y] = locate(place, layer, gathered);
      return [tile.left - stage.left + tile.width * x, tile.top - stage.top + tile.height * y];
    });
    const count = this.dots.length;
    this.paths = this.dots.map(([x0, y0], n) => ends.map((end) => {
      const [x1, y1] = [end.left - stage.left, end.top - stage.top + (end.height * (n + 0.5)) / count];
      const bend = (x1 - x0) * 0.55;
      return draw("path", { d: `M${x0} ${y0}C${x0 + bend} ${y0} ${x1 - bend} ${y1} ${x1} ${y1}` });
    }));
    this.circles = this.dots.map(([cx, cy]) => draw("circle", { cx, cy, r: 3 }));
    this.lines.setAttribute("viewBox", `0 0 ${stage.width} ${stage.height}`);
    this.lines.replaceChildren(...this.paths.flat(), ...this.circles);
    const { steps, places } = gathered;
    this.most = Math.max(1e-9, ...steps.flatMap(({ given, share }) => places.flatMap((p) => this.kept.map((j) => Math.abs(given[p] * share[p][j])))));
    this.apart = Math.max(1e-9, ...steps.flatMap(({ share }) => places.flatMap((p) => this.kept.map((j) => Math.abs(share[p][j] - 1 / layer.parents)))));
    this.step(this.t);
  }

  /** Show iteration `t`. */
  step(t) {
    if (!this.paths) return;
    const { layer, gathered, kept } = this;
    const { given, share } = gathered.steps[t];
    const { strength } = this.result.layers[this.level];
    const equal = 1 / layer.parents;
    this.t = t;
    this.slider.value = t;
    this.said.textContent = `iteration ${t + 1} of ${layer.iterations}`;
    this.paths.forEach((row, n) => row.forEach((path, k) => {
      const place = gathered.places[n];
      const mine = share[place][kept[k]];
      const lit = this.place === null ? this.focus === -1 || kept[k] === this.focus : place === this.place;
      path.setAttribute("class", `${mine > equal - 1e-6 ? "more" : "less"}${lit ? " lit" : ""}`);
      path.style.strokeWidth = `${Math.max(0.4, (WIDEST * Math.abs(given[place] * mine)) / this.most)}px`;
      path.style.strokeOpacity = lit ? 0.3 + (0.65 * Math.abs(mine - equal)) / this.apart : 0.05;
    }));
    this.circles.forEach((circle, n) => {
      circle.setAttribute("class", gathered.places[n] === this.place ? "lit" : "");
    });
    const largest = Math.max(1e-6, ...Array.from(strength, Math.abs));
    this.buttons.forEach(({ node, bar, value }, k) => {
      const mine = strength[t * layer.parents + kept[k]];
      node.setAttribute("aria-pressed", kept[k] === this.focus);
      bar.style.width = `${(100 * Math.abs(mine)) / largest}%`;
      value.textContent = mine.toFixed(2);
    });
    this.paintHeat(share, equal);
    this.tell(share, given, equal);
  }

  paintHeat(share, equal) {
    const { layer, gathered } = this;
    this.heat.hidden = layer.box === null || this.focus === -1;
    if (this.heat.hidden) return;
    [this.heat.height, this.heat.width] = layer.places;
    const image = new ImageData(this.heat.width, this.heat.height);
    placesOf(layer.places, gathered).forEach((place, n) => {
      const above = share[place][this.focus] - equal;
      image.data.set([...HEAT[above < 0 ? 1 : 0], (255 * Math.abs(above)) / this.apart], 4 * n);
    });
    this.heat.getContext("2d").putImageData(image, 0, 0);
    layer.box.forEach((part, n) => this.heat.style.setProperty(["top", "left", "height", "width"][n], `${100 * part}%`));
  }

  /** Say in words what the lines show. */
  tell(share, given, equal) {
    const { layer, kept } = this;
    const label = (j) => (layer.top ? this.name(j) : `parent ${j + 1}`);
    const percent = (x) => `${Number((100 * x).toPrecision(2))} %`;
    if (this.place !== null) {
      const order = kept.slice().sort((a, b) => share[this.place][b] - share[this.place][a]).slice(0, 3);
      this.told.textContent = `This place gives ${order.map((j) => `${percent(share[this.place][j])} to ${label(j)}`).join(", ")}.`;
    } else if (this.focus !== -1) {
      const all = share.reduce((sum, row, place) => sum + given[place] * row[this.focus], 0);
      this.told.textContent = `${label(this.focus)} gets ${percent(all)} of all that the children have to give; an equal share is ${percent(equal)}.`;
    } else this.told.textContent = "All parents; choose one to see its own lines.";
    const children = layer.box === null ? ` The children of this layer have no place in the picture${this.gathered.places.length < layer.places[1] ? `: the ${CHILDREN} of ${layer.places[1]} that give most are drawn` : ""}.` : "";
    this.scale.textContent = `A line is as wide as what the place gives to the parent. Orange lines and places give it more than an equal share, blue ones less. The bar and number of a parent are its ${this.layer.strength}.${children}`;
  }

  point(event) {
    const box = this.tile.getBoundingClientRect();
    const stage = this.stage.getBoundingClientRect();
    if (!this.dots || !box.width) return;
    const at = [event.clientX - stage.left, event.clientY - stage.top];
    const far = this.dots.map(([x, y]) => (x - at[0]) ** 2 + (y - at[1]) ** 2);
    this.choosePlace(this.gathered.places[far.indexOf(Math.min(...far))]);
  }

  press(event) {
    const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.gathered.columns, ArrowDown: this.gathered.columns };
    if (event.key === "Escape") return this.choosePlace(null);
    if (!(event.key in moves)) return;
    event.preventDefault();
    const next = this.place === null ? 0 : this.place + moves[event.key];
    if (next >= 0 && next < this.gathered.rows * this.gathered.columns) this.choosePlace(next);
  }

  choosePlace(place) {
    if (place === this.place) return;
    this.place = place;
    this.step(this.t);
  }

  play() {
    this.player.textContent = "Stop";
    this.step(0);
    this.timer = setInterval(() => this.step((this.t + 1) % this.layer.iterations), 1100);
  }

  stop() {
    clearInterval(this.timer);
    this.timer = 0;
    this.player.textContent = "Play";
  }
}
