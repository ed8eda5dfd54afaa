/** How long a WAV is, and how its samples are written, by its head. The server reads the samples; this is for progress. */

const HEAD_BYTES_MAX = 1 << 20; // as on the server: pictures and texts may stand before the samples

/**
 * What the head of a WAV says, from its first bytes (a Uint8Array): {channels, rate, bits, dataOffset, dataBytes}. null where
 * it is no WAV, or where these bytes do not reach its samples. `dataBytes` is null where the writer did not know.
 */
export function wavHead(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const name = (offset) => String.fromCharCode(...bytes.subarray(offset, offset + 4));
  if (bytes.length < 12 || !["RIFF", "RF64"].includes(name(0)) || name(8) !== "WAVE") {
    return null;
  }
  let layout = null;
  for (let offset = 12; offset + 8 <= bytes.length; ) {
    const size = view.getUint32(offset + 4, true);
    if (name(offset) === "fmt " && offset + 24 <= bytes.length) {
      layout = {
        channels: view.getUint16(offset + 10, true),
        rate: view.getUint32(offset + 12, true),
        bits: view.getUint16(offset + 22, true),
      };
    } else if (name(offset) === "data") {
      const isKnown = size !== 0 && size !== 0xffffffff;
      return layout && { ...layout, dataOffset: offset + 8, dataBytes: isKnown ? size : null };
    }
    offset += 8 + size + (size % 2);
  }
  return null;
}

/** The head of a file and the length of its audio in seconds (NaN where it does not say). null: no WAV. */
export async function lookAtWav(file) {
  const head = wavHead(new Uint8Array(await file.slice(0, HEAD_BYTES_MAX).arrayBuffer()));
  if (head === null) {
    return null;
  }
  const size = Math.min(head.dataBytes ?? Infinity, file.size - head.dataOffset);
  return { ...head, seconds: size / ((head.channels * head.bits) / 8) / head.rate };
}
