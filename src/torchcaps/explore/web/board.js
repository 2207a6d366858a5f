/*
 * The board: a picture of the size that the network is given, and strokes drawn over it with a mouse, a finger or the
 * keyboard. Places are shares of its width and height, so a drawing is of any size; strokes become pixels at last.
 */
const SHOWN = 480; // pixels of the smaller side on the board
const FINE = 320; // of the drawing that becomes pixels, at least
const STEP = 1 / 24; // that an arrow key moves the pen by

/** Planes of levels 0 to 255 as what a canvas shows. */
function toImageData(planes, [height, width]) {
  const image = new ImageData(width, height);
  const [red, green, blue] = planes.length === 3 ? planes : [planes[0], planes[0], planes[0]];
  for (let n = 0; n < height * width; n++) image.data.set([red[n], green[n], blue[n], 255], 4 * n);
  return image;
}

function showPlanes(canvas, planes, size) {
  [canvas.height, canvas.width] = size;
  canvas.getContext("2d").putImageData(toImageData(planes, size), 0, 0);
}

class Board {
  /**
   * canvas: that is drawn on. form: how a picture becomes input. hand: pen and frame of line art, or null. dark: whether
   * drawings are light on black. changed: called with true while a stroke goes on, else with false.
   */
  constructor(canvas, form, hand, dark, changed) {
    Object.assign(this, { canvas, form, hand, changed, strokes: [], base: null, fitted: hand !== null, pen: null });
    this.blank = form.channels === 3 && !dark ? form.ground : Array(form.channels).fill(dark ? 0 : form.ground[0]);
    this.colour = this.blank[0] > 127 ? "#000000" : "#ffffff";
    this.width = hand === null ? 0.06 : hand.pen;
    const [height, width] = form.size;
    const scale = SHOWN / Math.min(height, width);
    [canvas.height, canvas.width] = [Math.round(height * scale), Math.round(width * scale)];
    this.listen();
    this.show();
  }

  /** Begin with planes of `form.size`, or with nothing. */
  load(planes) {
    Object.assign(this, { base: planes, strokes: [], pen: null });
    this.show();
  }

  undo() {
    this.strokes.pop();
    this.show();
    this.changed(false);
  }

  get empty() {
    return this.base === null && this.strokes.length === 0;
  }

