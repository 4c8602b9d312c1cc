/**
 * One session with the server, which is one WebSocket: sends what of the recording has no outcome yet, offers refused
 * utterances again, and gives each event's times and utterance as the recording has them. When it is over it says so,
 * once; the client (asr-client.js) opens the next one.
 *
 * Audio waits in the recording's ring and not in the socket, so that it is not lost with the connection. A session that
 * follows another one sends only what has no outcome, so its audio is pieces of the recording: between two of them an
 * utterance is ended by a `commit`, or words would be joined that were not said together.
 */

import { Ranges } from "./audio-ring.js";

export const PROTOCOL = "asr-ws.v1";

const TICK_MS = 100;
const OPEN_MS = 10_000; // to `ready`
const PING_MS = 5_000; // at most from one to the next, and PING_S of audio
const PING_S = 0.5;
const WINDOW_S = 1; // of audio that the server has not said to have taken, beside the way there and back, twice
const SILENT_MS = 15_000; // nothing came and nothing went: the connection is dead, whatever the browser thinks
const AHEAD_S = 0.5; // audio in the browser's buffer, at most
const BEHIND_S = 1; // from here on the network is called slow
const FRAME_S = 0.1; // of older audio; live audio goes as it comes
const MAX_HELD = 2; // refused utterances that the server keeps for a session: one more would drive out the oldest
const HOLD_MARGIN_MS = 500; // a retry is sent this long before the server's hold ends, at the latest
const JITTER_MS = 250; // upon the server's hint, which has its own
const MAX_WAIT_MS = 60_000; // whatever the server says
const MAX_LOAD_WAIT_MS = 10_000;
const WINDOW_MS = 32; // of the speech detector
export const AWAITS_LOAD = ["starting", "restarting", "unavailable"]; // the reasons for which a model is waited for
export const OUTCOMES = ["decode_failed", "poison_audio"]; // errors that are an utterance's end
const EVENTS = "ready started speech_started partial accepted final busy retry dropped error state done".split(" ");
const OWN = "asr-client.js"; // id of the commits and pings that the user did not ask for

/** Milliseconds to wait before a refused utterance is offered again. */
export function retryDelayMs({ reason, retry_after_ms, estimated_wait_ms, held_ms }, random = Math.random) {
  const load = AWAITS_LOAD.includes(reason) ? Math.min(estimated_wait_ms, MAX_LOAD_WAIT_MS) : 0;
  const delay = Math.max(retry_after_ms, load) + random() * JITTER_MS;
  return Math.round(Math.min(delay, Math.max(held_ms - HOLD_MARGIN_MS, retry_after_ms), MAX_WAIT_MS));
}

/** After so much audio without `speech_started` nobody spoke: its windows may come one by one, pauses between. */
function hearingMs({ prefix_ms, min_speech_ms, silence_ms }) {
  return prefix_ms + min_speech_ms + Math.ceil(min_speech_ms / WINDOW_MS) * silence_ms;
}

/** That audio is given up, and has this outcome: the detail of `gap`. */
export function lose({ ring, rate }, [start, end]) {
  ring.settle(start, end);
  return { audio_start_ms: toMs(start, rate), audio_end_ms: toMs(end, rate) };
}

function toMs(position, rate) {
  return Math.round((position / rate) * 1000);
}

export class Session {
  #socket;
  #recording;
  #emit;
  #onOver;
  #onTick;
  #prefix;
  #timer;
  #heard = performance.now(); // when anything last came or went
  #buffered = 0;
  #fastestMs = Infinity; // there and back
  #pings = []; // that have no pong yet: {id, now, sent, cursor}
  #pinged = { now: performance.now(), sent: 0 }; // the last one
  #acknowledged = 0; // samples of those sent
  #nPings = 0;
  #isReady = false;
  #hearingMs = null; // once it is `started`: a detector that has told of no speech by then has heard none
  #minSpeechMs = 0;
  #error = null; // that ended it
  #refusal = null;
  #pieces = []; // {at: of the session, from: of the recording}, in samples
  #sent = 0; // samples
  #cursor = 0; // of the recording: all before it was sent, or need not be
  #lostUntil = 0; // what could not be kept of that has been told
  #nextMark = 0;
  #barrier = null; // the ping behind a commit: nothing follows before it is known what became of that
  #isEndSent = false;
  #isOver = false;
  #isBehind = false;
  #utterances = new Map(); // by the server's id, until they have their outcome: {start, end, isAdmitted, timer}
  #owed = new Ranges(); // of utterances that were dropped, and not at our wish
  #quiet = 0; // all before it is an utterance's or silence

