"use strict";

/* The controls of the page. `content` is the JSON of page.py, `Graph` the interpreter of graph.js. */

const content = JSON.parse(document.getElementById("content").textContent);
const element = (id) => document.getElementById(id);

/** The bytes of a string in base64. */
function decodeBytes(text) {
  return Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
}

const numbers = new Float32Array(decodeBytes(content.numbers).buffer);
const graphs = {
  mean: new Graph(content.mean, numbers),
  draw: content.draw && new Graph(content.draw, numbers),
};
const codes = takeTensor(numbers, content.codes);
const samples = takeTensor(numbers, content.samples);
const conditions = content.conditions.map((place) => takeTensor(numbers, place));
const sampleConditions = content.sampleConditions.map((place) => takeTensor(numbers, place));
const examples = decodeBytes(content.examples);
const [numExamples, dim] = codes.shape;
const numValues = sizeOf(content.shape);

/** Row i of a tensor, as numbers. */
function row(tensor, i) {
  const length = tensor.data.length / tensor.shape[0];
  return Array.from(tensor.data.subarray(i * length, (i + 1) * length));
}

/** A number with a minus sign instead of a hyphen. */
const format = (value, digits = 2) => value.toFixed(digits).replace("-", "−");

const dot = (a, b) => a.reduce((total, value, i) => total + value * b[i], 0);
const norm = (a) => Math.sqrt(dot(a, a));
/** The condition of an example; empty for a program without conditions. */
const conditionOf = (i) => conditions.map((tensor) => row(tensor, i));
/** A vector on the space of the latents: of norm 1 if that is the sphere. */
const project = (z) => (content.sphere ? z.map((value) => value / (norm(z) || 1)) : z);

const state = {
  z: row(codes, 0),
  condition: conditionOf(0),
  example: 0,
  mode: "mean",
  seed: 1,
  from: 0,
  to: 0,
  position: null, // on the path, if z is on it
};

/** The values of an example at latents z, in the units of the data. */
function decode(z, condition = state.condition, mode = state.mode) {
  const inputs = [{ shape: [1, dim], data: Float32Array.from(z) }];
  condition.forEach((values, i) => {
    inputs.push({ shape: [1, ...content.conditions[i].shape.slice(1)], data: Float32Array.from(values) });
  });
  return graphs[mode].run(inputs, state.seed).data;
}

/** The largest difference from PyTorch's decoder, in units of the range of a value. */
function checkDecoder() {
  let largest = 0;
  for (const { inputs, x } of content.references) {
    const tensors = inputs.map((place) => takeTensor(numbers, place));
    const ours = graphs.mean.run(tensors).data;
    takeTensor(numbers, x).data.forEach((expected, i) => {
      const difference = Math.abs(ours[i] - expected) / valueRange(i)[2];
      largest = Math.max(largest, Number.isNaN(difference) ? Infinity : difference);
    });
  }
  return largest;
}

/** The lowest and highest value of element i of an example, and their distance. */
function valueRange(i) {
  const [low, high] = content.isImage ? [content.low[0], content.high[0]] : [content.low[i], content.high[i]];
  return [low, high, high > low ? high - low : 1];
}

/* Examples: pictures, or bars */

/** A view of examples inside an element; returns a function that shows values or bytes. */
function makeView(parent, label) {
  return content.isImage ? makePicture(parent, label) : makeBars(parent, label);
}

function makePicture(parent, label) {
  const [height, width] = content.shape.slice(-2);
  const channels = numValues / (height * width);
  const canvas = document.createElement("canvas");
  canvas.className = "picture";
  canvas.width = width;
  canvas.height = height;
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", label);
  parent.append(canvas);
  // its pixels are written one by one, without a GPU
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const pixels = context.createImageData(width, height);
  return (fractions) => {
    const area = width * height;
    for (let i = 0; i < area; i++) {
      for (let c = 0; c < 3; c++) {
        pixels.data[4 * i + c] = Math.round(255 * fractions[channels === 3 ? c * area + i : i]);
      }
      pixels.data[4 * i + 3] = 255;
    }
    context.putImageData(pixels, 0, 0);
  };
}

