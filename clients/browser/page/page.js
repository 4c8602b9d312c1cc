/** The page's controls: each recording is an AsrClient of its own, its events go to transcript, gauges, notices. */

import { AsrClient } from "../asr-client.js";
import { AWAITS_LOAD, OUTCOMES } from "../asr-session.js";
import { sessionsAddress } from "./address.js";
import { Gauges } from "./gauges.js";
import { recall, remember } from "./memory.js";
import { retell, still, tell, tellAsIs } from "./notices.js";
import { locale, speak, t } from "./texts.js";
import { Transcript } from "./transcript.js";

const HOLD_MS = 400; // a key that is down for longer is held, not tapped
const PATIENCE_MS = 3000; // within it a press does not give up the last words: it was meant for something else
const VISIT_MS = 5000;
const QUIET_MS = 4000; // without any sound at all: muted
const MAX_FILE_BYTES = 200e6; // it is decoded in memory
const FILE_RATE = 16_000; // Hz
const AWAY = ["unreachable", "worklet_failed", "connection_lost", "session_refused"]; // it may come back by itself

const SERVER = sessionsAddress(document.baseURI, document.querySelector("meta[name=asr-ws-ports]")?.content);

const $ = (id) => document.getElementById(id);
const asked = new URLSearchParams(location.search);
speak(locale);

const transcript = new Transcript($("transcript"), $("spoken"));
const gauges = new Gauges();
let client = null; // of the recording that goes on
let lostMs = 0; // of the recording, that could not be kept
const waiting = new Set(); // its utterances that are refused
let visitor = null; // asks for what the server is, before the first recording

// ---------------------------------------------------------------- recordings

let phaseAt = 0;

function setPhase(phase) {
  if (phase !== document.body.dataset.phase) phaseAt = performance.now();
  document.body.dataset.phase = phase;
  const isOn = phase === "opening" || phase === "recording";
  $("phase").textContent = t(`phase_${phase}`);
  $("microphone").ariaLabel = t({ idle: "start", file: "stop_file", finishing: "give_up" }[phase] ?? "stop");
  for (const id of ["file-button", "prompt", "device", "token", "translate"]) $(id).disabled = phase !== "idle";
  $("language").disabled = phase !== "idle" || $("language").options.length === 1;
  $("progress").hidden = phase !== "file";
  if (!isOn) $("microphone").style.setProperty("--level", 0);
  void keepAwake();
}

/** @param {string} [file] its name; else it is the microphone */
function newClient(file) {
  visitor?.close();
  visitor = null;
  still();
  waiting.clear();
  lostMs = 0;
  transcript.begin(file);
  const device = $("device").value;
  const made = new AsrClient(SERVER, {
    token: $("token").value.trim(),
    start: {
      language: $("language").value || null,
      prompt: $("prompt").value || null,
      task: $("translate").checked ? "translate" : "transcribe",
    },
    microphone: device ? { deviceId: { exact: device } } : {},
  });
  const on = (type, act) => made.addEventListener(type, ({ detail }) => act(detail));
  followServer(made);
  on("speech_started", (event) => transcript.speech(event));
  on("partial", (event) => transcript.partial(event));
  on("accepted", ({ position, utterance }) => {
    served(utterance);
    gauges.queue({ depth: Math.max(0, position - 1), running: 1 });
  });
  on("waiting", ({ utterance, reason, delay_ms, queue_depth, queue_capacity }) => {
    waiting.add(utterance);
    tell("busy", AWAITS_LOAD.includes(reason) ? "busy_load" : "busy", { delay_ms, then: "retrying" });
    gauges.queue({ depth: queue_depth, capacity: queue_capacity });
    void gauges.poll();
  });
  on("final", (event) => {
    served(event.utterance);
    transcript.final(event);
    if (document.body.dataset.phase !== "file") gauges.latency(event.latency_ms);
  });
  on("dropped", ({ utterance, reason }) => {
    served(utterance);
    if (reason === "cancelled") transcript.forget(utterance);
    else transcript.age(utterance); // it is sent again
  });
  on("error", ({ utterance, code, message, hint }) => {
    if (!utterance) return tellError(code, message, hint);
    if (!OUTCOMES.includes(code)) return; // of a retry that came too late: what becomes of it is told
    served(utterance);
    transcript.forget(utterance);
    tell("failed", "failed", { reason: code });
  });
  on("gap", ({ audio_start_ms, audio_end_ms }) => {
    lostMs += audio_end_ms - audio_start_ms;
    if (lostMs >= 50) tell("gap", "gap", { seconds: (lostMs / 1000).toFixed(1) });
  });
  on("behind", ({ behind_ms, why }) => {
    if (document.body.dataset.phase === "file") return; // it is not to be sent faster than it is heard
    if (behind_ms > 2000 && why === "network") tell("behind", "behind", { seconds: Math.round(behind_ms / 1000) });
    else still("behind");
  });
  on("reconnecting", ({ interrupted }) => {
    still("behind");
    for (const utterance of interrupted) {
      served(utterance);
      transcript.age(utterance); // it is heard again
    }
  });
  on("rtt", ({ ms }) => document.body.dataset.phase === "file" || gauges.rtt(ms)); // a file is ahead of the server
  on("level", showLevel);
  on("microphone", ({ state }) => {
    if (state === "open") setPhase("recording");
    if (state === "open") soundAt = performance.now();
    if (state === "lost") {
      tell("microphone", "microphone_lost");
      setPhase("finishing");
    }
  });
  on("closed", ({ error }) => {
    for (const name of ["server", "busy", "behind", "quiet", "file_later"]) still(name);
    transcript.forgetUnfinished();
    if (error && error.code !== "closed") fail(error);
    if (client === made) finish();
    void gauges.poll();
  });
  return made;
}

