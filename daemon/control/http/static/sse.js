/**
 * Server-sent events out of text that is cut anywhere (WHATWG HTML, "Server-sent events", 9.2.6).
 *
 * A stream is read with fetch and not with EventSource, because a question is a POST and an EventSource asks again, and
 * pays again, after every end.
 */

/** Characters of one event; a server that sends more is broken, and the page must not grow with it. */
export const EVENT_CHARACTERS_MAX = 8 * 1024 * 1024;

export class EventParser {
  #onEvent;
  #line = ""; // of the line that has not ended yet
  #data = null; // of the event that has not ended yet; null: it has none
  #type = "";
  #skipLineFeed = false; // the text so far ended in CR: a LF would be the same line's end

  /** `onEvent(type, data)` is called for each event, in order. */
  constructor(onEvent) {
    this.#onEvent = onEvent;
  }

  /** Takes the next piece of text. Throws RangeError for an event beyond EVENT_CHARACTERS_MAX. */
  push(text) {
    let start = 0;
    if (this.#skipLineFeed && text !== "") {
      start = text.startsWith("\n") ? 1 : 0;
      this.#skipLineFeed = false;
    }
    // Each is looked for only when the last one found has been passed: the whole text is searched once for each.
    let lineFeed = text.indexOf("\n", start);
    let carriageReturn = text.indexOf("\r", start);
    while (lineFeed !== -1 || carriageReturn !== -1) {
      const endsInReturn = carriageReturn !== -1 && (lineFeed === -1 || carriageReturn < lineFeed);
      const end = endsInReturn ? carriageReturn : lineFeed;
      this.#takeLine(this.#line + text.slice(start, end));
      this.#line = "";
      start = end + 1;
      if (endsInReturn) {
        if (start === text.length) {
          this.#skipLineFeed = true;
        } else if (lineFeed === start) {
          start += 1;
        }
        carriageReturn = text.indexOf("\r", start);
      }
      if (lineFeed !== -1 && lineFeed < start) {
        lineFeed = text.indexOf("\n", start);
      }
    }
    this.#line += text.slice(start);
    if (this.#line.length + (this.#data?.length ?? 0) > EVENT_CHARACTERS_MAX) {
      throw new RangeError(`an event of more than ${EVENT_CHARACTERS_MAX} characters`);
    }
  }

  #takeLine(line) {
    if (line === "") {
      if (this.#data !== null) {
        const type = this.#type || "message";
        const data = this.#data;
        this.#data = null;
        this.#type = "";
        this.#onEvent(type, data);
      }
      this.#type = "";
      return;
    }
    const colon = line.indexOf(":");
    if (colon === 0) {
      return; // a comment, such as a keep-alive
    }
    const name = colon === -1 ? line : line.slice(0, colon);
    const value = colon === -1 ? "" : line.slice(line[colon + 1] === " " ? colon + 2 : colon + 1);
    if (name === "data") {
      this.#data = this.#data === null ? value : `${this.#data}\n${value}`;
    } else if (name === "event") {
      this.#type = value;
    }
  }
}
