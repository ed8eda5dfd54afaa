/** The last minute of a number as a line, in SVG. The number itself stands beside it as text. */

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 240;
const HEIGHT = 48;
const INSET = 2;
export const POINTS_MAX = 60;

export class Sparkline {
  #svg;
  #lines;
  #series;
  #name;
  #format;

  /** Below `parent`; `names` are those of its lines, `format` writes a value for people. */
  constructor(parent, name, names, format) {
    this.#name = name;
    this.#format = format;
    this.#series = names.map((each) => ({ name: each, values: [] }));
    this.#svg = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", class: "sparkline" });
    this.#lines = names.map((_, index) => {
      const area = make("path", { class: `area area-${index}` });
      const line = make("path", { class: `line line-${index}`, "vector-effect": "non-scaling-stroke" });
      this.#svg.append(area, line);
      return { area, line };
    });
    parent.append(this.#svg);
    this.#draw();
  }

  /** Adds a value for each line; NaN leaves a gap. */
  add(...values) {
    this.#series.forEach((series, index) => {
      series.values.push(values[index]);
      series.values.splice(0, series.values.length - POINTS_MAX);
    });
    this.#draw();
  }

  #draw() {
    const known = this.#series.flatMap(({ values }) => values.filter(Number.isFinite));
    const highest = Math.max(...known, 0) || 1;
    this.#series.forEach(({ values }, index) => {
      const runs = runsOf(values, highest);
      this.#lines[index].line.setAttribute("d", runs.map(pathOf).join(""));
      this.#lines[index].area.setAttribute("d", runs.map(areaOf).join(""));
    });
    const parts = this.#series.map(({ name, values }) => sentenceOf(name, values.filter(Number.isFinite), this.#format));
    this.#svg.setAttribute("aria-label", `${this.#name}, last minute: ${parts.join("; ")}`);
  }
}

function sentenceOf(name, values, format) {
  const label = name === "" ? "" : `${name} `;
  return values.length === 0
    ? `${label}no values yet`
    : `${label}between ${format(Math.min(...values))} and ${format(Math.max(...values))}`;
}

/** Points of the picture, in runs without a gap; the newest is at the right. */
function runsOf(values, highest) {
  const runs = [];
  let run = null;
  values.forEach((value, index) => {
    if (!Number.isFinite(value)) {
      run = null;
      return;
    }
    if (run === null) {
      run = [];
      runs.push(run);
    }
    const x = WIDTH - ((values.length - 1 - index) * WIDTH) / (POINTS_MAX - 1);
    run.push([x, HEIGHT - INSET - (value / highest) * (HEIGHT - 2 * INSET)]);
  });
  return runs;
}

function pathOf(run) {
  // A value between two gaps is a dot: a line of no length, which its round caps make visible.
  const points = run.length === 1 ? [run[0], run[0]] : run;
  return points.map(([x, y], index) => `${index === 0 ? "M" : "L"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
}

function areaOf(run) {
  return `${pathOf(run)}L${run.at(-1)[0].toFixed(1)} ${HEIGHT}L${run[0][0].toFixed(1)} ${HEIGHT}Z`;
}

function make(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) {
    element.setAttribute(name, value);
  }
  return element;
}
