"use strict";

/*
 * Runs the graphs of graph.py: tensor operations with the names and arguments of ATen, in float32.
 *
 * A tensor is {shape, data}: its sizes, and a Float32Array in row-major order. Booleans are 0 and 1.
 */

/** The number of elements of a shape. */
function sizeOf(shape) {
  return shape.reduce((product, size) => product * size, 1);
}

/** The distance in memory of neighbours along each dimension. */
function stridesOf(shape) {
  const strides = new Array(shape.length);
  for (let d = shape.length - 1, stride = 1; d >= 0; d--) {
    strides[d] = stride;
    stride *= shape[d];
  }
  return strides;
}

/** A new tensor whose element i is data[offset + i · strides]: permuted, sliced or repeated. */
function strided(data, shape, strides, offset = 0) {
  const result = new Float32Array(sizeOf(shape));
  const last = shape.length - 1;
  if (last < 0) {
    result[0] = data[offset];
    return { shape, data: result };
  }
  const index = new Array(shape.length).fill(0);
  for (let i = 0; i < result.length; ) {
    for (let j = 0, k = offset; j < shape[last]; j++, k += strides[last]) result[i++] = data[k];
    let d = last - 1;
    for (; d >= 0; d--) {
      offset += strides[d];
      if (++index[d] < shape[d]) break;
      offset -= shape[d] * strides[d];
      index[d] = 0;
    }
    if (d < 0) break;
  }
  return { shape, data: result };
}

/** A tensor or number as a tensor of a shape that it broadcasts to. */
function broadcast(x, shape) {
  if (typeof x === "number" || typeof x === "boolean") {
    return { shape, data: new Float32Array(sizeOf(shape)).fill(Number(x)) };
  }
  if (x.data.length === sizeOf(shape)) return { shape, data: x.data };
  const missing = shape.length - x.shape.length;
  const own = stridesOf(x.shape);
  const strides = shape.map((_, d) => (d < missing || x.shape[d - missing] === 1 ? 0 : own[d - missing]));
  return strided(x.data, shape, strides);
}

/** The shape that tensors and numbers broadcast to. */
function commonShape(...operands) {
  const shape = [];
  for (const operand of operands) {
    const sizes = operand.shape ?? [];
    for (let d = 1; d <= sizes.length; d++) {
      if (shape.length < d) shape.unshift(sizes.at(-d));
      else if (shape.at(-d) === 1) shape[shape.length - d] = sizes.at(-d);
    }
  }
  return shape;
}

/** Apply a function of numbers to each element of tensors. */
function elementwise(f, ...operands) {
  const shape = commonShape(...operands);
  const [a, b, c] = operands.map((operand) => broadcast(operand, shape).data);
  const data = new Float32Array(sizeOf(shape));
  // a loop for each number of operands: twice as fast
  if (c) for (let i = 0; i < data.length; i++) data[i] = f(a[i], b[i], c[i]);
  else if (b) for (let i = 0; i < data.length; i++) data[i] = f(a[i], b[i]);
  else for (let i = 0; i < data.length; i++) data[i] = f(a[i]);
  return { shape, data };
}

const unary = (f) => (x) => elementwise((a) => f(a), x);
const binary = (f) => (x, y) => elementwise((a, b) => f(a, b), x, y);

/** A dimension counted from the front. */
const positive = (dim, shape) => (dim < 0 ? dim + shape.length : dim);

/** Apply a function of arrays to the elements along some dimensions; all of them without `dims`. */
function reduce(f, x, dims, keep) {
  const all = x.shape.map((_, d) => d);
  const list = dims === null || dims === undefined ? [] : [dims].flat();
  const reduced = (list.length ? list : all).map((d) => positive(d, x.shape));
  const kept = all.filter((d) => !reduced.includes(d));
  const rows = permute(x, [...kept, ...reduced]).data;
  const shape = x.shape.map((size, d) => (reduced.includes(d) ? 1 : size)).filter((_, d) => keep || kept.includes(d));
  const data = new Float32Array(sizeOf(shape));
  const length = rows.length / data.length;
  for (let i = 0; i < data.length; i++) data[i] = f(rows.subarray(i * length, (i + 1) * length));
  return { shape, data };
}

