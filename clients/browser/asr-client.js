/**
 * asr-client.js: live text from a microphone, by an asr_ws server.
 *
 *     const asr = new AsrClient("http://127.0.0.1:8765/");
 *     asr.addEventListener("final", ({ detail }) => console.log(detail.text));
 *     await asr.start(); // the microphone; stop() flushes, and gives the whole text
 *
 * A recording lives longer than a connection: what has no outcome is kept (`ringSeconds`), and sent again when the
 * server is back. Utterances that the server refuses are offered again after its own hint. Every event of the protocol
 * is an event here, its times counted from the recording's beginning; asr-client.d.ts has them all.
 */

import { AsrError } from "./asr-error.js";
import { AudioRing } from "./audio-ring.js";
import { Microphone } from "./microphone.js";
import { OUTCOMES, Session, lose } from "./asr-session.js";

export { AsrError, Microphone };
export const VERSION = "0.1.0";

const PATH = "/v1/stream";
const RECONNECT = [1001, 1005, 1006, 1011, 1012, 1013, 1014]; // close codes after which the server, or the next one, is back
const TRANSIENT = ["internal", "slow_consumer"]; // fatal errors that another session need not have
const ADDRESS_HINT = "such as http://127.0.0.1:8765/";
const FIRST_DELAY_MS = 500;
const MAX_DELAY_MS = 30_000;
const FIRST_TRIES = 3; // as long as there was no session: the address may be wrong, or the page not let in
const ROUNDING_S = 0.02; // between what is settled: times are whole milliseconds
const SCRAP_S = 0.1; // less than a syllable
const STABLE_MS = 5_000; // a session that has lived so long ends the row of failed ones

/** Milliseconds before the n-th try (1, 2, ...) in a row: doubled each time, and spread, lest all come at once. */
export function reconnectDelayMs(attempt, retryAfterMs = 0, random = Math.random) {
  const delay = Math.min(FIRST_DELAY_MS * 2 ** (attempt - 1), MAX_DELAY_MS);
  return Math.round(Math.max(delay * (0.5 + random() / 2), Math.min(retryAfterMs, MAX_DELAY_MS)));
}

/** The address of sessions: a server's plain address will do, also with a proxy's path. */
export function sessionUrl(url, base = globalThis.document?.baseURI) {
  let address;
  try {
    address = new URL(url, base);
  } catch (error) {
    throw new AsrError("bad_address", `${url} is no address`, ADDRESS_HINT, { cause: error });
  }
  if (!/^(http|ws)s?:$/.test(address.protocol)) throw new AsrError("bad_address", `${url} is no address`, ADDRESS_HINT);
  const isPlain = address.protocol.startsWith("http") || address.pathname === "/";
  address.protocol = address.protocol.replace("http", "ws");
  if (isPlain) address.pathname = address.pathname.replace(new RegExp(`(${PATH})?/*$`), "") + PATH;
  address.hash = "";
  return address.href;
}

export class AsrClient extends EventTarget {
  #url;
  #options;
  #recording = null; // {ring, rate, marks, isEnding, finals, ...}: until its end
  #session = null;
  #microphone = null;
  #closing = null; // the microphone: until its last frame has come
  #opening = null;
  #nSessions = 0;
  #attempt = 0;
  #timer = null;
  #stableTimer = null;
  #ready = null;
  #changed = promise();

  constructor(url = ".", options = {}) {
    super();
    this.#url = sessionUrl(url);
    this.#options = { ringSeconds: 60, maxReconnects: 10, WebSocket: globalThis.WebSocket, ...options };
  }

  /** Whether a recording is going on: from start() or open() until `closed`. */
  get isOpen() {
    return this.#recording !== null || this.#opening !== null;
  }

  /** What the server said of itself: the event `ready`, or null. */
  get ready() {
    return this.#ready;
  }

  /** Milliseconds of audio since the recording's beginning. */
  get positionMs() {
    return this.#recording ? Math.round((this.#recording.ring.end / this.#recording.rate) * 1000) : 0;
  }

