/** The tab that draws what Whisper would hear: of a file, or of the microphone while somebody speaks. */

import { ApiError, unfrozen } from "./api.js";
import { NOTHING, bytes, count, duration, plural } from "./format.js";
import { MelError } from "./mel-blocks.js";
import { MelSession } from "./mel-session.js";
import { MicrophoneError } from "./microphone.js";
import { FRAME_SECONDS, Spectrogram } from "./spectrogram.js";

const NUMBERS_INTERVAL_MS = 100;
const HOW_TO_ENABLE = " So does MEL_ENABLED=1 in its environment. Either needs the extra “mel”.";
/** How far below the loudest value black is: 8 decades of power, which whisper's and running's scale divides by 4. */
const SPANS = { none: 8, running: 2, whisper: 2 };

const byId = (id) => document.getElementById(id);
const said = byId("mel-status");
const progress = byId("mel-progress");
const stopButton = byId("mel-stop");
const microphoneButton = byId("mel-microphone");
const fileField = byId("mel-file");
const dropZone = byId("drop-zone");
const canvas = byId("spectrogram");

let spectrogram = null;
let running = null; // {session, name, stop}

export function startMel() {
  spectrogram = new Spectrogram(canvas);
  fileField.addEventListener("change", () => {
    const [file] = fileField.files;
    fileField.value = ""; // so that the same file can be chosen again
    if (file) {
      run(file);
    }
  });
  microphoneButton.addEventListener("click", () => run(null));
  stopButton.addEventListener("click", () => running?.stop());
  byId("panel-mel").addEventListener("keydown", (event) => {
    if (event.key === "Escape" && running !== null) {
      event.preventDefault();
      running.stop();
    }
  });
  acceptDrops();
}

function acceptDrops() {
  const panel = byId("panel-mel");
  panel.addEventListener("dragover", (event) => {
    event.preventDefault();
    dropZone.classList.add("is-over");
  });
  panel.addEventListener("dragleave", (event) => {
    if (!panel.contains(event.relatedTarget)) {
      dropZone.classList.remove("is-over");
    }
  });
  panel.addEventListener("drop", (event) => {
    event.preventDefault();
    dropZone.classList.remove("is-over");
    const [file] = event.dataTransfer.files;
    if (file) {
      run(file);
    }
  });
}

function say(text, state) {
  said.textContent = text;
  said.dataset.state = state;
}

/** Streams a file, or the microphone where it is null. What runs already is told to stop, and is over first. */
async function run(file) {
  if (running !== null) {
    say("A stream is running. Stop it first.", running.state);
    return;
  }
  const normalisation = byId("mel-normalisation").value;
  const session = new MelSession({ bins: Number(byId("mel-bins").value), normalisation }, (values, bins) =>
    spectrogram.add(values, bins),
  );
  const abort = new AbortController();
  const name = file === null ? "the microphone" : file.name;
  running = { session, stop: () => (file === null ? session.stop() : abort.abort()) };
  spectrogram.reset({ latest: file === null, span: SPANS[normalisation] });
  say(file === null ? "Listening to the microphone." : `Sending ${name}.`, "running");
  showRunning(true, file === null);
  const clock = setInterval(() => showNumbers(session), NUMBERS_INTERVAL_MS);
  try {
    await unfrozen(() => (file === null ? session.sendMicrophone() : session.sendFile(file, abort.signal)));
    say(`Complete: ${plural(session.frameCount, "frame")} of ${name}.`, "done");
  } catch (problem) {
    say(sentenceOf(problem, session), problem.name === "AbortError" ? "stopped" : "failed");
  } finally {
    clearInterval(clock);
    running = null;
    showRunning(false, file === null);
    showNumbers(session);
    describe(session, name);
  }
}

function sentenceOf(problem, session) {
  if (problem.name === "AbortError") {
    return `Stopped after ${plural(session.frameCount, "frame")}.`;
  }
  if (problem instanceof ApiError) {
    return problem.sentence + (problem.code === "mel_disabled" ? HOW_TO_ENABLE : "");
  }
  if (problem instanceof MelError || problem instanceof MicrophoneError) {
    return problem.message;
  }
  throw problem;
}

function showRunning(isRunning, isLive) {
  const hadFocus = [stopButton, microphoneButton, fileField].includes(document.activeElement);
  stopButton.hidden = !isRunning;
  microphoneButton.disabled = isRunning;
  fileField.disabled = isRunning;
  progress.hidden = !isRunning || isLive;
  progress.removeAttribute("value");
  if (hadFocus) {
    (isRunning ? stopButton : isLive ? microphoneButton : fileField).focus();
  }
}

function showNumbers(session) {
  const seconds = session.frameCount * FRAME_SECONDS;
  if (session.audioSeconds > 0) {
    progress.value = Math.min(1, seconds / session.audioSeconds);
  }
  const show = (id, text) => {
    byId(id).textContent = text;
  };
  const factor = session.timesRealTime;
  show("mel-frames", count(session.frameCount));
  show("mel-seconds", session.frameCount === 0 ? NOTHING : duration(seconds * 1000));
  show("mel-first", duration(session.firstFrameMs));
  byId("mel-factor-name").textContent = session.isLive ? "Behind the microphone" : "Real-time factor";
  const behind = Math.max(0, session.audioSeconds - seconds) * 1000;
  const speed = session.isLive ? duration(behind) : `${count(factor)} ×`;
  show("mel-factor", session.frameCount === 0 ? NOTHING : speed);
  show("mel-bytes", `${bytes(session.sentBytes)} / ${bytes(session.receivedBytes)}`);
}

/** The picture in words, for those who do not see it. */
function describe(session, name) {
  const factor = session.isLive ? "" : `, ${count(session.timesRealTime)} times as fast as real time`;
  const what = `${plural(session.frameCount, "frame")}, ${duration(session.frameCount * FRAME_SECONDS * 1000)} of audio`;
  const first = Number.isNaN(session.firstFrameMs) ? "" : `, the first after ${duration(session.firstFrameMs)}`;
  canvas.setAttribute(
    "aria-label",
    session.frameCount === 0
      ? "Spectrogram: empty"
      : `Spectrogram of ${name}: ${what}${first}${factor}. Time from left to right, 0 Hz below to 8 kHz above, bright is loud.`,
  );
}