function makeBars(parent, label) {
  parent.setAttribute("role", "group");
  parent.setAttribute("aria-label", label);
  const rows = content.names.map((name) => {
    const [bar, title, track, fill, value] = ["div", "span", "div", "div", "span"].map((tag) => document.createElement(tag));
    bar.className = "bar";
    track.className = "track";
    title.textContent = title.title = name;
    track.append(fill);
    bar.append(title, track, value);
    parent.append(bar);
    return [fill, value];
  });
  return (fractions) => {
    rows.forEach(([fill, value], i) => {
      const [low, , range] = valueRange(i);
      fill.style.width = `${100 * Math.min(1, Math.max(0, fractions[i]))}%`;
      value.textContent = (low + range * fractions[i]).toPrecision(4);
    });
  };
}

/** Values as fractions of their range. */
const toFractions = (values) => Array.from(values, (value, i) => (value - valueRange(i)[0]) / valueRange(i)[2]);
const exampleFractions = (i) => Array.from(examples.subarray(i * numValues, (i + 1) * numValues), (byte) => byte / 255);

const showDecoded = makeView(element("decoded"), "p(x|z) at the current latents");
const showOriginal = makeView(element("original"), "Held-out example");
const showReconstruction = makeView(element("reconstruction"), "Mean of p(x|z) at the code of the example");
document.querySelector(".views").classList.toggle("bars", !content.isImage);

/* Latents */

/** Move to latents z; `keep` are the parts of the state that still describe them. */
function moveTo(z, keep = {}) {
  state.z = project(z);
  state.position = null;
  Object.assign(state, keep);
  update();
}

function chooseExample(i) {
  state.example = Math.min(Math.max(Math.round(i) || 0, 0), numExamples - 1);
  moveTo(row(codes, state.example), { condition: conditionOf(state.example) });
}

/** Set one latent; on the sphere the others are rescaled. */
function setLatent(d, value) {
  if (!content.sphere) return moveTo(state.z.with(d, value));
  const clipped = Math.min(1, Math.max(-1, value));
  const rest = norm(state.z.with(d, 0));
  if (rest === 0) return moveTo(state.z.with(d, Math.sign(clipped) || 1));
  const scale = Math.sqrt(1 - clipped * clipped) / rest;
  return moveTo(state.z.map((other, i) => (i === d ? clipped : other * scale)));
}

/** A point of the path between two vectors: straight, or along the great circle on the sphere. */
function between(a, b, t) {
  const mix = (s, r) => a.map((value, i) => s * value + r * b[i]);
  if (!content.sphere) return mix(1 - t, t);
  const angle = Math.acos(Math.min(1, Math.max(-1, dot(a, b))));
  if (Math.sin(angle) < 1e-6) return project(mix(1 - t, t));
  return mix(Math.sin((1 - t) * angle) / Math.sin(angle), Math.sin(t * angle) / Math.sin(angle));
}

/** How much each latent carries, and its slider. */
const sliders = new Map();

function makeSliders() {
  const order = content.carried.map((_, d) => d).sort((a, b) => content.carried[b] - content.carried[a]);
  const isKL = content.measure === "KL";
  element("measure").textContent = isKL
    ? "KL(q(z|x) ‖ p(z)) of each latent, in nats, averaged over the held-out examples."
    : "Variance of the codes. The KL of q(z|x) does not factorise over the latents.";
  for (const d of order) {
    const label = document.createElement("label");
    const [name, carried, input, output] = ["span", "span", "input", "output"].map((tag) => document.createElement(tag));
    const [low, high] = content.ranges[d];
    label.className = "slider";
    carried.className = "carried";
    name.textContent = dim > 1 ? `${content.site}[${d}]` : content.site;
    carried.textContent = isKL ? `${content.carried[d].toFixed(2)} nats` : `variance ${content.carried[d].toFixed(2)}`;
    name.append(carried);
    Object.assign(input, { type: "range", min: low, max: high, step: (high - low) / 200 });
    input.addEventListener("input", () => setLatent(d, Number(input.value)));
    label.append(name, input, output);
    element(isKL && content.carried[d] < 0.01 ? "inactive" : "active").append(label);
    sliders.set(d, [input, output]);
  }
  const count = element("inactive").childElementCount;
  element("inactive-section").hidden = count === 0;
  element("inactive-section").querySelector("summary").textContent =
    `${count} ${count === 1 ? "latent that carries" : "latents that carry"} less than 0.01 nats`;
}