function permute(x, dims) {
  const strides = stridesOf(x.shape);
  const order = dims.map((d) => positive(d, x.shape));
  return strided(x.data, order.map((d) => x.shape[d]), order.map((d) => strides[d]));
}

const sum = (row) => row.reduce((total, value) => total + value, 0);
const mean = (row) => sum(row) / row.length;

function variance(row, correction) {
  const centre = mean(row);
  return row.reduce((total, value) => total + (value - centre) ** 2, 0) / (row.length - correction);
}

/** Elements start, start + step, … below end of one dimension. */
function slice(x, dim = 0, start = 0, end = null, step = 1) {
  const d = positive(dim, x.shape);
  const size = x.shape[d];
  const clip = (i) => Math.min(Math.max(i < 0 ? i + size : i, 0), size);
  const [first, past] = [clip(start ?? 0), clip(end ?? size)];
  const strides = stridesOf(x.shape);
  const shape = x.shape.with(d, Math.max(0, Math.ceil((past - first) / step)));
  return strided(x.data, shape, strides.with(d, strides[d] * step), first * strides[d]);
}

function select(x, dim, index) {
  const d = positive(dim, x.shape);
  const part = slice(x, d, positive(index, [x.shape[d]]), index === -1 ? null : index + 1);
  return { shape: x.shape.toSpliced(d, 1), data: part.data };
}

function cat(tensors, dim = 0) {
  const parts = tensors.filter((x) => x.data.length);
  const d = positive(dim, parts[0].shape);
  const size = parts.reduce((total, x) => total + x.shape[d], 0);
  const shape = parts[0].shape.with(d, size);
  const data = new Float32Array(sizeOf(shape));
  const inner = sizeOf(shape.slice(d + 1));
  let start = 0;
  for (const x of parts) {
    const length = x.shape[d] * inner;
    for (let i = 0; i * length < x.data.length; i++) {
      data.set(x.data.subarray(i * length, (i + 1) * length), i * size * inner + start);
    }
    start += length;
  }
  return { shape, data };
}

function gather(x, dim, index) {
  const d = positive(dim, x.shape);
  const strides = stridesOf(x.shape);
  const data = new Float32Array(index.data.length);
  const own = stridesOf(index.shape);
  for (let i = 0; i < data.length; i++) {
    let place = index.data[i] * strides[d];
    for (let k = 0, rest = i; k < own.length; k++) {
      if (k !== d) place += Math.floor(rest / own[k]) * strides[k];
      rest %= own[k];
    }
    data[i] = x.data[place];
  }
  return { shape: index.shape, data };
}

/** Products of matrices (…, n, k) and (…, k, m), one for each batch. */
function matmul(a, b) {
  const [n, k, m] = [a.shape.at(-2), a.shape.at(-1), b.shape.at(-1)];
  const batches = a.data.length / (n * k);
  const data = new Float32Array(batches * n * m);
  const row = new Float64Array(m);
  const [left, right] = [a.data, b.data];
  for (let i = 0; i < batches * n; i++) {
    row.fill(0);
    const start = Math.floor(i / n) * k * m;
    for (let l = 0; l < k; l++) {
      const factor = left[i * k + l];
      if (factor === 0) continue;
      for (let j = 0, p = start + l * m; j < m; j++, p++) row[j] += factor * right[p];
    }
    data.set(row, i * m);
  }
  return { shape: [...a.shape.slice(0, -1), m], data };
}

function addmm(bias, a, b, beta = 1, alpha = 1) {
  return elementwise((x, y) => beta * x + alpha * y, bias, matmul(a, b));
}

