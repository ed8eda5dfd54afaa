/** The chat: a conversation that is kept in this page alone, one answer at a time. */

import { ApiError, request, unfrozen } from "./api.js";
import { COMPLETE, CUT, Completion, FAILED, STOPPED } from "./completion.js";
import { NOTHING, count, duration, plural } from "./format.js";
import { TextView } from "./text-view.js";

const NUMBERS_INTERVAL_MS = 200;
const EXCHANGES_MAX = 200; // of a conversation; the oldest leave
const NEAR_END_PIXELS = 48;

const byId = (id) => document.getElementById(id);
const log = byId("conversation");
const scroller = byId("chat-scroll");
const prompt = byId("prompt");
const send = byId("send");
const stop = byId("stop");
const modelChoice = byId("model");
const said = byId("chat-status");

let exchanges = []; // {question, view, completion, element, ...}
let running = null; // the exchange that is being answered

export function startChat() {
  byId("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    ask(prompt.value);
  });
  prompt.addEventListener("keydown", (event) => {
    // While letters are being composed (Japanese, Chinese, ...) Enter chooses among candidates.
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      ask(prompt.value);
    }
  });
  byId("panel-chat").addEventListener("keydown", (event) => {
    if (event.key === "Escape" && running !== null) {
      event.preventDefault();
      stopAnswer();
    }
  });
  prompt.addEventListener("input", fitPrompt);
  stop.addEventListener("click", stopAnswer);
  byId("new-chat").addEventListener("click", newChat);
  for (const example of document.querySelectorAll("#examples button")) {
    example.addEventListener("click", () => ask(example.textContent));
  }
  loadModels();
}

/** The models that the server offers; without them the field stays empty, and the server chooses. */
export async function loadModels() {
  const note = byId("model-note");
  try {
    const { data } = await (await request("v1/models")).json();
    modelChoice.replaceChildren(...data.map(({ id }) => new Option(id, id)));
    modelChoice.disabled = data.length === 0;
    note.textContent = data.length === 0 ? "The server offers no model." : "";
  } catch (problem) {
    if (!(problem instanceof ApiError) && !(problem instanceof SyntaxError) && !(problem instanceof TypeError)) {
      throw problem;
    }
    note.textContent = `No models: ${problem.sentence ?? "the list cannot be read."}`;
  }
  note.hidden = note.textContent === "";
}

function fitPrompt() {
  prompt.style.height = "auto";
  prompt.style.height = `${prompt.scrollHeight + 2}px`;
}

function announce(text) {
  said.textContent = text;
}

function stopAnswer() {
  running?.abort.abort();
}

function newChat() {
  stopAnswer();
  exchanges = [];
  log.replaceChildren();
  byId("welcome").hidden = false;
  announce("A new chat. The earlier one is gone from this page.");
  prompt.focus();
}

/** What is sent: every question that got an answer, whole or not, and this one. */
function messagesFor(question) {
  const messages = [];
  const system = byId("system").value.trim();
  if (system !== "") {
    messages.push({ role: "system", content: system });
  }
  for (const exchange of exchanges) {
    if (exchange.view.text !== "") {
      messages.push({ role: "user", content: exchange.question });
      messages.push({ role: "assistant", content: exchange.view.text });
    }
  }
  messages.push({ role: "user", content: question });
  return messages;
}

/** A field's number, or null where it is empty; the field says so where it is none that can be sent. */
function numberOf(field) {
  return field.value === "" ? null : field.valueAsNumber;
}

async function ask(text) {
  const question = text.trim();
  if (running !== null) {
    announce("An answer is still coming. Escape stops it.");
    return;
  }
  if (question === "") {
    prompt.focus();
    return;
  }
  for (const field of [byId("max-tokens"), byId("temperature")]) {
    if (!field.checkValidity()) {
      byId("options").open = true;
      field.reportValidity();
      return;
    }
  }
  const body = { messages: messagesFor(question) };
  for (const [name, value] of [
    ["model", modelChoice.value || null],
    ["max_tokens", numberOf(byId("max-tokens"))],
    ["temperature", numberOf(byId("temperature"))],
  ]) {
    if (value !== null) {
      body[name] = value;
    }
  }
  const exchange = addExchange(question);
  prompt.value = "";
  fitPrompt();
  await answer(exchange, body);
}

async function answer(exchange, body) {
  running = exchange;
  showRunning(true);
  announce("The answer begins.");
  const clock = setInterval(() => showNumbers(exchange), NUMBERS_INTERVAL_MS);
  try {
    await unfrozen(() => exchange.completion.run(body, exchange.abort.signal));
  } finally {
    clearInterval(clock);
    exchange.view.flush();
    exchange.reasoning.flush();
    running = null;
    showRunning(false);
  }
  finish(exchange, body);
}

function showRunning(isRunning) {
  const hadFocus = document.activeElement === send || document.activeElement === stop;
  send.hidden = isRunning;
  stop.hidden = !isRunning;
  if (hadFocus) {
    (isRunning ? stop : prompt).focus();
  }
}