  listen() {
    const { canvas } = this;
    const place = (event) => {
      const box = canvas.getBoundingClientRect();
      return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    };
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      canvas.setPointerCapture(event.pointerId);
      this.pen = null;
      this.begin(place(event));
      this.drawing = event.pointerId;
    });
    canvas.addEventListener("pointermove", (event) => {
      if (this.drawing !== event.pointerId) return;
      const all = event.getCoalescedEvents ? event.getCoalescedEvents() : [];
      for (const each of all.length ? all : [event]) this.go(place(each));
    });
    const end = (event) => {
      if (this.drawing !== event.pointerId) return;
      this.drawing = null;
      this.changed(false);
    };
    canvas.addEventListener("pointerup", end);
    canvas.addEventListener("pointercancel", end);
    canvas.addEventListener("keydown", (event) => this.press(event));
    canvas.addEventListener("blur", () => {
      this.pen = null;
      this.show();
    });
  }

  begin(point) {
    this.strokes.push({ points: [point], width: this.width, colour: this.colour });
    this.show();
    this.changed(true);
  }

  go(point) {
    this.strokes.at(-1).points.push(point);
    this.show();
    this.changed(true);
  }

  /** Arrows move the pen, space puts it down and lifts it, backspace takes the last stroke away. */
  press(event) {
    const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const pen = this.pen || { at: [0.5, 0.5], down: false };
    if (event.key in moves) {
      pen.at = pen.at.map((x, axis) => Math.min(1, Math.max(0, x + STEP * moves[event.key][axis])));
      this.pen = pen;
      if (pen.down) this.go(pen.at);
      else this.show();
    } else if (event.key === " ") {
      pen.down = !pen.down;
      this.pen = pen;
      if (pen.down) this.begin(pen.at);
      else {
        this.show();
        this.changed(false);
      }
    } else if (event.key === "Backspace") {
      pen.down = false;
      this.undo();
    } else return;
    event.preventDefault();
  }

  /** Strokes as they are, or moved and scaled, with the same pen, to where the training images have theirs. */
  placed() {
    const points = this.strokes.flatMap((stroke) => stroke.points);
    if (!this.fitted || this.base !== null || points.length === 0) return this.strokes;
    const [height, width] = this.form.size;
    const side = Math.min(height, width);
    const [y, x, tall, wide] = this.hand.frame;
    const spans = [0, 1].map((axis) => {
      const all = points.map((point) => point[axis]);
      return [Math.min(...all), Math.max(...all)];
    });
    const rooms = [wide * width, tall * height].map((room) => Math.max(0, room - this.width * side));
    const sizes = spans.map(([low, high], axis) => (high - low) * [width, height][axis]);
    const scales = sizes.map((size, axis) => (size > 0.02 * side ? rooms[axis] / size : Infinity));
    const scale = Math.min(...scales, 8);
    const centre = spans.map(([low, high]) => (low + high) / 2);
    const grow = Number.isFinite(Math.min(...scales)) ? scale : 1;
    const move = (point) => point.map((p, axis) => [x, y][axis] + grow * (p - centre[axis]));
    return this.strokes.map((stroke) => ({ ...stroke, points: stroke.points.map(move) }));
  }

  draw(context, strokes, wide, tall) {
    Object.assign(context, { lineCap: "round", lineJoin: "round" });
    for (const { points, width, colour } of strokes) {
      context.strokeStyle = colour;
      context.lineWidth = width * Math.min(wide, tall);
      context.beginPath();
      points.forEach(([x, y], n) => context[n ? "lineTo" : "moveTo"](x * wide, y * tall));
      if (points.length === 1) context.lineTo(points[0][0] * wide + 0.01, points[0][1] * tall);
      context.stroke();
    }
  }

  /** Paint the board. */
  show() {
    const { canvas } = this;
    const context = canvas.getContext("2d");
    const planes = this.base || this.blank.map((level) => new Uint8Array(this.form.size[0] * this.form.size[1]).fill(level));
    const small = document.createElement("canvas");
    showPlanes(small, planes, this.form.size);
    context.imageSmoothingEnabled = false;
    context.drawImage(small, 0, 0, canvas.width, canvas.height);
    this.draw(context, this.strokes, canvas.width, canvas.height);
    if (this.pen !== null) {
      context.strokeStyle = this.pen.down ? "#e25c1e" : "#7a8499";
      context.lineWidth = 3;
      context.beginPath();
      context.arc(this.pen.at[0] * canvas.width, this.pen.at[1] * canvas.height, 11, 0, 2 * Math.PI);
      context.stroke();
    }
  }

  /** What is on the board as planes of `form.size`: pixels without a stroke stay as they are. */
  compose() {
    const [height, width] = this.form.size;
    const under = this.base || this.blank.map((level) => new Uint8Array(height * width).fill(level));
    if (this.strokes.length === 0) return under;
    const fine = Math.max(1, Math.ceil(FINE / Math.min(height, width)));
    const canvas = document.createElement("canvas");
    [canvas.height, canvas.width] = [height * fine, width * fine];
    const context = canvas.getContext("2d", { willReadFrequently: true });
    this.draw(context, this.placed(), canvas.width, canvas.height);
    const drawn = context.getImageData(0, 0, canvas.width, canvas.height).data;
    const sums = new Float64Array(4 * height * width); // of opaque colours, and of opacity
    for (let y = 0, at = 0; y < canvas.height; y++) {
      for (let x = 0; x < canvas.width; x++, at += 4) {
        const opacity = drawn[at + 3] / 255;
        if (opacity === 0) continue;
        const to = 4 * (Math.floor(y / fine) * width + Math.floor(x / fine));
        for (let c = 0; c < 3; c++) sums[to + c] += opacity * drawn[at + c];
        sums[to + 3] += opacity;
      }
    }
    return under.map((plane, channel) => plane.map((level, n) => {
      const shares = under.length === 3 ? [[channel, 1]] : LUMA.map((share, c) => [c, share / 65536]);
      const laid = shares.reduce((sum, [c, share]) => sum + share * sums[4 * n + c], 0) / fine ** 2;
      return Math.round(level * (1 - sums[4 * n + 3] / fine ** 2) + laid);
    }));
  }
}

/**
 * A picture of a file in the channels of `form`, upright: its planes, its size, and whether the browser made it smaller
 * before they were read, as no canvas holds more.
 */
async function readPicture(file, form) {
  const bitmap = await createImageBitmap(file, { imageOrientation: "from-image", colorSpaceConversion: "none" });
  const shrunk = Math.min(1, Math.sqrt(MOST_PIXELS / (bitmap.width * bitmap.height)));
  const size = [bitmap.height, bitmap.width].map((side) => Math.max(1, Math.round(side * shrunk)));
  const canvas = document.createElement("canvas");
  [canvas.height, canvas.width] = size;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = `rgb(${form.under.join(" ")})`;
  context.fillRect(0, 0, size[1], size[0]);
  context.drawImage(bitmap, 0, 0, size[1], size[0]);
  bitmap.close();
  return { planes: readPixels(context.getImageData(0, 0, size[1], size[0]).data, form), size, shrunk: shrunk < 1 };
}
const MOST_PIXELS = 16_000_000;

/** Whether the border of a picture is bright, as paper is. */
function onPaper(planes, [height, width]) {
  const border = planes[0].filter((_, n) => n < width || n >= width * (height - 1) || n % width === 0 || n % width === width - 1);
  return border.sort()[border.length >> 1] > 127;
}