/** An utterance waits no more. */
function served(utterance) {
  waiting.delete(utterance);
  if (!waiting.size) still("busy");
}

/** What any session tells of the server. */
function followServer(made) {
  const on = (type, act) => made.addEventListener(type, ({ detail }) => act(detail));
  gauges.token = $("token").value.trim();
  on("ready", (ready) => {
    still("server");
    still("access");
    if (made === client) still("error");
    gauges.ready(ready);
    offerLanguages(ready.languages);
  });
  on("state", ({ state }) => (gauges.state = state));
  on("reconnecting", ({ reason, delay_ms }) => {
    if (reason === "dropped") return; // the server is there
    gauges.state = reason === "max_sessions" ? "full" : "unreachable";
    if (made === client)
      tell("server", reason === "max_sessions" ? "full" : "reconnecting", { delay_ms, then: "connecting" });
  });
}

let visiting;

/** A recording, or the question what the server is, has failed. */
function fail({ code, message, hint }) {
  if (code === "unauthorized") {
    gauges.state = "locked";
    $("token").closest("details").open = true;
  }
  if (AWAY.includes(code)) {
    clearTimeout(visiting);
    visiting = setTimeout(() => client || visit(), VISIT_MS);
  }
  tellError(code, message, hint);
}

/** In this page's words, where there are some. */
function tellError(code, message, hint) {
  const text =
    {
      unauthorized: $("token").value && "unauthorized_wrong",
      microphone_missing: $("device").value && "microphone_gone",
      worklet_failed: "unreachable",
    }[code] || code;
  const name = ["unauthorized", "unauthorized_wrong", "unreachable"].includes(text) ? "access" : "error";
  if (t(`${text}_hint`)) tell(name, text);
  else tellAsIs(name, t(text) ?? message, hint || message);
}

async function record() {
  client = newClient();
  setPhase("opening");
  await client.start().then(offerDevices, () => {}); // told by `closed`
}

/** The button, while there is a recording: once stops it, what it waits for then is given up by the next. */
function stop() {
  const { phase } = document.body.dataset;
  if (phase === "finishing" || phase === "file") {
    if (phase === "finishing" && performance.now() - phaseAt < PATIENCE_MS) return;
    if (client.isOpen) client.close();
    else finish(); // a file that is still being read
    return;
  }
  setPhase("finishing");
  client.stop().catch(() => {}); // told by `closed`
}

function finish() {
  client = null;
  setPhase("idle");
}

