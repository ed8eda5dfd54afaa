/** The page: its tabs, the server's state, and the dialog for a key. What a tab does is in a file of its own. */

import { key, setKey, setKeyAsker } from "./api.js";
import { loadModels, startChat } from "./chat.js";
import { showLive, startLive } from "./live.js";
import { startMel } from "./mel.js";

const STATE_POLL_MS = 10_000;
const STATE_TIMEOUT_MS = 5000;
const byId = (id) => document.getElementById(id);
const tabs = [...document.querySelectorAll('[role="tab"]')];

// ---- tabs

function choose(tab) {
  for (const each of tabs) {
    const isChosen = each === tab;
    each.setAttribute("aria-selected", String(isChosen));
    each.tabIndex = isChosen ? 0 : -1;
    byId(each.getAttribute("aria-controls")).hidden = !isChosen;
  }
  showLive(tab.id === "tab-live");
}

function tabOfAddress() {
  return tabs.find((tab) => `#${tab.id.slice("tab-".length)}` === location.hash) ?? tabs[0];
}

function startTabs() {
  for (const [index, tab] of tabs.entries()) {
    tab.addEventListener("click", () => {
      history.replaceState(null, "", `#${tab.id.slice("tab-".length)}`);
      choose(tab);
    });
    tab.addEventListener("keydown", (event) => {
      const to = {
        ArrowRight: (index + 1) % tabs.length,
        ArrowLeft: (index + tabs.length - 1) % tabs.length,
        Home: 0,
        End: tabs.length - 1,
      }[event.key];
      if (to !== undefined) {
        event.preventDefault();
        tabs[to].focus();
        tabs[to].click();
      }
    });
  }
  addEventListener("hashchange", () => choose(tabOfAddress()));
  choose(tabOfAddress());
}

// ---- the key

let asking = null; // the promise of the dialog that is open, if one is

/** Opens the dialog; promises true when a key was given. Requests that ask at the same time share it. */
function askForKey(error) {
  byId("key-button").hidden = false;
  asking ??= new Promise((resolve) => {
    byId("key-why").textContent = error?.message ?? "";
    const dialog = byId("key-dialog");
    const field = byId("key");
    field.value = key();
    dialog.onclose = () => {
      asking = null;
      const isGiven = dialog.returnValue === "use";
      if (isGiven) {
        setKey(field.value.trim());
      }
      field.value = "";
      resolve(isGiven);
    };
    dialog.returnValue = "";
    dialog.showModal();
    field.select();
  });
  return asking;
}

function startKey() {
  setKeyAsker(askForKey);
  byId("key-button").hidden = key() === "";
  byId("key-button").addEventListener("click", async () => {
    if (await askForKey(null)) {
      loadModels();
    }
  });
  // A form that is sent, even to a dialog, is what the content security policy forbids.
  byId("key-form").addEventListener("submit", (event) => {
    event.preventDefault();
    byId("key-dialog").close("use");
  });
  byId("key-cancel").addEventListener("click", () => byId("key-dialog").close("cancel"));
  byId("key-forget").addEventListener("click", () => {
    setKey("");
    byId("key-dialog").close("forget");
  });
}

// ---- the server's state

function showState(state, text) {
  const badge = byId("server-state");
  badge.dataset.state = state;
  if (badge.textContent !== text) {
    badge.textContent = text;
  }
}

async function askState() {
  if (document.hidden) {
    return;
  }
  try {
    // Not `request`: a 503 is an answer here, and nobody is asked for a key for it.
    const response = await fetch("ready", { signal: AbortSignal.timeout(STATE_TIMEOUT_MS) });
    const said = await response.json();
    if (response.ok) {
      showState("ready", "Ready");
    } else {
      showState("busy", said.reason ?? "Not ready");
    }
  } catch (problem) {
    if (problem instanceof SyntaxError) {
      showState("unknown", "State unknown");
    } else if (problem instanceof TypeError || problem.name === "TimeoutError") {
      showState("away", "Unreachable");
    } else {
      throw problem;
    }
  }
}

function startState() {
  askState();
  setInterval(askState, STATE_POLL_MS);
  document.addEventListener("visibilitychange", askState);
}

startKey();
startState();
startChat();
startMel();
startLive();
startTabs();
