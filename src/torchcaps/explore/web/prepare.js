/*
 * From a picture to what the network takes, as torchcaps does it: data/pictures.py and data/prepare.py, whose order and
 * rounding are kept, so that the same pixels come out. Planes are Uint8Arrays of height x width, one for each channel.
 */
const LUMA = [19595, 38470, 7471]; // ITU-R 601, of 65,536
const PRECISION = 22; // bits of the shares by which Pillow resizes

/** Round to the nearest, halves to the even number, as Python does. */
function roundEven(x) {
  const nearest = Math.round(x);
  return Math.abs(x % 1) === 0.5 && nearest % 2 ? nearest - 1 : nearest;
}

const middle = (size, room) => [Math.floor((room[0] - size[0]) / 2), Math.floor((room[1] - size[1]) / 2)];

function largest(room, like) {
  const scale = Math.min(room[0] / like[0], room[1] / like[1]);
  return [0, 1].map((axis) => Math.min(room[axis], Math.max(1, roundEven(like[axis] * scale))));
}

/** The part of a plane that begins at (top, left). */
function cutPlane(plane, width, top, left, size) {
  const out = new plane.constructor(size[0] * size[1]);
  for (let y = 0; y < size[0]; y++) {
    const start = (top + y) * width + left;
    out.set(plane.subarray(start, start + size[1]), y * size[1]);
  }
  return out;
}

/** How much each of `length` pixels gives to each of `count`: bilinear, over as many as become one. */
function pixelShares(length, count) {
  const scale = length / count;
  const reach = Math.max(scale, 1);
  const narrow = 1 / reach;
  return Array.from({ length: count }, (_, n) => {
    const centre = (n + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - reach + 0.5));
    const last = Math.min(length, Math.trunc(centre + reach + 0.5));
    const shares = [];
    for (let x = first; x < last; x++) shares.push(Math.max(0, 1 - Math.abs((x - centre + 0.5) * narrow)));
    const sum = shares.reduce((a, b) => a + b, 0);
    return { first, shares: shares.map((share) => Math.trunc(0.5 + (share / sum) * 2 ** PRECISION)) };
  });
}

/** A plane resized along its rows; steps between pixels say which axis that is. */
function resizeAxis(plane, lines, lineStep, pixelStep, shares, out, outLine, outPixel) {
  for (let line = 0; line < lines; line++) {
    for (let n = 0; n < shares.length; n++) {
      const { first, shares: given } = shares[n];
      let sum = 2 ** (PRECISION - 1);
      for (let k = 0; k < given.length; k++) sum += plane[line * lineStep + (first + k) * pixelStep] * given[k];
      out[line * outLine + n * outPixel] = Math.min(255, Math.floor(sum / 2 ** PRECISION));
    }
  }
  return out;
}

function resizePlane(plane, [height, width], [tall, wide]) {
  if (width !== wide) {
    plane = resizeAxis(plane, height, width, 1, pixelShares(width, wide), new Uint8Array(height * wide), wide, 1);
  }
  if (height !== tall) {
    plane = resizeAxis(plane, wide, 1, wide, pixelShares(height, tall), new Uint8Array(tall * wide), 1, wide);
  }
  return plane;
}

/** Planes of a picture brought to the size that `form` asks for. */
function fitPlanes(planes, size, form) {
  if (form.fit === "crop") {
    const part = largest(size, form.size);
    const [top, left] = middle(part, size);
    return planes.map((plane) => resizePlane(cutPlane(plane, size[1], top, left, part), part, form.size));
  }
  if (form.fit === "pad") {
    const inner = largest(form.size, size);
    const [top, left] = middle(inner, form.size);
    return planes.map((plane, channel) => {
      const out = new Uint8Array(form.size[0] * form.size[1]).fill(form.ground[channel]);
      const small = resizePlane(plane, size, inner);
      for (let y = 0; y < inner[0]; y++) {
        out.set(small.subarray(y * inner[1], (y + 1) * inner[1]), (top + y) * form.size[1] + left);
      }
      return out;
    });
  }
  return planes.map((plane) => resizePlane(plane, size, form.size));
}

/** Planes of opaque pixels (red, green, blue, opacity) in the channels of `form`. */
function readPixels(pixels, form) {
  const count = pixels.length / 4;
  if (form.channels === 3) return [0, 1, 2].map((c) => Uint8Array.from({ length: count }, (_, n) => pixels[4 * n + c]));
  const grey = (n) => LUMA.reduce((sum, share, c) => sum + share * pixels[4 * n + c], 0x8000) >> 16;
  return [Uint8Array.from({ length: count }, (_, n) => grey(n))];
}

/** Planes of `form.size` with the black border that `form` asks for, and their size. */
function padPlanes(planes, form) {
  if (form.pad === null) return { planes, size: form.size };
  const [[height, width], side] = [form.size, form.pad];
  const [top, left] = middle(form.size, [side, side]);
  const padded = planes.map((plane) => {
    const out = new Uint8Array(side * side);
    for (let y = 0; y < height; y++) out.set(plane.subarray(y * width, (y + 1) * width), (top + y) * side + left);
    return out;
  });
  return { planes: padded, size: [side, side] };
}