/** Convolution of images (N, C, H, W), or its transpose. `this` is the node, with the shape. */
function convolution(x, weight, bias, stride, padding, dilation, transposed, _, groups) {
  const [batch, channels, height, width] = x.shape;
  const [, outChannels, outHeight, outWidth] = this.shape;
  const [kernelHeight, kernelWidth] = weight.shape.slice(2);
  const pair = (value) => (value.length === 1 ? [value[0], value[0]] : value);
  const [[sy, sx], [py, px], [dy, dx]] = [pair(stride), pair(padding), pair(dilation)];
  const [inGroup, outGroup] = [channels / groups, outChannels / groups];
  const [area, outArea] = [height * width, outHeight * outWidth];
  const [input, weights] = [x.data, weight.data];
  const sums = new Float64Array(batch * outChannels * outArea);
  // the larger image is read or written at small · stride − padding + tap · dilation
  const [smallHeight, smallWidth] = transposed ? [height, width] : [outHeight, outWidth];
  const [largeHeight, largeWidth] = transposed ? [outHeight, outWidth] : [height, width];
  for (let n = 0; n < batch; n++) {
    for (let o = 0; o < outChannels; o++) {
      const group = Math.floor(o / outGroup);
      const target = (n * outChannels + o) * outArea;
      if (bias) sums.fill(bias.data[o], target, target + outArea);
      for (let c = 0; c < inGroup; c++) {
        const source = (n * channels + group * inGroup + c) * area;
        const taps = transposed
          ? ((group * inGroup + c) * outGroup + (o % outGroup)) * kernelHeight * kernelWidth
          : (o * inGroup + c) * kernelHeight * kernelWidth;
        for (let ky = 0; ky < kernelHeight; ky++) {
          for (let kx = 0; kx < kernelWidth; kx++) {
            const tap = weights[taps + ky * kernelWidth + kx];
            const shift = kx * dx - px;
            const first = Math.max(0, Math.ceil(-shift / sx));
            const past = Math.min(smallWidth, Math.floor((largeWidth - 1 - shift) / sx) + 1);
            for (let y = 0; y < smallHeight; y++) {
              const large = y * sy - py + ky * dy;
              if (large < 0 || large >= largeHeight) continue;
              let small = y * smallWidth + first;
              let place = large * largeWidth + first * sx + shift;
              if (transposed) {
                for (let i = first; i < past; i++, small++, place += sx) {
                  sums[target + place] += tap * input[source + small];
                }
              } else {
                for (let i = first; i < past; i++, small++, place += sx) {
                  sums[target + small] += tap * input[source + place];
                }
              }
            }
          }
        }
      }
    }
  }
  return { shape: this.shape, data: new Float32Array(sums) };
}

/** Group norm of (N, C, …); the first of three results. */
function groupNorm(x, weight, bias, batch, channels, area, groups, epsilon) {
  const data = new Float32Array(x.data.length);
  const length = (channels / groups) * area;
  for (let i = 0; i < batch * groups; i++) {
    const row = x.data.subarray(i * length, (i + 1) * length);
    const centre = mean(row);
    const scale = 1 / Math.sqrt(variance(row, 0) + epsilon);
    for (let j = 0; j < length; j++) {
      const c = (i % groups) * (channels / groups) + Math.floor(j / area);
      const value = (row[j] - centre) * scale;
      data[i * length + j] = value * (weight ? weight.data[c] : 1) + (bias ? bias.data[c] : 0);
    }
  }
  return [{ shape: x.shape, data }];
}

function softmax(x, dim) {
  const highest = reduce((row) => row.reduce((a, b) => Math.max(a, b), -Infinity), x, dim, true);
  const weights = elementwise((a, b) => Math.exp(a - b), x, highest);
  return elementwise((a, b) => a / b, weights, reduce(sum, weights, dim, true));
}

