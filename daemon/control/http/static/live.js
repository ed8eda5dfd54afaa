/** The tab that shows what the daemon does now: /metrics each second, /ready beside it. */

import { ApiError, request } from "./api.js";
import { NOTHING, count, duration, rate } from "./format.js";
import { buckets, bucketsSince, byLabel, grown, parseMetrics, quantile, total } from "./metrics.js";
import { Sparkline } from "./sparkline.js";

const POLL_MS = 1000;
const POLL_TIMEOUT_MS = 5000;
const LATENCY_READINGS = 10; // seconds that a latency is taken over
const REASON_READINGS = 60;
const PREFIX = "streaming_daemon_";
const FIRST_TOKEN = "gen_ai_server_time_to_first_token_seconds";
const FIRST_BYTE = `${PREFIX}first_byte_seconds`;
/** Ends that are nobody's fault here. */
const GOOD_ENDS = new Set(["complete", "client_gone"]);

const byId = (id) => document.getElementById(id);
const pauseButton = byId("live-pause");
const said = byId("live-status");

let readings = []; // {at, metrics}, the oldest first
let isShown = false;
let isPaused = false;
let timer = 0;
let cards = null;

export function startLive() {
  cards = {
    open: card("open", "Open streams", [""], count),
    tokens: card("tokens", "Tokens per second", [""], rate),
    messages: card("messages", "Messages per second", [""], rate),
    latency: card("latency", "Time to first token", ["half of the streams", "99 of 100 streams"], (value) => duration(value * 1000)),
    errors: card("errors", "Errors per second", [""], rate),
    connections: card("connections", "Connections per second", [""], rate),
  };
  pauseButton.addEventListener("click", () => {
    isPaused = !isPaused;
    pauseButton.setAttribute("aria-pressed", String(isPaused));
    say(isPaused ? "Paused." : "", "paused");
    schedule(0);
  });
  document.addEventListener("visibilitychange", () => schedule(0));
}

function card(id, name, lines, format) {
  const element = byId(`card-${id}`);
  return {
    value: element.querySelector(".value"),
    detail: element.querySelector(".detail"),
    line: new Sparkline(element.querySelector(".plot"), name, lines, format),
  };
}

/** Polls while the tab is shown, and only then. */
export function showLive(isNowShown) {
  isShown = isNowShown;
  schedule(0);
}

function schedule(delayMs) {
  clearTimeout(timer);
  if (isShown && !isPaused && !document.hidden) {
    timer = setTimeout(poll, delayMs);
  }
}

function say(text, state) {
  // The same words again would be read aloud again.
  if (said.textContent !== text) {
    said.textContent = text;
  }
  said.dataset.state = state;
}

async function poll() {
  const began = performance.now();
  try {
    const response = await request("metrics", {
      headers: { Accept: "text/plain" },
      signal: AbortSignal.timeout(POLL_TIMEOUT_MS),
    });
    take(parseMetrics(await response.text()));
    say("", "running");
  } catch (problem) {
    if (problem instanceof ApiError) {
      say(`No metrics. ${problem.sentence}`, "failed");
    } else if (problem.name === "TimeoutError" || problem instanceof TypeError) {
      say("No metrics: the server did not answer in time.", "failed");
    } else {
      throw problem;
    }
  } finally {
    schedule(Math.max(0, POLL_MS - (performance.now() - began)));
  }
}

function take(metrics) {
  readings.push({ at: performance.now(), metrics });
  readings = readings.slice(-REASON_READINGS - 1);
  byId("live-numbers").hidden = false;
  showGauges(metrics);
  showRates(metrics);
  showLatency(metrics);
  showReasons(metrics);
  showUpstreams(metrics);
  showInformation(metrics);
}

/** Growth per second since the reading before; NaN at the first, and where there is no such counter. */
function perSecond(value) {
  const [earlier, later] = readings.slice(-2);
  if (later === undefined) {
    return NaN;
  }
  return (grown(value(earlier.metrics), value(later.metrics)) * 1000) / (later.at - earlier.at);
}

function showGauges(metrics) {
  const gauge = (name) => total(metrics, PREFIX + name);
  cards.open.value.textContent = count(gauge("connections_active"));
  cards.open.detail.textContent =
    `most at once ${count(gauge("connections_peak"))}, room for ${count(gauge("connections_max"))}`;
  cards.open.line.add(gauge("connections_active"));
  cards.connections.detail.textContent = [
    `${count(gauge("slots_used"))} in use`,
    `${count(gauge("queue_length"))} waiting`,
    `${count(gauge("upstream_connections_idle"))} kept to upstreams`,
  ].join(", ");
}

function showRate(name, value, detail) {
  const now = perSecond(value);
  cards[name].value.textContent = rate(now);
  if (detail !== null) {
    cards[name].detail.textContent = detail;
  }
  cards[name].line.add(now);
}

