/** One streamed answer of /v1/chat/completions: asked for, read, timed. Nothing here knows the page. */

import { ApiError, BodyCut, messageOf, readBody, request } from "./api.js";
import { EventParser } from "./sse.js";

/** How an answer ended. Only `complete` is a whole one. */
export const COMPLETE = "complete";
export const STOPPED = "stopped";
export const CUT = "cut";
export const FAILED = "failed";

export class Completion {
  outcome = null; // null while it runs
  problem = ""; // why it is not complete, in a sentence
  model = "";
  finishReason = null;
  usage = null;
  eventCount = 0; // events that said something
  askedAt = 0;
  firstTokenAt = null;
  lastTokenAt = null;
  #isDone = false;
  #handlers;

  /** `handlers` are `text(string)` and `reasoning(string)`, each called for every piece as it comes. */
  constructor(handlers) {
    this.#handlers = handlers;
  }

  /** Asks, and resolves when the answer has ended, however it did: `outcome` says. */
  async run(body, signal) {
    this.askedAt = performance.now();
    try {
      const response = await request("v1/chat/completions", {
        method: "POST",
        headers: { "Content-Type": "application/json", Accept: "text/event-stream" },
        body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
        signal,
      });
      const type = response.headers.get("Content-Type") ?? "";
      if (!type.startsWith("text/event-stream")) {
        throw new ApiError(response.status, `the server answered with ${type || "no type"} instead of a stream`);
      }
      await this.#read(response);
      if (this.outcome !== null) {
        return this; // by an error event
      }
      if (this.#isDone) {
        this.#end(COMPLETE, "");
      } else {
        this.#end(CUT, "The connection ended before the server said that the answer was complete.");
      }
    } catch (problem) {
      this.#endOf(problem);
    }
    return this;
  }

  async #read(response) {
    const parser = new EventParser((type, data) => this.#take(type, data));
    const decoder = new TextDecoder();
    await readBody(response, (bytes) => parser.push(decoder.decode(bytes, { stream: true })));
  }

  #endOf(problem) {
    if (this.outcome !== null) {
      return; // an error event, after which it does not matter how the connection ends
    }
    if (problem.name === "AbortError") {
      this.#end(STOPPED, "Stopped.");
    } else if (problem instanceof ApiError) {
      this.#end(FAILED, problem.sentence);
    } else if (this.#isDone) {
      this.#end(COMPLETE, "");
    } else if (problem instanceof SyntaxError || problem instanceof RangeError) {
      this.#end(FAILED, `The answer cannot be read: ${problem.message}.`);
    } else if (problem instanceof BodyCut) {
      this.#end(CUT, "The connection broke off before the answer was complete.");
    } else {
      throw problem;
    }
  }

  #end(outcome, problem) {
    this.outcome = outcome;
    this.problem = problem;
  }

  #take(type, data) {
    if (this.outcome !== null || this.#isDone) {
      return;
    }
    if (data === "[DONE]") {
      this.#isDone = true;
      return;
    }
    if (type === "error") {
      this.#end(FAILED, messageOf(data));
      return;
    }
    if (type !== "message") {
      return;
    }
    const chunk = JSON.parse(data);
    if (typeof chunk !== "object" || chunk === null) {
      throw new SyntaxError("an event is no JSON object");
    }
    if (chunk.error) {
      this.#end(FAILED, messageOf(data));
      return;
    }
    this.model = chunk.model || this.model;
    this.usage = chunk.usage ?? this.usage;
    const choice = chunk.choices?.[0];
    if (choice) {
      this.finishReason = choice.finish_reason ?? this.finishReason;
      this.#takeDelta(choice.delta ?? {});
    }
  }

  #takeDelta(delta) {
    const reasoning = textOf(delta.reasoning_content ?? delta.reasoning);
    const text = textOf(delta.content);
    if (text === "" && reasoning === "") {
      return; // the role, or the finish reason
    }
    this.lastTokenAt = performance.now();
    this.firstTokenAt ??= this.lastTokenAt;
    this.eventCount += 1;
    if (reasoning !== "") {
      this.#handlers.reasoning(reasoning);
    }
    if (text !== "") {
      this.#handlers.text(text);
    }
  }

  /** The server's own count where it gave one; otherwise the events, each of which is a token with most servers. */
  get tokenCount() {
    return this.usage?.completion_tokens ?? this.eventCount;
  }

  get firstTokenMs() {
    return this.firstTokenAt === null ? NaN : this.firstTokenAt - this.askedAt;
  }

  /** Tokens after the first, by the time since the first; NaN where that says nothing. */
  get tokensPerSecond() {
    const seconds = (this.lastTokenAt - this.firstTokenAt) / 1000;
    return this.eventCount > 1 && seconds > 0 ? (this.tokenCount - 1) / seconds : NaN;
  }
}

function textOf(value) {
  return typeof value === "string" ? value : "";
}