/* The map */

const map = element("map");
const colours = ["#4e79a7", "#f28e2b", "#d94a4d", "#56b3ac", "#4f9d4a", "#d9b32b", "#a86fa0", "#ff8fa3", "#9c755f", "#8b8b95"];

function classColour(label) {
  if (label === undefined || label < 0) return getComputedStyle(document.body).getPropertyValue("--muted");
  const count = content.classes.length;
  return count <= colours.length ? colours[label] : `hsl(${(360 * label) / count} 65% 50%)`;
}

/** The axes to choose from: directions of largest variance, and single latents. */
function makeAxes() {
  const axes = [];
  if (dim > 2) {
    content.axes.forEach((direction, k) => {
      const share = (100 * content.shares[k]).toFixed(0);
      axes.push({ name: `PCA ${k + 1} (${share} %)`, direction, centre: content.centre });
    });
  }
  for (const d of sliders.keys()) {
    const direction = new Array(dim).fill(0).with(d, 1);
    axes.push({ name: `${content.site}[${d}]`, direction, centre: new Array(dim).fill(0) });
  }
  // two latents keep their order
  return dim === 2 ? axes.toSorted((a, b) => a.name.localeCompare(b.name)) : axes;
}

const coordinate = (axis, z) => dot(axis.direction, z) - dot(axis.direction, axis.centre);
let axes = [];
let shown = [];
let limits = [];

function selectAxes() {
  const selects = [element("horizontal"), element("vertical")];
  shown = selects.map((select) => axes[select.value]);
  selects.forEach((select, k) => {
    for (const option of select.options) option.disabled = option.value === selects[1 - k].value;
  });
  limits = shown.map((axis) => {
    const values = Array.from({ length: numExamples }, (_, i) => coordinate(axis, row(codes, i)));
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const margin = 0.15 * (high - low) + 1e-3;
    return [low - margin, high + margin];
  });
  points = Array.from({ length: numExamples }, (_, i) => shown.map((axis) => coordinate(axis, row(codes, i))));
  update();
}

let points = [];

/** Move in the plane of the two axes, and leave z alone perpendicular to it. */
function moveInPlane(target) {
  const [a, b] = shown.map((axis) => axis.direction);
  const [p, q] = shown.map((axis, k) => target[k] - coordinate(axis, state.z));
  const [aa, ab, bb] = [dot(a, a), dot(a, b), dot(b, b)];
  const determinant = aa * bb - ab * ab;
  const [s, t] = [(bb * p - ab * q) / determinant, (aa * q - ab * p) / determinant];
  moveTo(state.z.map((value, i) => value + s * a[i] + t * b[i]));
}

const toPixels = (point) => {
  const size = [map.clientWidth, map.clientHeight];
  const [x, y] = point.map((value, k) => (value - limits[k][0]) / (limits[k][1] - limits[k][0]));
  return [x * size[0], (1 - y) * size[1]];
};

const toPoint = (x, y) => {
  const fractions = [x / map.clientWidth, 1 - y / map.clientHeight];
  return fractions.map((value, k) => limits[k][0] + value * (limits[k][1] - limits[k][0]));
};

