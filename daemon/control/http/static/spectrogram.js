/**
 * Mel frames as a picture: time to the right, pitch upwards, brighter is louder.
 *
 * Memory is bounded. A picture of everything halves itself when it is full: two columns become one, their mean, and each
 * column then stands for twice as many frames. A picture of the latest forgets its oldest column instead.
 */

import { COLOURS, COLOUR_COUNT } from "./colours.js";

export const COLUMNS_MAX = 1200;
export const FRAME_SECONDS = 0.01;
const MARGIN = { left: 56, right: 12, top: 12, bottom: 28 };
const TICKS_HZ = [0, 250, 500, 1000, 2000, 4000, 8000];
const HIGHEST_MEL = melOf(8000);

/** Slaney's scale: 3 mels for 200 Hz up to 1 kHz, then 27 for a factor of 6.4. */
export function melOf(hz) {
  return hz < 1000 ? (3 * hz) / 200 : 15 + (27 * Math.log(hz / 1000)) / Math.log(6.4);
}

export class Spectrogram {
  frameCount = 0;
  #canvas;
  #picture = document.createElement("canvas"); // a pixel for each column and bin
  #columns = null; // Float32Array, column by column
  #columnCount = 0;
  #isLatest = false;
  #framesPerColumn = 1;
  #partial = null; // the column that has not all of its frames
  #partialFrames = 0;
  #bins = 0;
  #span = 8;
  #loudest = -Infinity;
  #paintedTo = 0; // columns of the picture that are as they should be
  #frame = 0;

  constructor(canvas) {
    this.#canvas = canvas;
    new ResizeObserver(() => this.#askForPaint()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.#askForPaint());
    this.reset({});
  }

  /**
   * An empty picture. `latest`: of the last columns only. `span`: how far below the loudest value black is, in the unit of
   * the values.
   */
  reset({ latest = false, span = 8 }) {
    this.frameCount = 0;
    this.#columns = null;
    this.#columnCount = 0;
    this.#isLatest = latest;
    this.#span = span;
    this.#framesPerColumn = 1;
    this.#partialFrames = 0;
    this.#bins = 0;
    this.#loudest = -Infinity;
    this.#paintedTo = 0;
    this.#askForPaint();
  }

  /** Adds whole frames, a Float32Array. */
  add(values, bins) {
    if (this.#columns === null) {
      this.#bins = bins;
      this.#columns = new Float32Array(COLUMNS_MAX * bins);
      this.#partial = new Float32Array(bins);
      this.#picture.width = COLUMNS_MAX;
      this.#picture.height = bins;
    }
    let loudest = this.#loudest;
    for (let start = 0; start < values.length; start += bins) {
      for (let bin = 0; bin < bins; bin += 1) {
        const value = values[start + bin];
        this.#partial[bin] = this.#partialFrames === 0 ? value : this.#partial[bin] + value;
        loudest = value > loudest ? value : loudest;
      }
      this.#partialFrames += 1;
      this.frameCount += 1;
      if (this.#partialFrames === this.#framesPerColumn) {
        this.#endColumn();
      }
    }
    // Below a hundredth of the span no eye sees the difference, and the whole picture would be painted anew.
    if (loudest > this.#loudest + this.#span / 100) {
      this.#loudest = loudest;
      this.#paintedTo = 0;
    }
    this.#askForPaint();
  }

  #endColumn() {
    if (this.#columnCount === COLUMNS_MAX) {
      this.#makeRoom();
    }
    const start = this.#columnCount * this.#bins;
    for (let bin = 0; bin < this.#bins; bin += 1) {
      this.#columns[start + bin] = this.#partial[bin] / this.#partialFrames;
    }
    this.#columnCount += 1;
    this.#partialFrames = 0;
  }

  #makeRoom() {
    this.#paintedTo = 0;
    if (this.#isLatest) {
      // A tenth at once, so that not every column moves all others.
      const gone = COLUMNS_MAX / 10;
      this.#columns.copyWithin(0, gone * this.#bins);
      this.#columnCount -= gone;
      return;
    }
    const columns = this.#columns;
    this.#columnCount = COLUMNS_MAX / 2;
    for (let column = 0; column < this.#columnCount; column += 1) {
      for (let bin = 0; bin < this.#bins; bin += 1) {
        const left = 2 * column * this.#bins + bin;
        columns[column * this.#bins + bin] = (columns[left] + columns[left + this.#bins]) / 2;
      }
    }
    this.#framesPerColumn *= 2;
  }