async function transcribe([file, ...others]) {
  if (!file) return;
  if (client) return tell("file_later", "file_later");
  if (file.size > MAX_FILE_BYTES) return tell("file", "file_large");
  const made = (client = newClient(file.name));
  if (others.length) tell("file", "file_one", { name: file.name });
  setPhase("file");
  const samples = await decode(file).catch(() => null);
  if (client !== made) return; // given up
  if (!samples) {
    tell("file", "file_unreadable");
    return finish();
  }
  try {
    const step = FILE_RATE / 2;
    await made.open({ sampleRate: FILE_RATE });
    for (let at = 0; at < samples.length; at += step) {
      $("progress").value = at / samples.length;
      await made.send(samples.subarray(at, at + step));
    }
    const { text, unfinished } = await made.stop();
    if (!text && !unfinished.length) tell("file", "file_silent");
  } catch {
    // told by `closed`
  }
}

/** Resampled and mixed down by the browser. */
async function decode(file) {
  const decoded = await new OfflineAudioContext(1, 1, FILE_RATE).decodeAudioData(await file.arrayBuffer());
  const mixer = new OfflineAudioContext(1, decoded.length, FILE_RATE);
  const source = new AudioBufferSourceNode(mixer, { buffer: decoded });
  source.connect(mixer.destination);
  source.start();
  return (await mixer.startRendering()).getChannelData(0);
}

let soundAt = 0; // when there was any

function showLevel({ peak, rms }) {
  $("microphone").style.setProperty("--level", Math.min(1, Math.sqrt(rms * 4)).toFixed(2));
  if (peak === 0) return;
  soundAt = performance.now();
  still("quiet");
}

setInterval(() => {
  if (document.body.dataset.phase === "recording" && performance.now() - soundAt > QUIET_MS) tell("quiet", "quiet");
}, 1000);

// ---------------------------------------------------------------- choices

function offerLanguages(codes) {
  const select = $("language");
  const isOne = codes.length === 1;
  const chosen = select.value || recall("spoken") || "";
  const names = new Intl.DisplayNames([locale], { type: "language" });
  const options = codes.map((code) => new Option(names.of(code), code));
  options.sort((one, other) => one.text.localeCompare(other.text, locale));
  if (!isOne) options.unshift(new Option(t("detect"), ""));
  select.replaceChildren(...options);
  select.value = codes.includes(chosen) ? chosen : isOne ? codes[0] : "";
  setPhase(document.body.dataset.phase);
  $("translate-label").hidden = isOne;
}

async function offerDevices() {
  const devices = (await navigator.mediaDevices.enumerateDevices()).filter(({ kind }) => kind === "audioinput");
  const chosen = $("device").value;
  const options = devices
    .filter(({ deviceId }) => deviceId !== "default")
    .map(({ label, deviceId }) => new Option(label, deviceId));
  $("device").replaceChildren($("device").options[0], ...options);
  $("device").value = chosen;
}

navigator.mediaDevices?.addEventListener("devicechange", () => $("device").options.length > 1 && offerDevices());

/** Ask the server what it is, once: its languages, and whether it wants a token. */
function visit() {
  visitor?.close();
  visitor = new AsrClient(SERVER, { token: $("token").value.trim() });
  followServer(visitor);
  visitor.addEventListener("ready", ({ target }) => target.close());
  visitor.open().catch((error) => {
    if (error.code === "closed") return;
    fail(error);
  });
}

gauges.onBack = () => client || visit();

let lock = null; // on the screen, which a phone would switch off, and the page with it

/** Browsers take it away from a page that is not seen. */
async function keepAwake() {
  const isWanted = document.body.dataset.phase !== "idle" && !document.hidden;
  const before = lock;
  lock = isWanted ? (navigator.wakeLock?.request("screen").catch(() => null) ?? null) : null;
  await (await before)?.release();
}

document.addEventListener("visibilitychange", keepAwake);

