/** One stream of mel features: audio goes out, frames come in, both are timed. Nothing here knows the page. */

import { BodyCut, readBody, request, settleKey } from "./api.js";
import { AudioSocket } from "./audio-socket.js";
import { BlockParser, MelError } from "./mel-blocks.js";
import { Microphone, MicrophoneError } from "./microphone.js";
import { FRAME_SECONDS } from "./spectrogram.js";
import { lookAtWav } from "./wav.js";

/**
 * A file of more bytes goes through the WebSocket. Over HTTP/1.1 browsers read an answer only when all of the request is
 * sent, and the server takes no more audio while nobody reads its features: with more than what the sockets between hold,
 * each would wait for the other.
 */
export const BODY_BYTES_MAX = 256 * 1024;
const PIECE_BYTES = 64 * 1024;
const DECODED_FILE_BYTES_MAX = 64 * 1024 * 1024; // a browser decodes a whole file at once
const DECODED_RATE_HZ = 16_000;
const END_TIMEOUT_MS = 10_000;
const MICROPHONE_WAITING_BYTES_MAX = 1 << 20; // about ten seconds

const CUT = "The features were cut short: the connection ended before the server said that they were complete.";

export class MelSession {
  startedAt = NaN;
  firstFrameAt = NaN;
  endedAt = NaN;
  audioSeconds = NaN; // of the file; of the microphone, so far
  sentBytes = 0;
  receivedBytes = 0;
  isLive = false;
  #options;
  #parser;
  #stopMicrophone = () => undefined;

