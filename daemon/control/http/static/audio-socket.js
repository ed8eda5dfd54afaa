/** The WebSocket /audio/ws: audio goes up in binary messages while features come down in others. */

import { ApiError, codeOf, key, messageOf } from "./api.js";

const WAITING_BYTES_MAX = 1 << 20; // sent by the page, not yet by the browser
const POLL_MS = 10;
/** What a browser can send with a WebSocket instead of a header: the names of protocols, one of which is the key. */
const PROTOCOL = "streaming-daemon";
const KEY_PREFIX = "bearer.";
const NOT_ACCEPTED = "The server did not accept a WebSocket. A proxy before it may have to be told to pass them on.";

export class AudioSocket {
  #socket = null;
  #onBytes;
  #settle = {};

  /** `onBytes(Uint8Array)` gets each binary message; what it throws ends the connection, and `over` rejects with it. */
  constructor(onBytes) {
    this.#onBytes = onBytes;
    /** Resolves when the connection has ended, rejects with ApiError or what `onBytes` threw. Whether it was whole the blocks say. */
    this.over = new Promise((resolve, reject) => {
      this.#settle = { resolve, reject };
    });
    this.over.catch(() => undefined); // it may end before somebody waits for it
  }

  /** Connects and says what follows; the key must be right already (`settleKey`). Rejects with ApiError where it fails. */
  async open(parameters) {
    const address = new URL("audio/ws", document.baseURI);
    address.protocol = address.protocol.replace("http", "ws");
    this.#socket = new WebSocket(address, protocolsFor(key()));
    if (!(await opens(this.#socket))) {
      const refusal = new ApiError(0, NOT_ACCEPTED); // browsers do not say why
      this.#settle.reject(refusal);
      throw refusal;
    }
    const socket = this.#socket;
    socket.binaryType = "arraybuffer";
    socket.onmessage = ({ data }) => this.#take(data);
    socket.onclose = () => this.#settle.resolve();
    socket.send(JSON.stringify(parameters));
  }

  #take(data) {
    try {
      if (typeof data !== "string") {
        this.#onBytes(new Uint8Array(data));
        return;
      }
      const message = JSON.parse(data);
      if (message.error) {
        throw new ApiError(0, messageOf(data), { code: codeOf(data) });
      }
    } catch (problem) {
      this.#settle.reject(problem);
      this.close();
    }
  }

  get isOpen() {
    return this.#socket?.readyState === WebSocket.OPEN;
  }

  /** Bytes that the browser has still to send. */
  get waitingBytes() {
    return this.#socket?.bufferedAmount ?? 0;
  }

  /** Sends a piece of audio, and promises when there is room for the next. After the connection's end it does nothing. */
  async send(bytes) {
    if (this.isOpen) {
      this.#socket.send(bytes);
    }
    while (this.isOpen && this.waitingBytes > WAITING_BYTES_MAX) {
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    }
  }

  /** Says that the audio ends here; the rest of the features follows. */
  end() {
    if (this.isOpen) {
      this.#socket.send(JSON.stringify({ type: "end" }));
    }
  }

  close() {
    this.#socket?.close();
  }
}

/** Promises whether the server takes it. */
function opens(socket) {
  return new Promise((resolve) => {
    socket.onopen = () => resolve(true);
    socket.onclose = () => resolve(false);
  });
}

/** None without a key; with one, its base64url, since a protocol's name may not hold all that a key may. */
function protocolsFor(secret) {
  if (secret === "") {
    return [];
  }
  const encoded = btoa(secret).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
  return [PROTOCOL, KEY_PREFIX + encoded];
}