function drawMap() {
  const ratio = window.devicePixelRatio || 1;
  const [width, height] = [map.clientWidth, map.clientHeight];
  map.width = Math.round(width * ratio);
  map.height = Math.round(height * ratio);
  const context = map.getContext("2d");
  context.scale(ratio, ratio);
  const style = getComputedStyle(document.body);
  const [text, line, accent, page] = ["--text", "--line", "--accent", "--page"].map((name) => style.getPropertyValue(name));
  // the axes of zero
  context.strokeStyle = line;
  context.beginPath();
  const [zeroX, zeroY] = toPixels([0, 0]);
  context.moveTo(zeroX, 0);
  context.lineTo(zeroX, height);
  context.moveTo(0, zeroY);
  context.lineTo(width, zeroY);
  context.stroke();
  context.globalAlpha = 0.75;
  points.forEach((point, i) => {
    context.fillStyle = content.labels ? classColour(content.labels[i]) : accent;
    context.beginPath();
    context.arc(...toPixels(point), 3, 0, 2 * Math.PI);
    context.fill();
  });
  context.globalAlpha = 1;
  context.strokeStyle = text;
  context.setLineDash([5, 4]);
  context.beginPath();
  for (let t = 0; t <= 20; t++) {
    const z = between(row(codes, state.from), row(codes, state.to), t / 20);
    context.lineTo(...toPixels(shown.map((axis) => coordinate(axis, z))));
  }
  context.stroke();
  context.setLineDash([]);
  // a hollow mark at the edge if z is outside
  const exact = toPixels(shown.map((axis) => coordinate(axis, state.z)));
  const [x, y] = [width, height].map((size, k) => Math.min(Math.max(exact[k], 8), size - 8));
  const isOutside = Math.hypot(exact[0] - x, exact[1] - y) > 8;
  context.lineWidth = 2;
  context.fillStyle = page;
  context.beginPath();
  context.arc(x, y, 7, 0, 2 * Math.PI);
  context.fill();
  context.stroke();
  if (isOutside) return;
  context.beginPath();
  context.fillStyle = accent;
  context.arc(x, y, 3, 0, 2 * Math.PI);
  context.fill();
}

/** The example whose point is nearest to a position on the map, and their distance in pixels. */
function nearestExample(x, y) {
  let best = [0, Infinity];
  points.forEach((point, i) => {
    const [px, py] = toPixels(point);
    const distance = Math.hypot(px - x, py - y);
    if (distance < best[1]) best = [i, distance];
  });
  return best;
}

function makeMap() {
  if (dim === 1) {
    element("map-section").hidden = true;
    return;
  }
  axes = makeAxes();
  for (const [k, select] of [element("horizontal"), element("vertical")].entries()) {
    axes.forEach(({ name }, i) => select.add(new Option(name, i, i === k, i === k)));
    select.addEventListener("change", selectAxes);
  }
  const kinds = {
    mean: "Each point is the mean of q(z|x).",
    direction: "Each point is the direction of the mean of q(z|x).",
    centre: "Each point is the centre of q(z|x).",
    draw: "Each point is a sample of q(z|x), which has no mean in closed form.",
  };
  const shares = dim > 2 ? " PCA: the directions of largest variance of the points, with their shares." : "";
  element("code-kind").textContent = `${numExamples} examples. ${kinds[content.codeKind]}${shares}`;
  (content.labels ? content.classes : []).forEach((name, label) => {
    if (!content.labels.includes(label)) return;
    const [item, dot] = [document.createElement("li"), document.createElement("i")];
    dot.style.background = classColour(label);
    item.append(dot, name);
    element("legend").append(item);
  });
  let start = null;
  const position = (event) => [event.offsetX, event.offsetY];
  map.addEventListener("pointerdown", (event) => {
    map.setPointerCapture(event.pointerId);
    start = position(event);
    moveInPlane(toPoint(...start));
  });
  map.addEventListener("pointermove", (event) => {
    if (start) moveInPlane(toPoint(...position(event)));
  });
  map.addEventListener("pointerup", (event) => {
    const [x, y] = position(event);
    const [example, distance] = nearestExample(x, y);
    if (start && Math.hypot(x - start[0], y - start[1]) < 4 && distance < 6) chooseExample(example);
    start = null;
  });
  map.addEventListener("pointercancel", () => (start = null));
  map.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    const here = shown.map((axis) => coordinate(axis, state.z));
    if (event.key === "Enter") chooseExample(nearestExample(...toPixels(here))[0]);
    else if (event.key in steps) {
      const part = event.shiftKey ? 0.1 : 0.02;
      moveInPlane(here.map((value, k) => value + steps[event.key][k] * part * (limits[k][1] - limits[k][0])));
    } else return;
    event.preventDefault();
  });
  new ResizeObserver(update).observe(map);
}