function upsampleNearest(x) {
  const [height, width] = x.shape.slice(-2);
  const [outHeight, outWidth] = this.shape.slice(-2);
  const data = new Float32Array(sizeOf(this.shape));
  for (let i = 0; i < data.length; i++) {
    const column = Math.floor(((i % outWidth) * width) / outWidth);
    const row = Math.floor(((Math.floor(i / outWidth) % outHeight) * height) / outHeight);
    const image = Math.floor(i / (outWidth * outHeight));
    data[i] = x.data[(image * height + row) * width + column];
  }
  return { shape: this.shape, data };
}

function pad(x, widths, value = 0) {
  let result = x;
  for (let i = 0; i < widths.length / 2; i++) {
    const d = x.shape.length - 1 - i;
    const [before, after] = [widths[2 * i], widths[2 * i + 1]];
    const filled = (size) => broadcast(value, result.shape.with(d, Math.max(0, size)));
    const inside = slice(result, d, Math.max(0, -before), result.shape[d] + Math.min(0, after));
    result = cat([filled(before), inside, filled(after)], d);
  }
  return result;
}

function repeat(x, repeats) {
  const shape = [...new Array(repeats.length - x.shape.length).fill(1), ...x.shape];
  const own = stridesOf(shape);
  const sizes = repeats.flatMap((count, d) => [count, shape[d]]);
  const strides = own.flatMap((stride) => [0, stride]);
  return { shape: this.shape, data: strided(x.data, sizes, strides).data };
}

/** Round half to even, as PyTorch does. */
function roundHalfToEven(x) {
  const low = Math.floor(x);
  const distance = x - low;
  if (distance !== 0.5) return Math.round(x);
  return low % 2 === 0 ? low : low + 1;
}

/** The error function: a series near 0, and a continued fraction. */
function erf(x) {
  const size = Math.abs(x);
  if (size > 6) return Math.sign(x);
  if (size < 2.5) {
    let term = x;
    let total = x;
    for (let n = 1; Math.abs(term) > 1e-17 * Math.abs(total); n++) {
      term *= (-x * x) / n;
      total += term / (2 * n + 1);
    }
    return (2 / Math.sqrt(Math.PI)) * total;
  }
  let fraction = size;
  for (let n = 60; n > 0; n--) fraction = size + n / 2 / fraction;
  return Math.sign(x) * (1 - Math.exp(-size * size) / fraction / Math.sqrt(Math.PI));
}

/** Random numbers with a seed: mulberry32. */
class Random {
  constructor(seed) {
    this.state = seed >>> 0;
  }

  /** Uniform in (0, 1), never an end. */
  uniform() {
    this.state = (this.state + 0x6d2b79f5) >>> 0;
    let bits = this.state;
    bits = Math.imul(bits ^ (bits >>> 15), bits | 1);
    bits ^= bits + Math.imul(bits ^ (bits >>> 7), bits | 61);
    return (((bits ^ (bits >>> 14)) >>> 0) + 0.5) / 4294967296;
  }

  normal() {
    return Math.sqrt(-2 * Math.log(this.uniform())) * Math.cos(2 * Math.PI * this.uniform());
  }

  /** Marsaglia and Tsang, A simple method for generating gamma variables (2000). */
  gamma(alpha) {
    if (alpha < 1) return this.gamma(alpha + 1) * this.uniform() ** (1 / alpha);
    const d = alpha - 1 / 3;
    for (;;) {
      const x = this.normal();
      const v = (1 + x / Math.sqrt(9 * d)) ** 3;
      if (v > 0 && Math.log(this.uniform()) < 0.5 * x * x + d - d * v + d * Math.log(v)) return d * v;
    }
  }

  /** The number of arrivals: of two halves if the rate is large. */
  poisson(rate) {
    if (rate > 500) return this.poisson(rate / 2) + this.poisson(rate / 2);
    let count = 0;
    for (let product = this.uniform(); product > Math.exp(-rate); product *= this.uniform()) count++;
    return count;
  }

