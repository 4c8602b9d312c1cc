/** The world of asr-client.js as its unit tests have it: a socket without a network, and a clock that stands still. */

import { mock } from "node:test";
import { AsrClient } from "../../../clients/browser/asr-client.js";

/**
 * A WebSocket whose server is the test.
 *
 * Unrealistic: what is sent has arrived at once, unless `isSlow`, and then it waits until the test drains it (text
 * weighs nothing); messages come in the caller's own stack, not in a turn of the loop; close() brings no `close` event,
 * whatever it is given; there are no `error` events; nothing checks that a frame is within the protocol's limits.
 */
export class FakeSocket {
  static all = [];
  readyState = 0;
  bufferedAmount = 0;
  isSlow = false;
  closed = null; // the code that close() was given
  sent = []; // messages and Int16Arrays

  constructor(url, protocol) {
    Object.assign(this, { url, protocol });
    FakeSocket.all.push(this);
  }

  static get last() {
    return FakeSocket.all.at(-1);
  }

  send(data) {
    if (this.readyState !== 1) throw new Error(`sent in the state ${this.readyState}`);
    if (this.isSlow) this.bufferedAmount += data.byteLength ?? 0;
    this.sent.push(typeof data === "string" ? JSON.parse(data) : data);
  }

  close(code) {
    this.readyState = 3;
    this.closed = code;
  }

  // ---------------------------------------------------------------- the server's end

  open() {
    this.readyState = 1;
    this.onopen();
  }

  receive(...events) {
    for (const event of events) this.onmessage?.({ data: typeof event === "string" ? event : JSON.stringify(event) });
  }

  /** Open, with the settings taken. */
  begin() {
    this.open();
    this.receive(READY, STARTED);
  }

  /** The answers to its first pings that have had none; and to those that come of it. */
  pong(n = Infinity) {
    for (; n > 0 && this.nPongs < this.pings.length; n--) this.receive({ type: "pong", id: this.pings[this.nPongs++] });
  }
  nPongs = 0;

  get pings() {
    return this.sent.filter(({ type }) => type === "ping").map(({ id }) => id);
  }

  /** The server's, or the network's. */
  fail(code, reason = "") {
    this.readyState = 3;
    this.onclose({ code, reason });
  }

  /** What was sent, in short: audio as the range of the recording that it is (see `audio`), one piece as one. */
  get log() {
    const log = [];
    for (const data of this.sent) {
      if (data instanceof Int16Array) {
        const [from, to] = [data[0], data.at(-1) + 1];
        const before = Array.isArray(log.at(-1)) && log.at(-1)[1] === from ? log.pop()[0] : from;
        log.push([before, to]);
      } else if (data.type !== "ping") log.push([data.type, data.id ?? data.utterance].filter(Boolean).join(" "));
    }
    return log;
  }

  /** Samples of audio that came. */
  get nSamples() {
    return this.sent.reduce((sum, data) => sum + (data instanceof Int16Array ? data.length : 0), 0);
  }
}

export const READY = { type: "ready", protocol: "asr-ws.v1", session: "s", languages: ["en"] };
const ENDPOINTING = { prefix_ms: 300, min_speech_ms: 150, silence_ms: 600 };
export const STARTED = { type: "started", seq: 1, endpointing: ENDPOINTING };

export function speech(utterance, audio_start_ms) {
  return { type: "speech_started", utterance, audio_start_ms };
}

export function accepted(utterance, audio_start_ms, audio_end_ms) {
  return { type: "accepted", utterance, attempt: 1, commit: null, audio_start_ms, audio_end_ms };
}

export function final(utterance, audio_start_ms, audio_end_ms, text = "hello") {
  return { type: "final", utterance, text, audio_start_ms, audio_end_ms };
}

export function dropped(utterance, reason, audio_start_ms, audio_end_ms) {
  return { type: "dropped", utterance, reason, audio_start_ms, audio_end_ms };
}

const TYPES = ["ready", "final", "reconnecting", "reconnected", "closed", "error", "gap", "level", "microphone"];

/** A client, and what it told. */
export function client(options = {}) {
  const asr = new AsrClient("http://server/", { WebSocket: FakeSocket, ...options });
  const told = [];
  for (const type of TYPES) asr.addEventListener(type, ({ detail }) => told.push([type, detail]));
  const of = (wanted) => told.filter(([type]) => type === wanted).map(([, detail]) => detail);
  return { asr, told, of };
}

/** The same, with a session. */
export async function opened(options, sampleRate = 1000) {
  const made = client(options);
  const opening = made.asr.open({ sampleRate });
  FakeSocket.last.begin();
  await opening;
  return made;
}

/** Samples of which each is its own position in the recording. */
export function audio(from, to) {
  return Int16Array.from({ length: to - from }, (_, i) => from + i);
}

let now = 0;

/** Before each test. No jitter: Math.random is 0. */
export function stopTime() {
  FakeSocket.all = [];
  now = 0;
  mock.timers.enable({ apis: ["setTimeout", "setInterval"] });
  mock.method(performance, "now", () => now);
  mock.method(Math, "random", () => 0);
}

/** After each test. */
export function freeTime() {
  mock.timers.reset();
  mock.restoreAll();
}

/** Milliseconds pass, in steps that no interval in the code is shorter than. */
export function pass(ms) {
  for (let left = ms; left > 0; left -= 50) {
    const step = Math.min(left, 50);
    now += step;
    mock.timers.tick(step);
  }
}

/** Milliseconds pass in which no timer runs: the browser has put the tab to sleep. */
export function sleep(ms) {
  now += ms;
}

/** Whatever promises can do by now is done: one turn of the loop. */
export function turn() {
  return new Promise(setImmediate);
}