/** Planes of `form.size` as the first view of the network has them, before they are standardised, and their size. */
function firstView(planes, form) {
  const { planes: padded, size } = padPlanes(planes, form);
  if (form.crop === null) return { planes: padded, size };
  const part = [form.crop, form.crop];
  const [top, left] = middle(part, size);
  return { planes: padded.map((plane) => cutPlane(plane, size[1], top, left, part)), size: part };
}

/** What the network takes of planes of `form.size`: a Float32Array [c, h, w] for each view. */
function toInput(planes, form) {
  const { planes: padded, size } = padPlanes(planes, form);
  let [height, width] = size;
  let images = padded.map((plane) => Float32Array.from(plane, (level) => level / 255));
  const whole = form.crop === null || form.standardise_first;
  if (whole) images = standardise(images, form);
  let views = [images];
  if (form.crop !== null) {
    const side = form.crop;
    const [down, right] = [height - side, width - side];
    const corners = [middle([side, side], [height, width]), [0, 0], [0, right], [down, 0], [down, right]];
    views = corners.slice(0, Math.min(form.views, 5)).map(([top, left]) =>
      images.map((plane) => cutPlane(plane, width, top, left, [side, side])));
    const mirrored = (plane) => plane.map((_, n) => plane[n - (n % side) + side - 1 - (n % side)]);
    if (form.views === 10) views = [...views, ...views.map((view) => view.map(mirrored))];
    if (!whole) views = views.map((view) => standardise(view, form));
    height = width = side;
  }
  if (form.enlarge !== null) {
    views = views.map((view) => view.map((plane) => enlargePlane(plane, [height, width], form.enlarge)));
  }
  return views.map(joined);
}

function joined(planes) {
  const out = new Float32Array(planes.length * planes[0].length);
  planes.forEach((plane, channel) => out.set(plane, channel * plane.length));
  return out;
}

function standardise(images, form) {
  if (form.standardise === "dataset") {
    return images.map((plane, c) => plane.map((x) => (x - form.mean[c]) / form.std[c]));
  }
  if (form.standardise === "channel") return images.map((plane) => centre([plane])[0]);
  return form.standardise === "image" ? centre(images) : images;
}

/** Mean 0 and variance 1 over all planes together; the deviation is at least 1 / sqrt(count). */
function centre(images) {
  const count = images.length * images[0].length;
  const total = (of) => images.reduce((sum, plane) => plane.reduce((s, x) => s + of(x), sum), 0);
  const mean = total((x) => x) / count;
  const deviation = Math.max(Math.sqrt(total((x) => (x - mean) ** 2) / count), count ** -0.5);
  return images.map((plane) => plane.map((x) => (x - mean) / deviation));
}

/** Bilinear; the middle of pixel i lies at (i + 1/2) h / side - 1/2 of the old ones, and the border goes on outwards. */
function enlargePlane(plane, [height, width], side) {
  const at = (length) => Array.from({ length: side }, (_, n) => {
    const place = Math.max((n + 0.5) * (length / side) - 0.5, 0);
    const low = Math.min(Math.trunc(place), length - 1);
    return [low, Math.min(low + 1, length - 1), place - low];
  });
  const [rows, columns] = [at(height), at(width)];
  const out = new Float32Array(side * side);
  rows.forEach(([y0, y1, dy], y) => columns.forEach(([x0, x1, dx], x) => {
    const upper = plane[y0 * width + x0] * (1 - dx) + plane[y0 * width + x1] * dx;
    const lower = plane[y1 * width + x0] * (1 - dx) + plane[y1 * width + x1] * dx;
    out[y * side + x] = upper * (1 - dy) + lower * dy;
  }));
  return out;
}

/** Scores as they are read: of each class a number in [0, 1]; scores.py in a browser. */
function toProbabilities(scores, form) {
  if (form.to_probability === "softmax") {
    const most = Math.max(...scores);
    const raised = Array.from(scores, (x) => Math.exp(x - most));
    const sum = raised.reduce((a, b) => a + b, 0);
    return raised.map((x) => x / sum);
  }
  if (form.to_probability === "share") {
    const sum = Math.max(scores.reduce((a, b) => a + b, 0), 1e-7);
    return Array.from(scores, (x) => x / sum);
  }
  if (form.to_probability === "sigmoid") return Array.from(scores, (x) => 1 / (1 + Math.exp(-x)));
  return Array.from(scores, (x) => Math.min(1, Math.max(0, x)));
}

/** The classes that a picture shows, the highest score first; of those that differ in how many, perhaps none. */
function shownClasses(scores, form) {
  const order = Array.from(scores, (_, n) => n).sort((a, b) => scores[b] - scores[a] || a - b);
  return form.shown === null ? order.filter((n) => scores[n] > form.threshold) : order.slice(0, form.shown);
}