  /**
   * @param {object} options
   * @param {string} options.url
   * @param {typeof WebSocket} options.WebSocket
   * @param {object} options.start fields of the protocol's `start`
   * @param {object} options.recording {ring, rate, marks, isEnding}: shared with the sessions before and after
   * @param {string} options.prefix what makes its utterances' ids the recording's
   * @param {(type: string, detail: object) => void} options.emit
   * @param {() => void} [options.onTick] now and then
   * @param {(end: {code: number, reason: string, error: object | null, refusal: object | null}) => void} options.onOver
   */
  constructor({ url, WebSocket, start, recording, prefix, emit, onOver, onTick = () => {} }) {
    this.#recording = recording;
    this.#prefix = prefix;
    this.#emit = emit;
    this.#onOver = onOver;
    this.#onTick = onTick;
    this.#socket = new WebSocket(url, PROTOCOL);
    this.#socket.onopen = () => this.#send({ type: "start", ...start });
    this.#socket.onmessage = ({ data }) => this.#receive(data);
    this.#socket.onclose = ({ code, reason }) => this.#over(code, reason);
    this.#timer = setInterval(() => this.#tick(), TICK_MS);
  }

  /** Utterances that have no outcome yet, and their ranges. */
  get unfinished() {
    return new Map([...this.#utterances].map(([id, { start, end }]) => [this.#prefix + id, { start, end }]));
  }

  /** Milliseconds of audio that the server has not been sent. */
  get behindMs() {
    const { ring, rate } = this.#recording;
    return Math.round(((ring.end - this.#cursor) / rate + this.#socket.bufferedAmount / (2 * rate)) * 1000);
  }

  /** Whether a source that can wait may give more: the server has no more to do than keeps its model busy. */
  get hasRoom() {
    const isBusy = this.#count("isRefused") > 0 || this.#count("isAdmitted") > 1;
    return this.#isReady && !isBusy && this.behindMs <= AHEAD_S * 1000;
  }

  /** Whether what comes now had better stay here, since the server may not be able to keep it. */
  get #isHeld() {
    return this.#count("isRefused") > 0 && this.#utterances.size >= MAX_HELD;
  }

  /** What was dropped, and not at our wish: the next session gets what the ring still has of it. */
  get owed() {
    return this.#owed.within(0, Infinity).flatMap((range) => this.#recording.ring.unsettled(...range));
  }

  get #windowSamples() {
    const wayMs = Number.isFinite(this.#fastestMs) ? 2 * this.#fastestMs : 0;
    return (WINDOW_S + wayMs / 1000) * this.#recording.rate;
  }

  #count(state) {
    return [...this.#utterances.values()].filter((entry) => entry[state]).length;
  }

  /** Drop it, or everything unfinished. */
  cancel(utterance) {
    if (utterance === undefined) this.#send({ type: "cancel" });
    else if (utterance.startsWith(this.#prefix))
      this.#send({ type: "cancel", utterance: utterance.slice(this.#prefix.length) });
  }

  /** Without a word to anybody: whoever closes it knows. */
  close() {
    this.#onOver = this.#emit = () => {};
    this.#over(1000, "");
  }

  // ---------------------------------------------------------------- out

  #send(message) {
    if (this.#socket.readyState === 1) this.#socket.send(JSON.stringify(message));
  }

  /** Send on, as far as the socket takes it; then `commit` and `end` where they belong. */
  pump() {
    // Between the server's closing frame and `close` a browser complains of what is sent: it goes to the next session.
    if (!this.#isReady || this.#isEndSent || this.#socket.readyState !== 1) return;
    const { ring, rate, marks } = this.#recording;
    const isHeld = this.#isHeld;
    this.#loseWhatIsGone(isHeld);
    if (this.#isOver) return; // whoever was told has closed it
    const window = this.#windowSamples;
    while (!isHeld && this.#socket.bufferedAmount < AHEAD_S * 2 * rate && this.#sent - this.#acknowledged < window) {
      const [start, end] = ring.unsettled(this.#cursor, ring.end)[0] ?? [ring.end, ring.end];
      if (start !== this.#cursor || !this.#pieces.length) this.#goTo(start);
      if (marks[this.#nextMark]?.at === start) this.#commit(marks[this.#nextMark++].id);
      if (this.#barrier) break;
      if (start === end) break;
      const until = Math.min(end, marks[this.#nextMark]?.at ?? end, start + Math.ceil(FRAME_S * rate));
      const samples = ring.read(start, until - start);
      this.#socket.send(samples);
      this.#sent += samples.length;
      this.#cursor = until;
      if (this.#sent - this.#pinged.sent >= PING_S * rate) this.#ping();
    }
    if (this.#recording.isEnding && this.#cursor === ring.end && this.#nextMark === marks.length) {
      this.#isEndSent = true;
      this.#send({ type: "end" });
    }
    this.#tellBehind(isHeld);
  }

  #commit(id) {
    this.#send({ type: "commit", id });
    this.#barrier = this.#ping();
  }

  /** The next piece begins there. */
  #goTo(start) {
    const { marks } = this.#recording;
    if (this.#sent && this.#pieces.at(-1).at !== this.#sent) {
      const mark = marks[this.#nextMark];
      this.#commit(mark?.at === this.#cursor ? mark.id : OWN);
    }
    while (marks[this.#nextMark]?.at <= start) this.#nextMark++; // that commit, or the session before, has done it
    this.#cursor = start;
    this.#pieces.push({ at: this.#sent, from: start });
  }

  /** What the ring could not keep until it was sent, or sent again: not frame by frame, if it can wait. */
  #loseWhatIsGone(isHeld) {
    const { ring, rate } = this.#recording;
    const lost = this.owed.filter(([start, end]) => Math.min(end, start + rate) <= ring.start);
    if (this.#cursor < ring.start && (!isHeld || ring.start - Math.max(this.#cursor, this.#lostUntil) >= rate)) {
      lost.push(...ring.unsettled(this.#cursor, ring.start));
      this.#lostUntil = ring.start;
    }
    for (const [start, end] of lost)
      if (!this.#isOver) this.#emit("gap", lose(this.#recording, [start, Math.min(end, ring.start)]));
  }

  #tellBehind(isHeld) {
    const isBehind = this.behindMs > (this.#isBehind ? AHEAD_S : BEHIND_S) * 1000;
    const why = isHeld ? "busy" : "network";
    if (isBehind || this.#isBehind) this.#emit("behind", { behind_ms: isBehind ? this.behindMs : 0, why });
    this.#isBehind = isBehind;
  }

  #tick() {
    const now = performance.now();
    const buffered = this.#socket.bufferedAmount;
    if (buffered < this.#buffered) this.#heard = now;
    this.#buffered = buffered;
    const asked = this.#isReady ? (this.#pings[0]?.now ?? now) : this.#heard; // a tab may be left alone for a minute
    if (now - Math.max(asked, this.#heard) > (this.#isReady ? SILENT_MS : OPEN_MS)) this.#over(1006, "no answer");
    else if (this.#isReady) {
      this.pump();
      if (now - this.#pinged.now > PING_MS) this.#ping();
      this.#onTick();
    }
  }

  #ping() {
    const id = `${OWN}:${++this.#nPings}`;
    this.#pinged = { id, now: performance.now(), sent: this.#sent, cursor: this.#cursor };
    this.#pings.push(this.#pinged);
    this.#send({ type: "ping", id });
    return id;
  }

  #over(code, reason) {
    if (this.#isOver) return;
    this.#isOver = true;
    clearInterval(this.#timer);
    for (const { timer } of this.#utterances.values()) clearTimeout(timer);
    const socket = this.#socket;
    Object.assign(socket, { onopen: () => socket.close(1000), onmessage: null, onclose: null });
    // While it connects, a browser complains of that; but it may make one handshake after the other, and this one hang.
    if (socket.readyState || code !== 1000) socket.close(1000);
    else setTimeout(() => socket.close(1000), OPEN_MS);
    this.#onOver({ code, reason, error: this.#error, refusal: this.#refusal });
  }

  // ---------------------------------------------------------------- in

  #receive(data) {
    this.#heard = performance.now();
    let event;
    try {
      event = JSON.parse(data);
    } catch {
      event = null;
    }
    if (typeof event?.type !== "string") return this.#misunderstand("what answers there is no asr_ws server");
    this.#emit("message", event);
    if (this.#isOver) return;
    try {
      if (event.type === "pong") this.#acknowledge(event);
      else if (EVENTS.includes(event.type)) this.#dispatch(event); // what a newer server may add is a `message`
    } catch (error) {
      return this.#misunderstand(`the server's ${event.type} is not as it should be: ${error.message}`);
    }
    this.pump();
  }

  #misunderstand(message) {
    this.#error = { code: "bad_message", message, hint: "check the address" };
    this.#over(1007, "bad_message");
  }

  #dispatch(event) {
    const placed = this.#placed(event); // while it is known where its utterance lies
    switch (event.type) {
      case "ready":
        this.#isReady = true;
        break;
      case "started":
        this.#hearingMs = hearingMs(event.endpointing);
        this.#minSpeechMs = event.endpointing.min_speech_ms;
        break;
      case "speech_started":
        this.#begin(event);
        break;
      case "accepted":
        this.#admit(event);
        break;
      case "busy":
      case "retry":
        if (event.utterance === null) this.#refusal = event;
        else this.#refuse(event, placed);
        break;
      case "final":
        this.#finish(event);
        break;
      case "dropped":
        this.#finish(event, event.reason === "cancelled");
        break;
      case "error":
        if (event.code === "nothing_to_commit" && event.commit === OWN) return;
        if (event.utterance && OUTCOMES.includes(event.code)) this.#finish(event);
        // With other settings than were asked for, the audio would be taken for something else.
        if (event.fatal || this.#hearingMs === null) this.#error = event;
    }
    this.#emit(event.type, placed);
    this.#offerOldest();
    if (this.#error && !this.#error.fatal) this.#over(1008, this.#error.code);
  }

  #begin({ utterance, audio_start_ms }) {
    const start = this.#onset(audio_start_ms);
    for (const entry of this.#utterances.values()) entry.end = Math.min(entry.end, start);
    this.#settleQuiet(start);
    this.#utterances.set(utterance, { start, end: Infinity });
  }

  #admit(event) {
    Object.assign(this.#entry(event), { ...this.#range(event), isAdmitted: true, isRefused: false, isDue: false });
  }

  #refuse(event, placed) {
    const entry = Object.assign(this.#entry(event), { isAdmitted: false, isRefused: true, isDue: false });
    if (!event.held_ms) return; // `dropped` follows
    const delay_ms = retryDelayMs(event);
    entry.timer = setTimeout(() => {
      entry.isDue = true;
      this.#offerOldest();
    }, delay_ms);
    this.#emit("waiting", { ...placed, delay_ms });
  }

  /** Of those that are refused, the one that was said first: else a later one would take its place again and again. */
  #offerOldest() {
    const [id, oldest] = [...this.#utterances].find(([, { isRefused }]) => isRefused) ?? [];
    if (!oldest?.isDue) return;
    oldest.isDue = false;
    this.#send({ type: "retry", utterance: id });
    this.#emit("retrying", { utterance: this.#prefix + id });
  }

  #acknowledge({ id }) {
    const ping = this.#pings.find((ping) => ping.id === id);
    if (!ping) return;
    this.#pings = this.#pings.slice(this.#pings.indexOf(ping) + 1);
    this.#acknowledged = ping.sent;
    if (!this.#pings.some(({ id }) => id === this.#barrier)) this.#barrier = null;
    if (this.#hearingMs !== null) this.#settleQuiet(ping.cursor - (this.#hearingMs * this.#recording.rate) / 1000);
    const ms = Math.round(this.#heard - ping.now);
    this.#fastestMs = Math.min(this.#fastestMs, ms);
    this.#emit("rtt", { ms });
  }

  // ---------------------------------------------------------------- what has its outcome

  /** Of an utterance that is asked about anew: no timer runs. */
  #entry({ utterance }) {
    const entry = this.#utterances.get(utterance) ?? { start: this.#cursor, end: Infinity };
    clearTimeout(entry.timer);
    this.#utterances.set(utterance, entry);
    return entry;
  }

  #range({ utterance, audio_start_ms, audio_end_ms }) {
    if (audio_start_ms === undefined) return this.#utterances.get(utterance) ?? { start: 0, end: 0 };
    return this.#span(audio_start_ms, audio_end_ms);
  }

  #finish(event, isSettled = true) {
    const { start, end } = this.#range(event);
    if (isSettled) this.#recording.ring.settle(start, Math.min(end, this.#cursor));
    else this.#owed.add(start, end); // it was dropped, and not at our wish: the next session gets it
    clearTimeout(this.#utterances.get(event.utterance)?.timer);
    this.#utterances.delete(event.utterance);
  }

  /** What of the audio before that is no utterance's is silence. */
  #settleQuiet(until) {
    const spoken = new Ranges();
    for (const { start, end } of this.#utterances.values()) spoken.add(start, end);
    for (const [start, end] of this.#owed.gaps(this.#quiet, until))
      for (const silence of spoken.gaps(start, end)) this.#recording.ring.settle(...silence);
    this.#quiet = Math.max(this.#quiet, until);
  }

  // ---------------------------------------------------------------- where it is

  /** The number of the piece that has this sample of the session; an end belongs to the piece before it. */
  #pieceAt(sample, isEnd) {
    const near = this.#recording.rate / 1000; // as far as rounding to milliseconds can have moved it
    return Math.max(
      this.#pieces.findLastIndex(({ at }) => (isEnd ? at + near < sample : at <= sample + near)),
      0,
    );
  }

  /** Of an utterance or a part of it: all in the piece in which it ends, though its pre-roll may begin before that. */
  #span(start_ms, end_ms) {
    const start = this.#position(start_ms);
    const end = this.#position(end_ms, true);
    const i = this.#pieceAt(this.#toSamples(end_ms), true);
    return { start: Math.max(start, this.#pieces[i]?.from ?? 0), end };
  }

  /** Where speech begins that lasts on: not in the last of a piece, where its pre-roll may begin. */
  #onset(ms) {
    const sample = this.#toSamples(ms);
    const until = sample + (this.#minSpeechMs * this.#recording.rate) / 1000;
    return this.#pieces.findLast(({ at }) => sample < at && at < until)?.from ?? this.#position(ms);
  }

  #toSamples(ms) {
    return Math.round(((Number.isFinite(ms) ? ms : 0) * this.#recording.rate) / 1000);
  }

  /** Of the recording, in samples. */
  #position(ms, isEnd = false) {
    const sample = this.#toSamples(ms);
    const near = this.#recording.rate / 1000;
    if (!this.#pieces.length) return sample;
    const i = this.#pieceAt(sample, isEnd);
    const { at, from } = this.#pieces[i];
    const n = (this.#pieces[i + 1]?.at ?? this.#sent) - at;
    const position = from + Math.min(Math.max(sample - at, 0), n);
    const mark = this.#recording.marks.findLast((mark) => mark.at <= position + near);
    return mark?.at > position - near ? mark.at : position;
  }

  /** An event with its utterance and its times as the recording has them. */
  #placed(event) {
    const placed = { ...event };
    if (typeof event.utterance === "string") placed.utterance = this.#prefix + event.utterance;
    if (event.commit === OWN) placed.commit = null;
    const { rate } = this.#recording;
    const span = (start, end) => {
      const found = this.#span(start, end);
      return [toMs(found.start, rate), toMs(found.end, rate)];
    };
    const { audio_start_ms: start, audio_end_ms: end } = event;
    if (start !== undefined && end !== undefined) [placed.audio_start_ms, placed.audio_end_ms] = span(start, end);
    else if (start !== undefined) placed.audio_start_ms = toMs(this.#onset(start), rate);
    else if (end !== undefined) placed.audio_end_ms = span(end, end)[1];
    for (const part of ["segments", "words"])
      if (Array.isArray(event[part]))
        placed[part] = event[part].map((of) => {
          const [start_ms, end_ms] = span(of.start_ms, of.end_ms);
          return { ...of, start_ms, end_ms };
        });
    return placed;
  }
}