  binomial(count, probability) {
    let successes = 0;
    for (let i = 0; i < count; i++) successes += this.uniform() < probability ? 1 : 0;
    return successes;
  }
}

/** A tensor of random numbers, of the shape of the node. */
function fill(node, sample) {
  const data = new Float32Array(sizeOf(node.shape));
  for (let i = 0; i < data.length; i++) data[i] = sample();
  return { shape: node.shape, data };
}

function multinomial(weights) {
  const length = weights.shape.at(-1);
  const count = this.shape.at(-1);
  const data = new Float32Array(sizeOf(this.shape));
  for (let i = 0; i < data.length; i++) {
    const start = Math.floor(i / count) * length;
    const row = weights.data.subarray(start, start + length);
    let rest = this.random.uniform() * sum(row);
    let index = 0;
    while (index < length - 1 && rest >= row[index]) rest -= row[index++];
    data[i] = index;
  }
  return { shape: this.shape, data };
}

function dirichlet(alpha) {
  const gammas = elementwise((a) => Math.max(this.random.gamma(a), 1e-30), alpha);
  return elementwise((a, b) => a / b, gammas, reduce(sum, gammas, -1, true));
}

const reshape = function (x) {
  return { shape: this.shape, data: x.data };
};
const sigmoid = (x) => (x >= 0 ? 1 / (1 + Math.exp(-x)) : Math.exp(x) / (1 + Math.exp(x)));

/** The operations by name. `this` is the node, with `shape`, `kind` and `random`. */
const OPERATIONS = {
  abs: unary(Math.abs),
  add: (x, y, alpha = 1) => elementwise((a, b) => a + alpha * b, x, y),
  addmm,
  amax: (x, dims, keep) => reduce((row) => row.reduce((a, b) => Math.max(a, b), -Infinity), x, dims, keep),
  argmax: (x, dim, keep) => reduce((row) => row.indexOf(row.reduce((a, b) => Math.max(a, b), -Infinity)), x, dim, keep),
  bitwise_and: binary((a, b) => a & b),
  bitwise_not(x) {
    return elementwise(this.kind === "b" ? (a) => (a ? 0 : 1) : (a) => ~a, x);
  },
  bitwise_or: binary((a, b) => a | b),
  bmm: matmul,
  cat,
  ceil: unary(Math.ceil),
  clamp: (x, low, high) => elementwise((a, b, c) => Math.min(Math.max(a, b), c), x, low ?? -Infinity, high ?? Infinity),
  clone: (x) => x,
  constant_pad_nd: pad,
  convolution,
  cos: unary(Math.cos),
  div(x, y, mode = null) {
    const round = { trunc: Math.trunc, floor: Math.floor }[mode] ?? ((a) => a);
    return elementwise((a, b) => round(a / b), x, y);
  },
  eq: binary((a, b) => a === b),
  erf: unary(erf),
  exp: unary(Math.exp),
  expand(x) {
    return broadcast(x, this.shape);
  },
  expm1: unary(Math.expm1),
  floor: unary(Math.floor),
  fmod: binary((a, b) => a % b),
  full(_, value) {
    return broadcast(value, this.shape);
  },
  gather,
  ge: binary((a, b) => a >= b),
  getitem: (list, index) => list[index],
  gt: binary((a, b) => a > b),
  index_put: (x, [mask], value) => elementwise((a, b, c) => (b ? c : a), x, mask, value),
  le: binary((a, b) => a <= b),
  log: unary(Math.log),
  log1p: unary(Math.log1p),
  logical_and: binary((a, b) => a && b),
  logical_not: unary((a) => !a),
  logical_or: binary((a, b) => a || b),
  lt: binary((a, b) => a < b),
  maximum: binary(Math.max),
  mean: (x, dims, keep) => reduce(mean, x, dims, keep),
  minimum: binary(Math.min),
  mm: matmul,
  mul: binary((a, b) => a * b),
  native_group_norm: groupNorm,
  ne: binary((a, b) => a !== b),
  neg: unary((a) => -a),
  permute,
  pow: binary(Math.pow),
  reciprocal: unary((a) => 1 / a),
  relu: unary((a) => Math.max(a, 0)),
  repeat,
  round: unary(roundHalfToEven),
  rsqrt: unary((a) => 1 / Math.sqrt(a)),
  select,
  sigmoid: unary(sigmoid),
  sign: unary(Math.sign),
  sin: unary(Math.sin),
  slice,
  softmax,
  split_with_sizes(x, sizes, dim = 0) {
    let start = 0;
    return sizes.map((size) => slice(x, dim, start, (start += size)));
  },
  sqrt: unary(Math.sqrt),
  squeeze: reshape,
  sub: (x, y, alpha = 1) => elementwise((a, b) => a - alpha * b, x, y),
  sum: (x, dims, keep) => reduce(sum, x, dims, keep),
  tanh: unary(Math.tanh),
  to_copy(x) {
    if (this.kind === "f") return x;
    return elementwise(this.kind === "b" ? (a) => a !== 0 : Math.trunc, x);
  },
  trunc: unary(Math.trunc),
  unsqueeze: reshape,
  upsample_nearest2d: upsampleNearest,
  var_mean: (x, dims, correction, keep) => [
    reduce((row) => variance(row, correction ?? 1), x, dims, keep),
    reduce(mean, x, dims, keep),
  ],
  view: reshape,
  where: (mask, x, y) => elementwise((a, b, c) => (a ? b : c), mask, x, y),

  binomial(count, probability) {
    return elementwise((n, p) => this.random.binomial(n, p), count, probability);
  },
  multinomial,
  normal(centre, scale = 1) {
    return elementwise((m, s) => m + s * this.random.normal(), centre, scale);
  },
  normal_functional(_, centre = 0, scale = 1) {
    return fill(this, () => centre + scale * this.random.normal());
  },
  poisson(rate) {
    return elementwise((a) => this.random.poisson(a), rate);
  },
  rand() {
    return fill(this, () => this.random.uniform());
  },
  randn() {
    return fill(this, () => this.random.normal());
  },
  sample_dirichlet: dirichlet,
  standard_gamma(alpha) {
    return elementwise((a) => this.random.gamma(a), alpha);
  },
  uniform(_, low = 0, high = 1) {
    return fill(this, () => low + (high - low) * this.random.uniform());
  },
};

