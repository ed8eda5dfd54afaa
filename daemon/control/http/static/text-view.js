/**
 * Text that grows quickly, in the page: pieces are gathered and appended once a frame, as text and never as markup.
 *
 * A paragraph is laid out anew as a whole whenever it grows, so text is kept in blocks of a few thousand characters, of
 * which only the last one grows. Blocks beyond CHARACTERS_SHOWN_MAX leave the page at the top.
 */

const BLOCK_CHARACTERS = 2000; // from here on a block ends at the next line break
const BLOCK_CHARACTERS_MAX = 6000; // or, where there is none, at the next space, or here
export const CHARACTERS_SHOWN_MAX = 200_000;
export const CHARACTERS_KEPT_MAX = 2_000_000;

export class TextView {
  text = ""; // the first CHARACTERS_KEPT_MAX characters
  length = 0; // of everything
  #element;
  #onPaint;
  #pending = "";
  #frame = 0;
  #blocks = []; // text nodes, each the only child of its block
  #hiddenCharacters = 0;
  #note = null;

  /** Shows below `element`; `onPaint` is called after each change, in the same frame. */
  constructor(element, onPaint = () => undefined) {
    this.#element = element;
    this.#onPaint = onPaint;
  }

  get isWhole() {
    return this.length <= CHARACTERS_KEPT_MAX;
  }

  append(text) {
    this.length += text.length;
    if (this.text.length < CHARACTERS_KEPT_MAX) {
      this.text += text.slice(0, CHARACTERS_KEPT_MAX - this.text.length);
    }
    this.#pending += text;
    if (this.#pending.length > 2 * CHARACTERS_SHOWN_MAX) {
      // No frame has come for long, as in a hidden tab: what would leave the page at once need not enter it.
      this.#hiddenCharacters += this.#pending.length - CHARACTERS_SHOWN_MAX;
      this.#pending = this.#pending.slice(-CHARACTERS_SHOWN_MAX);
    }
    if (this.#frame === 0) {
      this.#frame = requestAnimationFrame(() => this.flush());
    }
  }

  /** Shows what has come, now. */
  flush() {
    cancelAnimationFrame(this.#frame);
    this.#frame = 0;
    if (this.#pending === "") {
      return;
    }
    let rest = this.#pending;
    this.#pending = "";
    while (rest !== "") {
      const last = this.#openBlock();
      const end = endOfBlock(rest, last.length);
      last.appendData(rest.slice(0, end.taken));
      rest = rest.slice(end.taken);
      if (end.isFull) {
        this.#blocks.push(null);
      }
    }
    this.#dropOld();
    this.#onPaint();
  }

  #openBlock() {
    let last = this.#blocks.at(-1);
    if (last) {
      return last;
    }
    const block = document.createElement("div");
    block.className = "text-block";
    last = document.createTextNode("");
    block.append(last);
    this.#element.append(block);
    if (this.#blocks.length > 0) {
      this.#blocks.pop(); // the mark that the one before is full
    }
    this.#blocks.push(last);
    return last;
  }

  #dropOld() {
    let shown = this.#blocks.reduce((sum, node) => sum + (node?.length ?? 0), 0);
    while (shown > CHARACTERS_SHOWN_MAX && this.#blocks.length > 1) {
      const node = this.#blocks.shift();
      shown -= node.length;
      this.#hiddenCharacters += node.length;
      node.parentElement.remove();
    }
    if (this.#hiddenCharacters > 0) {
      if (this.#note === null) {
        this.#note = document.createElement("p");
        this.#note.className = "quiet";
        this.#element.prepend(this.#note);
      }
      this.#note.textContent = `The first ${this.#hiddenCharacters.toLocaleString("en-GB")} characters are not shown.`;
    }
  }
}

/** How much of `text` belongs to a block that has `length` characters, and whether the block is full then. */
function endOfBlock(text, length) {
  const lineBreak = text.indexOf("\n", Math.max(0, BLOCK_CHARACTERS - length));
  if (lineBreak !== -1 && length + lineBreak < BLOCK_CHARACTERS_MAX) {
    return { taken: lineBreak + 1, isFull: true };
  }
  if (length + text.length < BLOCK_CHARACTERS_MAX) {
    return { taken: text.length, isFull: false };
  }
  const space = text.indexOf(" ", Math.max(0, BLOCK_CHARACTERS_MAX - length - 200));
  const taken = space !== -1 && length + space < BLOCK_CHARACTERS_MAX ? space + 1 : BLOCK_CHARACTERS_MAX - length;
  return { taken: beforeLowSurrogate(text, Math.max(1, taken)), isFull: true };
}

/** Both halves of a character beyond the first 65,536 stay in one block. */
function beforeLowSurrogate(text, index) {
  const unit = text.charCodeAt(index);
  return unit >= 0xdc00 && unit < 0xe000 ? index + 1 : index;
}