function errorCount(metrics) {
  let errors = total(metrics, `${PREFIX}handoffs_rejected_total`) || 0;
  for (const [reason, value] of byLabel(metrics, `${PREFIX}streams_ended_total`, "reason")) {
    // A refusal is counted where its reason is known.
    errors += GOOD_ENDS.has(reason) || reason === "refused" ? 0 : value;
  }
  return errors;
}

function showRates(metrics) {
  const of = (name) => (each) => total(each, PREFIX + name);
  showRate("tokens", of("tokens_total"), `${count(of("tokens_total")(metrics))} relayed since the start`);
  showRate("messages", of("messages_total"), `${count(of("messages_total")(metrics))} since the start`);
  showRate("errors", errorCount, `${count(errorCount(metrics))} since the start`);
  showRate("connections", of("accepted_total"), null);
}

/** The time to the first token where streams are relayed, otherwise to the first byte; over the last seconds. */
function showLatency(metrics) {
  const then = readings.at(-1 - LATENCY_READINGS) ?? readings[0];
  let name = FIRST_TOKEN;
  let since = bucketsSince(buckets(then.metrics, name), buckets(metrics, name));
  if (!(since.at(-1)?.[1] > 0)) {
    name = FIRST_BYTE;
    since = bucketsSince(buckets(then.metrics, name), buckets(metrics, name));
  }
  const [half, most] = [quantile(0.5, since), quantile(0.99, since)];
  const seen = count(since.at(-1)?.[1] ?? 0);
  cards.latency.value.replaceChildren(...pair("p50", half), ...pair("p99", most));
  cards.latency.detail.textContent =
    `of ${seen} in the last ${LATENCY_READINGS} s, to the first ${name === FIRST_TOKEN ? "token" : "byte"}`;
  cards.latency.line.add(half, most);
}

function pair(name, seconds) {
  const label = document.createElement("small");
  label.textContent = name;
  return [label, ` ${Number.isNaN(seconds) ? NOTHING : duration(seconds * 1000)} `];
}

function showReasons(metrics) {
  const rows = [];
  for (const [name, heading] of [
    [`${PREFIX}streams_ended_total`, ""],
    [`${PREFIX}handoffs_rejected_total`, "refused: "],
  ]) {
    const before = byLabel(readings[0].metrics, name, "reason");
    for (const [reason, value] of byLabel(metrics, name, "reason")) {
      if (value > 0 && !(heading === "" && reason === "refused")) {
        rows.push([heading + reason, count(grown(before.get(reason) ?? 0, value)), count(value)]);
      }
    }
  }
  fill(byId("reasons"), rows, "No stream has ended yet.");
}

function showUpstreams(metrics) {
  const name = `${PREFIX}upstream_streams_active`;
  const breakers = new Map();
  for (const { labels, value } of metrics.get(`${PREFIX}upstream_breaker_state`) ?? []) {
    if (value === 1) {
      breakers.set(labels.upstream, labels.state.replace("_", " "));
    }
  }
  const failures = byLabel(metrics, `${PREFIX}upstream_attempt_failures_total`, "upstream");
  const rows = [...byLabel(metrics, name, "upstream")].map(([upstream, active]) => [
    upstream,
    count(active),
    breakers.get(upstream) ?? NOTHING,
    count(failures.get(upstream) ?? 0),
  ]);
  byId("upstreams-part").hidden = rows.length === 0;
  fill(byId("upstreams"), rows, "");
}

/** Rows of a table's body; the first cell names its row. */
function fill(body, rows, nothing) {
  if (rows.length === 0) {
    const cell = document.createElement("td");
    cell.colSpan = 4;
    cell.textContent = nothing;
    const row = document.createElement("tr");
    row.append(cell);
    body.replaceChildren(row);
    return;
  }
  body.replaceChildren(
    ...rows.map((texts) => {
      const row = document.createElement("tr");
      row.append(
        ...texts.map((text, index) => {
          const cell = document.createElement(index === 0 ? "th" : "td");
          if (index === 0) {
            cell.scope = "row";
          }
          cell.textContent = text;
          return cell;
        }),
      );
      return row;
    }),
  );
}

function showInformation(metrics) {
  const [information] = metrics.get(`${PREFIX}info`) ?? [];
  const facts = Object.entries(information?.labels ?? {});
  const startedAt = total(metrics, "process_start_time_seconds");
  const memory = total(metrics, "process_resident_memory_bytes");
  if (Number.isFinite(startedAt)) {
    facts.push(["up for", duration(Date.now() - startedAt * 1000)]);
  }
  if (Number.isFinite(memory)) {
    facts.push(["memory", `${count(Math.round(memory / 1e6))} MB`]);
  }
  byId("information").replaceChildren(
    ...facts.map(([name, value]) => {
      const term = document.createElement("dt");
      term.textContent = name.replaceAll("_", " ");
      const description = document.createElement("dd");
      description.textContent = value;
      const fact = document.createElement("div");
      fact.append(term, description);
      return fact;
    }),
  );
}