/** A tensor of the pool of a page: `place` has the offset of its numbers, and its shape. */
function takeTensor(numbers, place) {
  return { shape: place.shape, data: numbers.subarray(place.offset, place.offset + sizeOf(place.shape)) };
}

/** A function of tensors, whose last node is the result. */
class Graph {
  /**
   * @param nodes - the nodes of make_graph.
   * @param numbers - the Float32Array of the constants.
   */
  constructor(nodes, numbers) {
    this.nodes = nodes;
    this.constants = nodes.map((node) => (node.op === "constant" ? takeTensor(numbers, node) : null));
  }

  /**
   * @param inputs - the arguments, tensors.
   * @param seed - the seed of random operations.
   */
  run(inputs, seed = 0) {
    const random = new Random(seed);
    const values = [];
    const resolve = (argument) => {
      if (Array.isArray(argument)) return argument.map(resolve);
      if (argument === null || typeof argument !== "object") return argument ?? undefined;
      if ("number" in argument) return { inf: Infinity, "-inf": -Infinity }[argument.number] ?? NaN;
      return values[argument.node];
    };
    this.nodes.forEach((node, i) => {
      if (node.op === "constant") values.push(this.constants[i]);
      else if (node.op === "input") values.push(inputs[i]);
      else {
        const context = { shape: node.shape, kind: node.kind, random };
        values.push(OPERATIONS[node.op].apply(context, node.args.map(resolve)));
      }
    });
    return values.at(-1);
  }
}