function download(name, text, type) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  Object.assign(document.createElement("a"), { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

// ---------------------------------------------------------------- controls

function press() {
  if (client) stop();
  else void record();
}

$("microphone").onclick = press;
$("file-button").onclick = () => $("file").click();
$("file").onchange = ({ target }) => {
  void transcribe([...target.files]);
  target.value = "";
};
$("clear").onclick = () => {
  transcript.clear();
  if (!client) still();
};
transcript.onChange = (hasText) => {
  for (const id of ["copy", "txt", "srt", "vtt", "clear"]) $(id).disabled = !hasText;
};
$("txt").onclick = () => download("transcript.txt", transcript.text + "\n", "text/plain");
$("srt").onclick = () => download(`${transcript.name}.srt`, transcript.srt, "application/x-subrip");
$("vtt").onclick = () => download(`${transcript.name}.vtt`, transcript.vtt, "text/vtt");
$("copy").onclick = async ({ target }) => {
  try {
    await navigator.clipboard.writeText(transcript.text); // there is none on an insecure page
  } catch {
    getSelection().selectAllChildren($("transcript"));
    document.execCommand("copy");
    getSelection().removeAllRanges();
  }
  target.textContent = t("copied");
  setTimeout(() => (target.textContent = t("copy")), 1500);
};
$("language").onchange = ({ target }) => remember("spoken", target.value);
$("token").onchange = () => client || visit();
$("theme-toggle").onclick = () => {
  const { dataset } = document.documentElement;
  const isDark = dataset.theme ? dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  dataset.theme = isDark ? "light" : "dark";
  remember("theme", dataset.theme);
};

$("language-toggle").onclick = () => {
  const other = locale === "en" ? "zh" : "en";
  remember("lang", other);
  speak(other);
  showTexts();
};

function showTexts() {
  const isEnglish = locale === "en";
  $("language-toggle").textContent = t("other");
  $("language-toggle").lang = isEnglish ? "zh-CN" : "en";
  setPhase(document.body.dataset.phase);
  gauges.show();
  retell();
  const codes = [...$("language").options].map(({ value }) => value).filter(Boolean);
  if (codes.length) offerLanguages(codes);
}

/** The space bar: held it records as long, tapped it is the button. Not where it types or presses something else. */
let downAt = null;
let isTaken = false; // the press was ours: letting go is not to press a button
let isPointed = false; // what has the focus has it by a mouse or finger, whose space bar is for talking

function isForTalking({ target, ctrlKey, altKey, metaKey }) {
  if (ctrlKey || altKey || metaKey) return false;
  if (target.closest("input:not([type=checkbox])")) return false;
  return isPointed || target === $("microphone") || !target.closest("input, select, summary, a, button");
}

document.addEventListener("pointerdown", () => (isPointed = true));
document.addEventListener("keydown", (event) => {
  if (event.code === "Tab") isPointed = false;
  if (event.code !== "Space") return;
  isTaken = isForTalking(event);
  if (!isTaken) return;
  event.preventDefault();
  const { phase } = document.body.dataset;
  if (event.repeat || phase === "finishing" || phase === "file") return; // who talks again gives nothing up
  downAt = client ? null : performance.now(); // while it records, a tap stops it
  press();
});
document.addEventListener("keyup", (event) => {
  if (event.code !== "Space" || !isTaken) return;
  event.preventDefault();
  isTaken = false;
  letGo();
});
addEventListener("beforeunload", (event) => client && event.preventDefault());
window.addEventListener("blur", letGo); // the key is let go where we do not hear it

function letGo() {
  const { phase } = document.body.dataset;
  const isHeld = downAt !== null && performance.now() - downAt > HOLD_MS;
  if (isHeld && (phase === "recording" || phase === "opening")) stop();
  downAt = null;
}

const card = $("drop");
const hasFiles = ({ dataTransfer }) => dataTransfer.types.includes("Files");
document.addEventListener("dragover", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  card.classList.add("over");
});
document.addEventListener("dragleave", ({ relatedTarget }) => relatedTarget || card.classList.remove("over"));
document.addEventListener("drop", (event) => {
  if (!hasFiles(event)) return;
  event.preventDefault();
  card.classList.remove("over");
  void transcribe([...event.dataTransfer.files]);
});

const theme = asked.get("theme") ?? recall("theme");
if (theme) document.documentElement.dataset.theme = theme;
showTexts();
if (asked.get("autostart") === "1") void record();
else visit();