function finish(exchange, body) {
  const { completion, element, view } = exchange;
  element.setAttribute("aria-busy", "false");
  element.dataset.outcome = completion.outcome;
  showNumbers(exchange);
  if (!view.isWhole) {
    addNote(element, "The answer is longer than this page keeps: later questions carry its beginning only.");
  }
  if (completion.outcome === COMPLETE && completion.finishReason === "length") {
    addNote(element, "It ends here because the limit of tokens was reached.");
  }
  if (completion.outcome === CUT || completion.outcome === FAILED) {
    const note = addNote(element, completion.problem, "problem");
    if (completion.outcome === CUT) {
      note.prepend("The answer was cut short. ");
    }
    note.append(" ", againButton(exchange, body));
  } else if (completion.outcome === STOPPED) {
    addNote(element, view.length === 0 ? "Stopped before anything came." : "Stopped; this is what had come.");
  }
  if (view.text !== "") {
    exchange.foot.append(copyButton(view));
  }
  announce(summary(exchange));
  scroller.scrollTop = exchange.follows ? scroller.scrollHeight : scroller.scrollTop;
}

function summary({ completion, view }) {
  const said = { [COMPLETE]: "The answer is complete", [STOPPED]: "Stopped", [CUT]: "The answer was cut short" };
  const length = view.length === 0 ? "" : `: ${plural(completion.tokenCount, "token")}`;
  return completion.outcome === FAILED ? `Error. ${completion.problem}` : `${said[completion.outcome]}${length}.`;
}

// ---- what stands in the page

function make(tag, className, text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}

function addExchange(question) {
  byId("welcome").hidden = true;
  const asked = make("article", "question");
  asked.setAttribute("aria-label", "You");
  asked.append(make("div", "bubble", question));
  const element = make("article", "answer");
  element.setAttribute("aria-label", "Answer");
  element.setAttribute("aria-busy", "true");
  const who = make("p", "who", modelChoice.value || "Answer");
  const thinking = make("details", "reasoning");
  thinking.hidden = true;
  thinking.append(make("summary", "", "Reasoning"));
  const thoughts = make("div", "text");
  thinking.append(thoughts);
  const text = make("div", "text");
  const numbers = make("dl", "numbers");
  const foot = make("div", "foot");
  foot.append(numbers);
  element.append(who, thinking, text, foot);
  log.append(asked, element);
  const exchange = { question, asked, element, who, numbers, foot, follows: true, abort: new AbortController() };
  const follow = () => {
    if (exchange.follows) {
      scroller.scrollTop = scroller.scrollHeight;
    }
  };
  exchange.view = new TextView(text, follow);
  exchange.reasoning = new TextView(thoughts, follow);
  exchange.completion = new Completion({
    text: (piece) => exchange.view.append(piece),
    reasoning: (piece) => {
      thinking.hidden = false;
      exchange.reasoning.append(piece);
    },
  });
  // Who scrolls up wants to read there; who comes back to the end wants to follow again.
  scroller.onscroll = () => {
    exchange.follows = scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < NEAR_END_PIXELS;
  };
  exchanges.push(exchange);
  if (exchanges.length > EXCHANGES_MAX) {
    const oldest = exchanges.shift();
    oldest.asked.remove();
    oldest.element.remove();
  }
  scroller.scrollTop = scroller.scrollHeight;
  showNumbers(exchange);
  return exchange;
}

function addNote(element, text, kind = "quiet") {
  const note = make("p", `note ${kind}`, text);
  element.append(note);
  return note;
}

function againButton(exchange, body) {
  const button = make("button", "link", "Ask again");
  button.type = "button";
  button.addEventListener("click", () => {
    if (running === null) {
      exchanges = exchanges.filter((each) => each !== exchange);
      exchange.asked.remove();
      exchange.element.remove();
      prompt.focus();
      answer(addExchange(exchange.question), body);
    }
  });
  return button;
}

function copyButton(view) {
  const button = make("button", "link copy", "Copy");
  button.type = "button";
  // Browsers have a clipboard for pages only where nobody can listen in between.
  button.hidden = navigator.clipboard === undefined;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(view.text);
      announce("Copied.");
      button.textContent = "Copied";
    } catch {
      announce("This browser does not allow copying.");
    }
  });
  return button;
}

function speed(tokensPerSecond) {
  return Number.isNaN(tokensPerSecond) ? NOTHING : `${count(tokensPerSecond)} tokens/s`;
}

function showNumbers({ completion, numbers, who }) {
  who.textContent = completion.model || who.textContent;
  const usage = completion.usage;
  const rows = [
    ["First token", duration(completion.firstTokenMs), "ttft"],
    ["Speed", speed(completion.tokensPerSecond), "rate"],
    ["Tokens", count(completion.tokenCount), "tokens"],
  ];
  if (usage) {
    rows.push(["Prompt", count(usage.prompt_tokens), "prompt-tokens"]);
  }
  if (completion.finishReason !== null) {
    rows.push(["Finish", completion.finishReason, "finish"]);
  }
  numbers.replaceChildren(
    ...rows.map(([name, value, kind]) => {
      const pair = make("div", "number");
      const shown = make("dd", "", value);
      shown.dataset.number = kind;
      pair.append(make("dt", "", name), shown);
      return pair;
    }),
  );
}