  /** What this machine's microphone hears, from now on. Resolves once the server has taken the settings. */
  async start() {
    this.#assertIdle();
    this.#opening = { isStopped: false };
    const opening = this.#opening;
    try {
      const { microphone: constraints, workletUrl } = this.#options;
      let recording = null;
      const early = []; // before the sample rate is known, and with it the recording
      let onAudio = (samples, level) => early.push([samples, level]);
      const microphone = await Microphone.open({
        constraints,
        workletUrl,
        onAudio: (samples, level) => onAudio(samples, level),
        onEnded: () => {
          if (!this.#microphone || this.#recording !== recording) return;
          this.#emit("microphone", { state: "lost" });
          this.stop().catch(() => {}); // what goes wrong is told by `closed`
        },
      });
      if (opening.isStopped) {
        await microphone.close();
        throw stopped();
      }
      this.#microphone = microphone;
      this.#opening = null;
      recording = this.#begin(microphone.sampleRate);
      onAudio = (samples, level) => {
        this.#append(recording, samples);
        if (this.#recording === recording) this.#emit("level", level);
      };
      for (const frame of early) onAudio(...frame);
      if (this.#recording === recording) this.#emit("microphone", { state: "open" });
      await recording.opened.promise;
    } catch (error) {
      if (opening.isStopped) throw stopped();
      if (this.#opening === opening) {
        this.#opening = null;
        this.#emit("closed", { error });
      }
      throw error;
    }
  }

  /** The same for audio that comes by send(). */
  async open({ sampleRate = 16_000 } = {}) {
    this.#assertIdle();
    await this.#begin(sampleRate).opened.promise;
  }

  /**
   * More audio, mono, at the recording's rate: Int16Array, or Float32Array within [-1, 1].
   * Resolves when the server has no more to do than keeps it busy: a source that can wait (a file) is to wait for it.
   */
  async send(samples) {
    const recording = this.#recorded();
    if (!(samples instanceof Float32Array || samples instanceof Int16Array))
      throw new AsrError("bad_audio", "audio is an Int16Array, or a Float32Array within [-1, 1]");
    this.#append(recording, samples instanceof Float32Array ? Int16Array.from(samples, asInt16) : samples);
    while (this.#recording === recording && !this.#session?.hasRoom) await this.#changed.promise;
    if (this.#recording !== recording) await recording.finished.promise;
  }

  /** The utterance ends here (push to talk); `id` comes back in its `accepted`, `busy` or `error`. */
  commit(id = null) {
    const { ring, marks } = this.#recorded();
    marks.push({ at: ring.end, id });
    this.#session?.pump();
  }

  /** Drop that utterance, or everything up to now that has no outcome yet. */
  cancel(utterance = undefined) {
    const { ring } = this.#open();
    const { start, end } = utterance === undefined ? { start: 0, end: Infinity } : (this.#range(utterance) ?? {});
    if (end) ring.settle(start, Math.min(end, ring.end));
    this.#session?.cancel(utterance);
  }

  /**
   * No more audio: waits for the outcome of all that was recorded.
   * @returns {Promise<{text: string, finals: object[], unfinished: object[], done: object}>}
   * @throws {AsrError} the connection ended before that, for good
   */
  async stop() {
    if (this.#opening) {
      this.close();
      return { text: "", finals: [], unfinished: [], done: null };
    }
    const recording = this.#open();
    recording.endedAt ??= performance.now();
    await this.#closeMicrophone();
    recording.isEnding = true;
    this.#session?.pump();
    return recording.finished.promise;
  }

  /** End at once; what has no outcome yet is lost. */
  close() {
    const error = stopped();
    if (this.#recording) this.#end(error);
    else if (this.#opening) {
      this.#opening.isStopped = true;
      this.#opening = null;
      this.#emit("closed", { error });
    }
  }

  // ---------------------------------------------------------------- a recording

  #assertIdle() {
    if (this.#recording || this.#opening)
      throw new AsrError("already_open", "a recording is going on", "stop() it, or use another AsrClient");
  }

  #open() {
    if (!this.#recording) throw new AsrError("not_open", "no recording is going on", "start() or open() first");
    return this.#recording;
  }

  /** That still takes audio. */
  #recorded() {
    const recording = this.#open();
    if (recording.endedAt === null) return recording;
    throw new AsrError("not_open", "the recording was stopped", "start a new one");
  }

  #begin(rate) {
    const ring = new AudioRing(this.#options.ringSeconds * rate);
    const told = { finals: [], heldBack: [], unfinished: [], interrupted: new Map() };
    const tries = { isTaken: false, endedAt: null, nAgain: 0, againUntil: 0 };
    const recording = {
      ring,
      rate,
      marks: [],
      isEnding: false,
      ...told,
      ...tries,
      opened: promise(),
      finished: promise(),
    };
    this.#recording = recording;
    this.#nSessions = this.#attempt = 0;
    this.#connect();
    return recording;
  }

  /** Of an utterance without outcome, also of a session before. */
  #range(utterance) {
    return this.#session?.unfinished.get(utterance) ?? this.#recording.interrupted.get(utterance);
  }

  #append(recording, samples) {
    if (this.#recording !== recording || recording?.isEnding) return; // the last of a microphone that was given back
    recording?.ring.append(samples);
    this.#session?.pump();
  }

  /** With its outcome, or with an error. */
  #end(error, done = null) {
    const recording = this.#recording;
    const { finals, heldBack, ring, unfinished, opened, finished } = recording;
    heldBack.sort(byStart);
    while (heldBack.length) this.#emit("final", heldBack.shift());
    const isLost = error && error.code !== "closed" && recording.isTaken;
    for (const range of isLost ? ring.unsettled(0, ring.end) : []) this.#giveUp(recording, range);
    if (this.#recording !== recording) return; // whoever was told has closed it
    this.#recording = null;
    clearTimeout(this.#timer);
    clearTimeout(this.#stableTimer);
    this.#session?.close();
    this.#session = null;
    void this.#closeMicrophone();
    finals.sort(byStart);
    if (error) for (const { reject } of [opened, finished]) reject(error);
    else
      finished.resolve({
        text: finals
          .map(({ text }) => text)
          .filter(Boolean)
          .join(" "),
        finals,
        unfinished,
        done,
      });
    this.#emit("closed", { error });
    this.#change();
  }

  #closeMicrophone() {
    const microphone = this.#microphone;
    this.#microphone = null;
    if (microphone) this.#closing = microphone.close().then(() => this.#emit("microphone", { state: "closed" }));
    return this.#closing;
  }

  // ---------------------------------------------------------------- its sessions

  #connect() {
    const { token, start, WebSocket } = this.#options;
    const recording = this.#recording;
    const audio = { encoding: "pcm_s16le", sample_rate: recording.rate, channels: 1 };
    try {
      this.#session = new Session({
        url: this.#url,
        WebSocket,
        start: { client: `asr-client.js/${VERSION}`, ...start, audio, ...(token ? { token } : {}) },
        recording,
        prefix: this.#nSessions ? `${this.#nSessions}:` : "",
        emit: (type, detail) => this.#receive(type, detail),
        onOver: (end) => this.#lose(end),
        onTick: () => this.#change(),
      });
    } catch (error) {
      const hint = "a page that came by https:// reaches wss:// only";
      this.#end(new AsrError("bad_address", error.message, hint, { cause: error }));
    }
  }

  #receive(type, detail) {
    const [recording, session] = [this.#recording, this.#session];
    const { ring, rate } = recording;
    if (type === "ready") {
      this.#ready = detail;
      this.#stableTimer = setTimeout(() => (this.#attempt = 0), STABLE_MS);
      if (this.#nSessions++) this.#emit("reconnected", {});
      if (this.#recording !== recording) return;
    }
    if (type === "started") {
      recording.isTaken = true;
      recording.opened.resolve(); // its settings are good
    }
    if (type === "final") {
      const sinceEnd = recording.endedAt !== null ? performance.now() - recording.endedAt : 0;
      detail.latency_ms = Math.round(this.positionMs + sinceEnd - detail.audio_end_ms);
      recording.finals.push(detail);
    }
    const isOwed = type === "dropped" && detail.reason !== "cancelled"; // it will have another outcome
    if (isOwed) {
      const [start, end] = [detail.audio_start_ms, detail.audio_end_ms].map((ms) => (ms * rate) / 1000);
      recording.interrupted.set(detail.utterance, { start, end });
    } else if (
      type === "gap" ||
      type === "dropped" ||
      (type === "error" && detail.utterance && OUTCOMES.includes(detail.code))
    )
      recording.unfinished.push(detail);
    if (type === "final" && this.#options.ordered) recording.heldBack.push(detail);
    else this.#emit(type, detail);
    this.#releaseInOrder(recording);
    if (this.#recording !== recording || this.#session !== session) return; // whoever was told has closed it
    const [owed] = session.owed;
    const isUrgent = owed && ring.end - owed[0] > ring.capacity / 2;
    if (type === "done" && recording.isEnding) this.#sendAgain(recording) || this.#end(null, detail);
    else if (owed && !recording.isEnding && (isUrgent || !session.unfinished.size)) this.#sendAgain(recording);
    this.#change();
  }

  /** It will have no text. */
  #giveUp(recording, range) {
    const gap = lose(recording, range);
    if (this.#recording !== recording) return;
    recording.unfinished.push(gap);
    this.#emit("gap", gap);
    this.#releaseInOrder(recording);
  }

  /** Finals are held back until everything that was said before has its outcome. */
  #releaseInOrder(recording) {
    const { heldBack, ring, rate } = recording;
    const isFirst = ({ audio_start_ms }) =>
      ring.unsettled(0, (audio_start_ms * rate) / 1000).every(([start, end]) => end - start < rate * ROUNDING_S);
    heldBack.sort(byStart);
    while (this.#recording === recording && heldBack.length && isFirst(heldBack[0]))
      this.#emit("final", heldBack.shift());
  }

  /**
   * What the server dropped is sent again, to another session, since to this one it has been sent; as often as it would
   * be tried to connect. Returns: whether its session is over.
   */
  #sendAgain(recording) {
    const session = this.#session;
    for (const [from, end] of session.owed) {
      const start = Math.max(from, Math.min(end, recording.ring.start));
      if (start >= recording.againUntil) recording.nAgain = 0; // other audio than the last time
      const isLost = start === end || recording.nAgain === this.#options.maxReconnects;
      if (isLost || from < start) this.#giveUp(recording, [from, isLost ? end : start]);
      if (this.#session !== session) break; // whoever was told has closed it
      if (isLost) continue;
      recording.againUntil = Math.max(recording.againUntil, end);
      session.close();
      this.#reconnect(++recording.nAgain, reconnectDelayMs(recording.nAgain), 1000, "dropped");
      break;
    }
    return this.#session !== session;
  }

  #lose({ code, reason, error, refusal }) {
    const isOver = error ? error.fatal === false || !TRANSIENT.includes(error.code) : !RECONNECT.includes(code);
    this.#attempt += 1;
    const tries =
      this.#nSessions || refusal ? this.#options.maxReconnects : Math.min(this.#options.maxReconnects, FIRST_TRIES);
    if (isOver || this.#attempt > tries) {
      this.#end(this.#failure(code, reason, error, refusal));
      return;
    }
    const why = refusal?.reason ?? error?.code ?? reason;
    this.#reconnect(this.#attempt, reconnectDelayMs(this.#attempt, refusal?.retry_after_ms), code, why);
  }

  /** Its session is over, and the next one begins after that delay. */
  #reconnect(attempt, delay_ms, code, reason) {
    const { unfinished } = this.#session;
    const { ring, rate, interrupted } = this.#recording;
    ring.settleScraps(rate * SCRAP_S);
    for (const [id, { start, end }] of unfinished) interrupted.set(id, { start, end: Math.min(end, ring.end) });
    this.#session = null;
    clearTimeout(this.#stableTimer);
    this.#timer = setTimeout(() => this.#connect(), delay_ms);
    this.#emit("reconnecting", { attempt, delay_ms, code, reason, interrupted: [...unfinished.keys()] });
  }

  #failure(code, reason, error, refusal) {
    if (error) return new AsrError(error.code, error.message, error.hint);
    if (refusal)
      return new AsrError("session_refused", `the server refused the session: ${refusal.reason}`, "try again later");
    if (!this.#nSessions)
      return new AsrError(
        "unreachable",
        `no session at ${this.#url}`,
        `is the server running? ${originHint(this.#url)}`,
      );
    return new AsrError("connection_lost", `the connection ended with ${code} ${reason}`.trim());
  }

  #emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  #change() {
    const { resolve } = this.#changed;
    this.#changed = promise();
    resolve();
  }
}

function byStart(one, other) {
  return one.audio_start_ms - other.audio_start_ms;
}

function originHint(url) {
  const { host, origin } = globalThis.location ?? {};
  if (!origin || new URL(url).host === host) return "asr-ws serve";
  return `does it let this page in? asr-ws serve --allow-origin ${origin}`;
}

function stopped() {
  return new AsrError("closed", "the recording was closed");
}

function asInt16(value) {
  return Math.round(Math.max(-1, Math.min(1, value)) * 32767);
}

/** Promise.withResolvers(), which browsers of 2023 do not have; a rejection that nobody waits for is no error. */
function promise() {
  const made = {};
  made.promise = new Promise((resolve, reject) => Object.assign(made, { resolve, reject }));
  made.promise.catch(() => {});
  return made;
}
