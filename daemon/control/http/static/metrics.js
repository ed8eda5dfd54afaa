/** Prometheus' text format, and what can be worked out from two readings of it. */

const SAMPLE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+([+-]?(?:Inf|NaN|[\d.]+(?:[eE][+-]?\d+)?))(?:\s+\S+)?$/;
const LABEL = /([a-zA-Z_]\w*)="((?:[^"\\]|\\.)*)"/g;
const ESCAPED = { n: "\n", '"': '"', "\\": "\\" };

/** Samples by name: a Map of arrays of {labels, value}. Lines that are no samples are passed over, as comments are. */
export function parseMetrics(text) {
  const metrics = new Map();
  for (const line of text.split("\n")) {
    const found = line.startsWith("#") ? null : SAMPLE.exec(line.trim());
    if (found === null) {
      continue;
    }
    const [, name, labelText, number] = found;
    const labels = {};
    for (const [, label, value] of (labelText ?? "").matchAll(LABEL)) {
      labels[label] = value.replace(/\\(.)/g, (_, letter) => ESCAPED[letter] ?? letter);
    }
    if (!metrics.has(name)) {
      metrics.set(name, []);
    }
    metrics.get(name).push({ labels, value: numberOf(number) });
  }
  return metrics;
}

function numberOf(text) {
  return { "+Inf": Infinity, "-Inf": -Infinity }[text] ?? Number(text);
}

/** The sum over all labels; NaN where there is no such metric. */
export function total(metrics, name) {
  const samples = metrics.get(name);
  return samples === undefined ? NaN : samples.reduce((sum, { value }) => sum + value, 0);
}

/** Values by one label, the others summed up: a Map. */
export function byLabel(metrics, name, label) {
  const sums = new Map();
  for (const { labels, value } of metrics.get(name) ?? []) {
    sums.set(labels[label] ?? "", (sums.get(labels[label] ?? "") ?? 0) + value);
  }
  return sums;
}

/** A histogram's cumulative counts by upper bound, all label sets summed up: [[bound, count], ...], rising. */
export function buckets(metrics, name) {
  const sums = new Map();
  for (const { labels, value } of metrics.get(`${name}_bucket`) ?? []) {
    const bound = numberOf(labels.le);
    sums.set(bound, (sums.get(bound) ?? 0) + value);
  }
  return [...sums].sort(([left], [right]) => left - right);
}

/** What was counted between two readings; a counter that fell began anew with its daemon. */
export function bucketsSince(earlier, later) {
  const before = new Map(earlier);
  const restarted = later.some(([bound, count]) => count < (before.get(bound) ?? 0));
  return later.map(([bound, count]) => [bound, restarted ? count : count - (before.get(bound) ?? 0)]);
}

/** How much a counter has grown. */
export function grown(earlier, later) {
  return later < earlier ? later : later - earlier;
}

/**
 * The value below which a part (0 to 1) of what was counted lies, evenly spread within its bucket, as Prometheus'
 * histogram_quantile has it; NaN where nothing was counted.
 */
export function quantile(part, cumulative) {
  const all = cumulative.at(-1)?.[1] ?? 0;
  if (!(all > 0)) {
    return NaN;
  }
  const rank = part * all;
  let lowerBound = 0;
  let lowerCount = 0;
  for (const [bound, count] of cumulative) {
    if (count >= rank && count > lowerCount) {
      return bound === Infinity ? lowerBound : lowerBound + ((bound - lowerBound) * (rank - lowerCount)) / (count - lowerCount);
    }
    lowerBound = bound === Infinity ? lowerBound : bound;
    lowerCount = count;
  }
  return lowerBound;
}