  /** `options` are bins and normalisation; `onFrames(values, bins)` gets frames as they come. */
  constructor(options, onFrames) {
    this.#options = options;
    this.#parser = new BlockParser((values, bins) => {
      if (Number.isNaN(this.firstFrameAt)) {
        this.firstFrameAt = performance.now();
      }
      onFrames(values, bins);
    });
  }

  get frameCount() {
    return this.#parser.frameCount;
  }

  get elapsedMs() {
    return (Number.isNaN(this.endedAt) ? performance.now() : this.endedAt) - this.startedAt;
  }

  get firstFrameMs() {
    return this.firstFrameAt - this.startedAt;
  }

  /** Seconds of audio that there are frames for, by the seconds they took. */
  get timesRealTime() {
    return (this.frameCount * FRAME_SECONDS * 1000) / this.elapsedMs;
  }

  /**
   * Sends a file, and resolves when all its frames are there. Rejects with ApiError, MelError, or the signal's AbortError.
   */
  async sendFile(file, signal) {
    const { body, sample } = await prepared(file);
    this.audioSeconds = sample.seconds;
    signal.throwIfAborted();
    try {
      if (body.size <= BODY_BYTES_MAX) {
        this.startedAt = performance.now();
        await this.#post(body, sample, signal);
      } else {
        await settleKey();
        signal.throwIfAborted();
        this.startedAt = performance.now();
        await this.#sendOverSocket(body, sample, signal);
      }
      if (!this.#parser.hasEnded) {
        throw new MelError(CUT);
      }
    } finally {
      this.endedAt = performance.now();
    }
  }

  async #post(body, { format, rate, contentType }, signal) {
    const query = new URLSearchParams({ format: "binary", dtype: "float16", sample_format: format, ...this.#options });
    if (rate) {
      query.set("sample_rate", rate);
      query.set("channels", 1);
    }
    this.sentBytes = body.size;
    const headers = { "Content-Type": contentType };
    const response = await request(`audio/stream?${query}`, { method: "POST", headers, body, signal });
    try {
      await readBody(response, (bytes) => this.#take(bytes));
    } catch (problem) {
      throw problem instanceof BodyCut ? new MelError(CUT) : problem;
    }
  }

  #take(bytes) {
    this.receivedBytes += bytes.length;
    this.#parser.push(bytes);
  }

  async #sendOverSocket(body, { format, rate }, signal) {
    const socket = new AudioSocket((bytes) => this.#take(bytes));
    const abort = () => socket.close();
    signal.addEventListener("abort", abort);
    try {
      await socket.open({ format, dtype: "float16", ...(rate && { sample_rate: rate, channels: 1 }), ...this.#options });
      for (let start = 0; start < body.size && socket.isOpen; start += PIECE_BYTES) {
        const piece = await body.slice(start, start + PIECE_BYTES).arrayBuffer();
        await socket.send(piece);
        this.sentBytes += piece.byteLength;
      }
      socket.end();
      await socket.over;
      signal.throwIfAborted();
    } catch (problem) {
      signal.throwIfAborted(); // whatever else ended with it
      throw problem;
    } finally {
      signal.removeEventListener("abort", abort);
      socket.close();
    }
  }

  /** Sends what the microphone hears until `stop()`, and resolves when all frames are there. Rejects as `sendFile`. */
  async sendMicrophone() {
    const microphone = new Microphone();
    const socket = new AudioSocket((bytes) => this.#take(bytes));
    const waiting = []; // what was heard before the server was ready for it
    let isReady = false;
    this.isLive = true;
    this.audioSeconds = 0;
    const stopped = new Promise((resolve) => {
      this.#stopMicrophone = resolve;
    });
    try {
      await settleKey();
      let rate = 0;
      rate = await microphone.open((buffer) => {
        if (rate === 0) {
          return;
        }
        this.audioSeconds += buffer.byteLength / 2 / rate;
        this.sentBytes += buffer.byteLength;
        if (isReady) {
          socket.send(buffer);
        } else {
          waiting.push(buffer);
        }
        if (socket.waitingBytes > MICROPHONE_WAITING_BYTES_MAX || waiting.length > 500) {
          this.#stopMicrophone(new MicrophoneError("The connection is too slow for this microphone."));
        }
      });
      this.startedAt = performance.now();
      await socket.open({ format: "s16le", dtype: "float16", sample_rate: rate, channels: 1, ...this.#options });
      waiting.splice(0).forEach((buffer) => socket.send(buffer));
      isReady = true;
      const problem = await Promise.race([stopped, socket.over]);
      microphone.close();
      if (problem instanceof Error) {
        throw problem;
      }
      socket.end();
      await Promise.race([socket.over, new Promise((resolve) => setTimeout(resolve, END_TIMEOUT_MS))]);
      if (!this.#parser.hasEnded) {
        throw new MelError(CUT);
      }
    } finally {
      this.endedAt = performance.now();
      microphone.close();
      socket.close();
    }
  }

  /** Ends the microphone; the frames of what was heard still come. */
  stop() {
    this.#stopMicrophone();
  }
}

/** What is sent for a file, and what is to be said of it. Rejects with MelError. */
async function prepared(file) {
  const head = await lookAtWav(file);
  if (head !== null) {
    return { body: file, sample: { format: "wav", contentType: "audio/wav", seconds: head.seconds } };
  }
  if (file.size > DECODED_FILE_BYTES_MAX) {
    throw new MelError("Only WAV may be this large: any other file is decoded by the browser, as a whole.");
  }
  let audio;
  try {
    const context = new OfflineAudioContext(1, 1, DECODED_RATE_HZ);
    audio = await context.decodeAudioData(await file.arrayBuffer());
  } catch (problem) {
    throw new MelError(`${file.name} is no WAV, and this browser cannot decode it (${problem.name}).`);
  }
  const mixed = new Float32Array(audio.length);
  for (let channel = 0; channel < audio.numberOfChannels; channel += 1) {
    audio.getChannelData(channel).forEach((value, index) => {
      mixed[index] += value / audio.numberOfChannels;
    });
  }
  const sample = { format: "f32le", rate: DECODED_RATE_HZ, contentType: "audio/pcm", seconds: audio.duration };
  return { body: new Blob([mixed]), sample };
}
