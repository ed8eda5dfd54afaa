/** Requests to the daemon that served this page: its errors in words, and its key where it wants one. */

const KEY_NAME = "streaming-daemon-key";
/** Of an error's body: one that is no error of ours may be a whole page. */
const ERROR_CHARACTERS_MAX = 500;
/** Work of so many milliseconds is done at a stretch; then the page gets its turn to draw and to listen. */
const TURN_MS_MAX = 8;

/** An answer that is an error, or no answer. `status` is 0 where there was none. */
export class ApiError extends Error {
  constructor(status, message, { code = null, retryAfter = null } = {}) {
    super(message);
    this.name = "ApiError";
    this.status = status;
    this.code = code;
    this.retryAfter = retryAfter;
  }

  /** For people: the status first, since it is what documentation is searched for. */
  get sentence() {
    const wait = this.retryAfter === null ? "" : ` Try again in ${this.retryAfter} s.`;
    return (this.status === 0 ? this.message : `${this.status}: ${this.message}`) + wait;
  }
}

/** A body that did not come to its end. */
export class BodyCut extends Error {}

let keyAsker = null;

/** `ask()` is called after a 401; it promises true when there is another key to try. */
export function setKeyAsker(ask) {
  keyAsker = ask;
}

/** The key that requests carry; "" is none. It lives as long as this browser tab does. */
export function key() {
  return sessionStorage.getItem(KEY_NAME) ?? "";
}

export function setKey(value) {
  if (value === "") {
    sessionStorage.removeItem(KEY_NAME);
  } else {
    sessionStorage.setItem(KEY_NAME, value);
  }
}

/**
 * The response to a request, whose status is a success.
 *
 * Paths are relative to the page, which may lie below a prefix of a proxy. Rejects with ApiError, or with the signal's
 * AbortError. `asksForKey: false` is for requests that nobody waits for.
 */
export async function request(path, { asksForKey = true, headers = {}, ...options } = {}) {
  for (;;) {
    const secret = key();
    const authorization = secret === "" ? {} : { Authorization: `Bearer ${secret}` };
    let response;
    try {
      response = await fetch(path, { ...options, headers: { ...headers, ...authorization } });
    } catch (problem) {
      if (problem.name === "AbortError") {
        throw problem;
      }
      throw new ApiError(0, "The server cannot be reached.");
    }
    if (response.ok) {
      return response;
    }
    const error = await errorOf(response);
    if (response.status !== 401 || !asksForKey || keyAsker === null || !(await keyAsker(error))) {
      throw error;
    }
  }
}

/**
 * Resolves once the server takes this page's key, or wants none: for what cannot be asked for one itself, as a WebSocket.
 * Rejects as `request` does.
 */
export async function settleKey() {
  await request("v1/models");
}

/** What a response that is no success says. */
export async function errorOf(response) {
  let text = "";
  try {
    text = await response.text();
  } catch {
    return new ApiError(response.status, `${response.statusText || "an error"}, and its explanation was cut short`);
  }
  const retryAfter = response.headers.get("Retry-After");
  return new ApiError(response.status, messageOf(text) || response.statusText || "no explanation was given", {
    code: codeOf(text),
    retryAfter: /^\d+$/.test(retryAfter ?? "") ? retryAfter : null,
  });
}

function parsed(text) {
  try {
    const value = JSON.parse(text);
    return typeof value === "object" && value !== null ? value : {};
  } catch {
    return null;
  }
}

/** The message in OpenAI's envelope, in a problem of RFC 9457, or in FastAPI's form; otherwise the text itself. */
export function messageOf(text) {
  const value = parsed(text);
  if (value === null) {
    return text.trim().slice(0, ERROR_CHARACTERS_MAX);
  }
  const error = value.error ?? value;
  const message = typeof error === "string" ? error : (error.message ?? error.detail ?? error.title ?? error.reason);
  return (typeof message === "string" ? message : text).slice(0, ERROR_CHARACTERS_MAX);
}

/** The code in OpenAI's envelope, or null. */
export function codeOf(text) {
  return parsed(text)?.error?.code ?? null;
}

/**
 * Reads a body to its end: `take(bytes)` for each piece, a Uint8Array. Rejects with BodyCut, with the signal's AbortError,
 * or with what `take` throws.
 *
 * What has arrived already is read without the event loop's turn, so a fast stream would freeze the page: it is made to
 * wait in between.
 */
export async function readBody(response, take) {
  const reader = response.body.getReader();
  let turnBegan = performance.now();
  try {
    for (;;) {
      const { done, value } = await reader.read().catch((problem) => {
        throw problem.name === "AbortError" ? problem : new BodyCut(problem.message);
      });
      if (done) {
        return;
      }
      take(value);
      if (performance.now() - turnBegan > TURN_MS_MAX) {
        await nextTurn();
        turnBegan = performance.now();
      }
    }
  } finally {
    // A reader whose `take` threw still has a body to end; one that has ended does not mind.
    reader.cancel().catch(() => undefined);
  }
}

/** Resolves in a turn of its own. A timer would wait 4 ms each time, and 1 s in a hidden tab. */
export function nextTurn() {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => {
      port1.close();
      resolve();
    };
    port2.postMessage(null);
  });
}

/**
 * What `work()` promises, done in a page that the browser does not freeze meanwhile.
 *
 * Chromium freezes pages that nobody has seen for minutes, and what it was reading then stays stuck when the page goes on
 * (version 156). Its makers say that it leaves those alone that hold a lock. Only pages from https:// or localhost can.
 */
export function unfrozen(work) {
  return navigator.locks === undefined ? work() : navigator.locks.request("streaming", { mode: "shared" }, work);
}