  #askForPaint() {
    if (this.#frame === 0) {
      this.#frame = requestAnimationFrame(() => {
        this.#frame = 0;
        this.#paint();
      });
    }
  }

  /** Seconds that the picture's width stands for. */
  get secondsShown() {
    // A short clip fills a part of the picture first, so that the first second is no smear.
    const columns = this.#isLatest ? COLUMNS_MAX : Math.max(this.#columnCount, 200);
    return columns * this.#framesPerColumn * FRAME_SECONDS;
  }

  #paintColumns() {
    const width = this.#columnCount - this.#paintedTo;
    if (width <= 0) {
      return;
    }
    const context = this.#picture.getContext("2d");
    const image = context.createImageData(width, this.#bins);
    const pixels = new Uint32Array(image.data.buffer);
    const colours = new Uint32Array(COLOURS.buffer);
    const lowest = this.#loudest - this.#span;
    const scale = (COLOUR_COUNT - 1) / this.#span;
    for (let column = 0; column < width; column += 1) {
      const start = (this.#paintedTo + column) * this.#bins;
      for (let bin = 0; bin < this.#bins; bin += 1) {
        const level = (this.#columns[start + bin] - lowest) * scale;
        const colour = level > 0 ? Math.min(COLOUR_COUNT - 1, Math.round(level)) : 0;
        pixels[(this.#bins - 1 - bin) * width + column] = colours[colour];
      }
    }
    context.putImageData(image, this.#paintedTo, 0);
    this.#paintedTo = this.#columnCount;
  }

  #paint() {
    const box = this.#canvas.getBoundingClientRect();
    if (box.width === 0) {
      return; // its tab is not shown
    }
    const ratio = devicePixelRatio;
    this.#canvas.width = Math.round(box.width * ratio);
    this.#canvas.height = Math.round(box.height * ratio);
    const context = this.#canvas.getContext("2d");
    context.scale(ratio, ratio);
    const width = box.width - MARGIN.left - MARGIN.right;
    const height = box.height - MARGIN.top - MARGIN.bottom;
    context.fillStyle = `rgb(${COLOURS[0]} ${COLOURS[1]} ${COLOURS[2]})`;
    context.fillRect(MARGIN.left, MARGIN.top, width, height);
    if (this.#columnCount > 0) {
      this.#paintColumns();
      const shownColumns = this.secondsShown / FRAME_SECONDS / this.#framesPerColumn;
      const drawn = (width * this.#columnCount) / shownColumns;
      context.drawImage(
        this.#picture, 0, 0, this.#columnCount, this.#bins, MARGIN.left, MARGIN.top, drawn, height,
      );
    }
    this.#paintAxes(context, width, height);
  }

  #paintAxes(context, width, height) {
    const style = getComputedStyle(this.#canvas);
    context.fillStyle = style.color;
    context.strokeStyle = style.color;
    context.font = `12px ${style.fontFamily}`;
    context.textBaseline = "middle";
    context.textAlign = "right";
    for (const hz of TICKS_HZ) {
      const y = MARGIN.top + height * (1 - melOf(hz) / HIGHEST_MEL);
      context.fillRect(MARGIN.left - 5, Math.round(y), 4, 1);
      context.fillText(hz < 1000 ? `${hz} Hz` : `${hz / 1000} kHz`, MARGIN.left - 9, y);
    }
    context.textBaseline = "top";
    context.textAlign = "center";
    const shown = this.secondsShown;
    const first = this.#isLatest
      ? Math.max(0, this.frameCount - this.#columnCount) * FRAME_SECONDS
      : 0;
    const step = tickStep(shown, Math.max(2, Math.floor(width / 80)));
    for (let tick = Math.ceil(first / step) * step; tick <= first + shown + 1e-9; tick += step) {
      const x = MARGIN.left + (width * (tick - first)) / shown;
      context.fillRect(Math.round(x), MARGIN.top + height + 1, 1, 4);
      context.fillText(timeLabel(tick, step), Math.min(x, MARGIN.left + width - 10), MARGIN.top + height + 9);
    }
  }
}

/** Seconds between two marks: 1, 2 or 5 times a power of ten, or what divides minutes and hours. */
export function tickStep(seconds, ticksMax) {
  const steps = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 18000, 36000];
  return steps.find((step) => seconds / step <= ticksMax) ?? 86400;
}

function timeLabel(seconds, step) {
  if (step < 1) {
    return `${seconds.toFixed(1)} s`;
  }
  if (seconds < 60) {
    return `${Math.round(seconds)} s`;
  }
  const whole = Math.round(seconds);
  const minutes = `${Math.floor(whole / 60) % 60}`.padStart(whole < 3600 ? 1 : 2, "0");
  const tail = `${minutes}:${`${whole % 60}`.padStart(2, "0")}`;
  return whole < 3600 ? tail : `${Math.floor(whole / 3600)}:${tail}`;
}