/* Interpolation */

const NUM_STEPS = 9;
let strip = [];

function makeStrip() {
  const label = (i) => content.labels?.[i];
  state.to = Math.max(0, content.labels ? content.labels.findIndex((other) => other !== label(0)) : numExamples - 1);
  element("path-note").textContent = content.sphere
    ? "The path is the great circle between the two codes. The ends of the row are the two examples."
    : "The path is the straight line between the two codes. The ends of the row are the two examples.";
  if (!content.isImage) {
    element("path-note").textContent = content.sphere ? "The path is a great circle." : "The path is a straight line.";
    return;
  }
  const add = (tag, name) => {
    const cell = document.createElement(tag);
    const show = makeView(cell, name);
    const caption = document.createElement("span");
    cell.append(caption);
    element("strip").append(cell);
    return { cell, show, caption };
  };
  const first = add("div", "First example");
  const steps = Array.from({ length: NUM_STEPS }, (_, i) => {
    const t = i / (NUM_STEPS - 1);
    const step = add("button", `Mean of p(x|z) at position ${t.toFixed(2)}`);
    step.cell.type = "button";
    step.caption.textContent = t.toFixed(2);
    step.cell.addEventListener("click", () => setPosition(t));
    return step;
  });
  strip = [first, ...steps, add("div", "Second example")];
}

/** Show the path again after its ends have changed. */
function updateStrip() {
  if (!strip.length) return;
  const [a, b] = [state.from, state.to].map((i) => row(codes, i));
  [state.from, state.to].forEach((i, k) => {
    const end = k ? strip.at(-1) : strip[0];
    end.show(exampleFractions(i));
    end.caption.textContent = `#${i}`;
  });
  strip.slice(1, -1).forEach((step, i) => step.show(toFractions(decode(between(a, b, i / (NUM_STEPS - 1)), state.condition, "mean"))));
}

function setPosition(t) {
  moveTo(between(row(codes, state.from), row(codes, state.to), t), { position: t });
}

function setEnds() {
  for (const name of ["from", "to"]) {
    state[name] = Math.min(Math.max(Math.round(Number(element(name).value)) || 0, 0), numExamples - 1);
  }
  stripCondition = null;
  setPosition(state.position ?? 0);
}

/* The whole page */

let isScheduled = false;
let stripCondition = null;
let reconstructed = null;

/** Redraw the page before the next frame. */
function update() {
  if (isScheduled) return;
  isScheduled = true;
  requestAnimationFrame(() => {
    isScheduled = false;
    render();
  });
}

