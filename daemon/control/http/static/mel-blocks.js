/** The binary form of mel features (docs/backends.md), cut anywhere. */

const HEADER_BYTES = 16;
const MAGIC = 0x314c454d; // "MEL1", little-endian
const FRAMES = 0;
const END = 1;
const ERROR = 2;
const NUMBER_BYTES = [4, 2]; // float32, float16
const CONTENT_BYTES_MAX = 16 * 1024 * 1024;

/** What came is no such block, or is the server's own error. */
export class MelError extends Error {}

export class BlockParser {
  hasEnded = false;
  frameCount = 0;
  #onFrames;
  #rest = new Uint8Array(0);

  /** `onFrames(values, bins)` gets a Float32Array of whole frames, one after the other. */
  constructor(onFrames) {
    this.#onFrames = onFrames;
  }

  /** Takes the next bytes. Throws MelError. */
  push(bytes) {
    let data = bytes;
    if (this.#rest.length > 0) {
      data = new Uint8Array(this.#rest.length + bytes.length);
      data.set(this.#rest);
      data.set(bytes, this.#rest.length);
    }
    let start = 0;
    while (data.length - start >= HEADER_BYTES) {
      const header = headerOf(data, start);
      const end = start + HEADER_BYTES + header.contentBytes;
      if (end > data.length) {
        break;
      }
      this.#take(header, data.subarray(start + HEADER_BYTES, end));
      start = end;
    }
    this.#rest = data.slice(start);
  }

  #take({ kind, numberBytes, bins, first, count }, content) {
    if (this.hasEnded) {
      throw new MelError("something follows the end of the features");
    }
    if (kind === ERROR) {
      throw new MelError(new TextDecoder().decode(content));
    }
    if (first !== this.frameCount % 2 ** 32) {
      throw new MelError(`frame ${first} came where frame ${this.frameCount} was next`);
    }
    if (kind === END) {
      this.hasEnded = true;
      return;
    }
    this.frameCount += count;
    this.#onFrames(numberBytes === 4 ? floats(content) : halves(content), bins);
  }
}

function headerOf(data, start) {
  const view = new DataView(data.buffer, data.byteOffset + start, HEADER_BYTES);
  const kind = view.getUint8(5);
  const numberBytes = NUMBER_BYTES[view.getUint8(4)];
  if (view.getUint32(0, true) !== MAGIC || kind > ERROR || numberBytes === undefined) {
    throw new MelError("the answer is not in the form of binary blocks");
  }
  const bins = view.getUint16(6, true);
  const count = view.getUint32(12, true);
  const contentBytes = [count * bins * numberBytes, 0, count][kind];
  if (contentBytes > CONTENT_BYTES_MAX) {
    throw new MelError(`a block of ${contentBytes} bytes`);
  }
  return { kind, numberBytes, bins, first: view.getUint32(8, true), count, contentBytes };
}

/** Little-endian float32, which may lie at any address. */
function floats(content) {
  const view = new DataView(content.buffer, content.byteOffset, content.byteLength);
  return Float32Array.from({ length: content.byteLength / 4 }, (_, index) => view.getFloat32(4 * index, true));
}

let halfValues = null;

/** Little-endian float16, by a table of all 65,536 of them. */
function halves(content) {
  halfValues ??= Float32Array.from({ length: 65536 }, (_, bits) => halfOf(bits));
  const values = new Float32Array(content.byteLength / 2);
  for (let index = 0; index < values.length; index += 1) {
    values[index] = halfValues[content[2 * index] | (content[2 * index + 1] << 8)];
  }
  return values;
}

/** IEEE 754: a sign, five bits of exponent, ten of fraction. */
function halfOf(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const exponent = (bits >> 10) & 0x1f;
  const fraction = bits & 0x3ff;
  if (exponent === 0) {
    return sign * fraction * 2 ** -24;
  }
  if (exponent === 0x1f) {
    return fraction === 0 ? sign * Infinity : NaN;
  }
  return sign * (1024 + fraction) * 2 ** (exponent - 25);
}
