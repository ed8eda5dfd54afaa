/** The WebSocket /audio/ws: audio goes up in binary messages while features come down in others. */

import { ApiError, key, messageOf, request } from "./api.js";
import { MelError } from "./mel-blocks.js";

const WAITING_BYTES_MAX = 1 << 20; // sent by the page, not yet by the browser
const POLL_MS = 10;
/** What a browser can send with a WebSocket instead of a header: the names of protocols, one of which is the key. */
const PROTOCOL = "streaming-daemon";
const KEY_PREFIX = "bearer.";

export class AudioSocket {
  #socket = null;
  #onBytes;
  #settle = {};

  /** `onBytes(Uint8Array)` gets each binary message; what it throws ends the connection, and `over` rejects with it. */
  constructor(onBytes) {
    this.#onBytes = onBytes;
    /** Resolves when the connection has ended, rejects with MelError or ApiError. Whether it was whole the blocks say. */
    this.over = new Promise((resolve, reject) => {
      this.#settle = { resolve, reject };
    });
    this.over.catch(() => undefined); // it may end before somebody waits for it
  }

  /** Connects and says what follows. Rejects with ApiError where the server does not want it. */
  async open(parameters) {
    const address = new URL("audio/ws", document.baseURI);
    address.protocol = address.protocol.replace("http", "ws");
    for (;;) {
      const secret = key();
      this.#socket = new WebSocket(address, protocolsFor(secret));
      if (await opens(this.#socket)) {
        break;
      }
      const refusal = await refusalOf();
      if (key() === secret) {
        this.#settle.reject(refusal);
        throw refusal;
      } // otherwise it was the key that was missing, and now there is another
    }
    const socket = this.#socket;
    socket.binaryType = "arraybuffer";
    socket.onmessage = ({ data }) => this.#take(data);
    socket.onclose = ({ reason }) => {
      this.closeReason = reason;
      this.#settle.resolve();
    };
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
        throw new MelError(messageOf(data));
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

/** Why a WebSocket was refused. Browsers do not say; the same place without one does. */
async function refusalOf() {
  try {
    await request("audio/stream?format=binary", { method: "POST", body: new Blob([]) });
  } catch (problem) {
    if (problem instanceof ApiError && problem.status !== 400) {
      return problem;
    }
  }
  return new ApiError(0, "The server did not accept a WebSocket.");
}