function render() {
  showDecoded(toFractions(decode(state.z)));
  if (state.example !== reconstructed) {
    reconstructed = state.example;
    showOriginal(exampleFractions(state.example));
    showReconstruction(toFractions(decode(row(codes, state.example), conditionOf(state.example), "mean")));
  }
  const label = content.labels?.[state.example];
  const name = label === undefined || label < 0 ? "" : `, class ${content.classes[label] ?? label}`;
  element("original-caption").textContent = `Example ${state.example}${name}`;
  element("decoded-caption").textContent = state.mode === "mean" ? "Mean of p(x|z)" : "Draw from p(x|z)";
  for (const [d, [input, output]] of sliders) {
    input.value = state.z[d];
    output.textContent = format(state.z[d]);
  }
  element("choose").value = state.example;
  element("from").value = state.from;
  element("to").value = state.to;
  if (state.position !== null) element("position").value = state.position;
  element("position-value").textContent = state.position === null ? "–" : state.position.toFixed(2);
  strip.slice(1, -1).forEach((step, i) => step.cell.setAttribute("aria-pressed", state.position === i / (NUM_STEPS - 1)));
  element("values").value = `[${state.z.map((value) => Number(value.toPrecision(6))).join(", ")}]`;
  element("redraw").disabled = state.mode !== "draw";
  if (content.hasClasses) element("class").value = state.condition[0][0];
  if (dim > 1) {
    drawMap();
    element("status").textContent = shown.map((axis) => `${axis.name}: ${format(coordinate(axis, state.z))}`).join(", ");
  }
  const condition = JSON.stringify(state.condition);
  if (condition !== stripCondition) {
    stripCondition = condition;
    updateStrip();
  }
}

let sampled = -1;

/** Move to the next sample of the prior, of the selected class if there are classes. */
function samplePrior() {
  for (let i = 0; i < samples.shape[0]; i++) {
    sampled = (sampled + 1) % samples.shape[0];
    const condition = sampleConditions.map((tensor) => row(tensor, sampled));
    if (content.hasClasses && condition[0][0] !== state.condition[0][0]) continue;
    moveTo(row(samples, sampled), { condition });
    return;
  }
}

function makeControls() {
  for (const input of document.getElementsByName("mode")) {
    input.addEventListener("change", () => {
      state.mode = input.value;
      update();
    });
    if (input.value === "draw") input.disabled = !graphs.draw;
  }
  element("no-draw").hidden = graphs.draw !== null;
  element("no-draw").textContent = `Only the mean: ${content.noDrawReason}.`;
  element("redraw").addEventListener("click", () => {
    state.seed++;
    update();
  });
  element("sample").addEventListener("click", samplePrior);
  element("reset").addEventListener("click", () => moveTo(content.centre));
  element("reset").title = "Move to the mean of the codes";
  element("previous").addEventListener("click", () => chooseExample(state.example - 1));
  element("next").addEventListener("click", () => chooseExample(state.example + 1));
  element("choose").addEventListener("change", () => chooseExample(Number(element("choose").value)));
  element("position").addEventListener("input", () => setPosition(Number(element("position").value)));
  for (const name of ["choose", "from", "to"]) element(name).max = numExamples - 1;
  for (const name of ["from", "to"]) element(name).addEventListener("change", setEnds);
  if (content.hasClasses) {
    element("class-label").hidden = false;
    const known = new Set(conditions[0].data);
    [...known].sort((a, b) => a - b).forEach((c) => element("class").add(new Option(content.classes[c] ?? c, c)));
    element("class").addEventListener("change", () => {
      state.condition = [[Number(element("class").value)]];
      update();
    });
  }
}

function showCheck() {
  const difference = checkDecoder();
  document.body.dataset.difference = difference;
  const size = (document.documentElement.innerHTML.length / 1e6).toFixed(1);
  const others = content.others.length ? ` In the mean, the other latents (${content.others.join(", ")}) are at the means of their sites.` : "";
  element("check").textContent =
    `The decoder of this page differs from PyTorch's by at most ${difference.toExponential(1)} of the range of a value, at ${content.references.length} points.${others} ` +
    `${samples.shape[0]} samples of the prior. ${size} MB, no network.`;
  if (difference < 1e-5) return;
  element("warning").hidden = false;
  element("warning").textContent = `The decoder of this page differs from PyTorch's by ${difference.toPrecision(2)} of the range of a value: do not rely on what it shows.`;
}

makeSliders();
makeMap();
makeStrip();
makeControls();
showCheck();
if (dim > 1) selectAxes();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", update);
update();
