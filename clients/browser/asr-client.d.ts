/// <reference lib="dom" />
/**
 * Types of asr-client.js, the JavaScript client of an asr_ws server.
 *
 * All times are whole milliseconds. Those named `audio_*_ms`, `start_ms` and `end_ms` count from the recording's first
 * sample, also after a reconnect. An utterance's id is unique in its recording: "u1", and after a reconnect "1:u1".
 * A server may add fields and events: events that are not listed here are seen by their `message`.
 */

export const VERSION: string;

/**
 * Milliseconds before the n-th try (1, 2, ...) in a row to connect again.
 * @param retryAfterMs the server's hint, below which it is never
 * @param random gives numbers within [0, 1)
 */
export function reconnectDelayMs(attempt: number, retryAfterMs?: number, random?: () => number): number;

/** The address of sessions (ws:, wss:) on the server at that address; relative to `base`, by default the page's. */
export function sessionUrl(url: string | URL, base?: string | URL): string;

// ---------------------------------------------------------------- the client

export interface AsrClientOptions {
  /** Of a server that wants one. */
  token?: string;
  /** The settings of its sessions. */
  start?: StartFields;
  /** Seconds of audio that are kept to be sent again after a reconnect (60). */
  ringSeconds?: number;
  /** Finals are held back until everything that was said before has its outcome (false: each comes at once). */
  ordered?: boolean;
  /** Tries in a row to connect again, before it is given up (10; 3 as long as there was no session). */
  maxReconnects?: number;
  /** For `start()`: which microphone, and how; upon one channel with echo cancellation and gain control. */
  microphone?: MediaTrackConstraints;
  /** Where recorder-worklet.js is, if it is not beside asr-client.js. */
  workletUrl?: string | URL;
  /** The class to connect with, where there is no global one. */
  WebSocket?: typeof WebSocket;
}

/** What a recording gave. */
export interface AsrResult {
  /** The texts of all utterances, in the order in which they were said. */
  text: string;
  /** In the same order. */
  finals: Final[];
  /** What has no text: `gap`, `dropped` (cancelled), and `error` of an utterance. */
  unfinished: (Gap | Dropped | ServerError)[];
  /** What the last session accounts for; null: there was none. */
  done: Done | null;
}

export class AsrClient extends EventTarget {
  /** @param url the server's address; by default the page's own (".") */
  constructor(url?: string | URL, options?: AsrClientOptions);

  /** Whether a recording is going on: from start() or open() until `closed`. */
  get isOpen(): boolean;

  /** What the server said of itself; null: nothing yet. */
  get ready(): Ready | null;

  /** Milliseconds of audio since the recording's beginning; 0 without one. */
  get positionMs(): number;

  /**
   * Record what the microphone hears. Resolves once the server has taken the settings.
   * @throws {AsrError} already_open, closed, microphone_*, and what else keeps it from opening
   */
  start(): Promise<void>;

  /**
   * Record what comes by send(). Resolves once the server has taken the settings.
   * @param options.sampleRate Hz, of all of it (16000; 8000..192000)
   * @throws {AsrError} already_open, closed, and what else keeps it from opening
   */
  open(options?: { sampleRate?: number }): Promise<void>;

  /**
   * More audio, mono, at the recording's rate; floats within [-1, 1]. An Int16Array is kept and not copied: do not
   * write to it afterwards. Resolves when the server has no more to do than keeps it busy: a source that can wait (a
   * file) is to wait for it.
   * @throws {AsrError} not_open, bad_audio; or what ended the recording before that
   */
  send(samples: Int16Array | Float32Array): Promise<void>;

  /**
   * The utterance ends here.
   * @param id comes back in its `accepted`, `busy` or `error`: 1 to 128 characters
   * @throws {AsrError} not_open, also after stop()
   */
  commit(id?: string | null): void;

  /**
   * Drop that utterance, or everything up to now that has no outcome yet.
   * @throws {AsrError} not_open
   */
  cancel(utterance?: string): void;

  /**
   * No more audio: waits for the outcome of all that was recorded.
   * @throws {AsrError} not_open; or the connection ended before that, for good
   */
  stop(): Promise<AsrResult>;

  /** End at once; what has no outcome yet is lost. */
  close(): void;

  addEventListener<K extends keyof AsrEventMap>(
    type: K,
    listener: AsrListener<K> | null,
    options?: AddEventListenerOptions | boolean,
  ): void;
  removeEventListener<K extends keyof AsrEventMap>(
    type: K,
    listener: AsrListener<K> | null,
    options?: EventListenerOptions | boolean,
  ): void;
}

export type AsrEvent<K extends keyof AsrEventMap> = CustomEvent<AsrEventMap[K]>;

export type AsrListener<K extends keyof AsrEventMap> =
  ((this: AsrClient, event: AsrEvent<K>) => void) | { handleEvent(event: AsrEvent<K>): void };

// ---------------------------------------------------------------- what goes wrong

/** By the client itself. */
export type AsrClientErrorCode =
  | "already_open" // a recording is going on
  | "not_open" // no recording is going on
  | "closed" // by close(), or by stop() before the microphone was open
  | "bad_address" // no WebSocket can be made with it
  | "bad_audio" // neither an Int16Array nor a Float32Array
  | "unreachable" // there has been no session
  | "connection_lost" // there was one, and there is none any more
  | "session_refused" // the server has as many as it takes
  | "microphone_insecure" // the page is not secure
  | "microphone_refused" // by the user, the browser or the system
  | "microphone_missing"
  | "microphone_busy"
  | "worklet_failed" // recorder-worklet.js is not where it is looked for
  | "microphone_failed";

/** By the server. */
export type ServerErrorCode =
  | "bad_message"
  | "unexpected_message"
  | "unauthorized"
  | "unsupported_format"
  | "unsupported_language"
  | "invalid_samples"
  | "audio_format_suspect"
  | "truncated_pcm"
  | "too_large"
  | "idle"
  | "slow_consumer"
  | "nothing_to_commit"
  | "unknown_utterance"
  | "decode_failed"
  | "poison_audio"
  | "internal";

/** Any other string: a newer server's. */
type Other = string & {};

export class AsrError extends Error {
  constructor(code: AsrError["code"], message: string, hint?: string, options?: ErrorOptions);
  name: "AsrError";
  /** For programs. */
  code: AsrClientErrorCode | ServerErrorCode | Other;
  /** What to do about it; may be empty. */
  hint: string;
}

// ---------------------------------------------------------------- events

/** Event's name -> its `detail`. */
export interface AsrEventMap {
  // The protocol's.
  ready: Ready;
  started: Started;
  speech_started: SpeechStarted;
  partial: PartialText;
  accepted: Accepted;
  final: Final;
  busy: Busy;
  retry: Retry;
  dropped: Dropped;
  error: ServerError;
  state: State;
  done: Done;

  // The client's own.
  /** What the server says, as it says it: times and utterances are the session's. Before the event itself. */
  message: ServerMessage;
  waiting: Waiting;
  retrying: Retrying;
  reconnecting: Reconnecting;
  /** There is another session: what has no outcome is sent again. Before its `ready`. */
  reconnected: Record<string, never>;
  gap: Gap;
  behind: Behind;
  rtt: RoundTrip;
  level: Level;
  microphone: MicrophoneState;
  closed: Closed;
}

interface ServerEvent<T extends string> {
  type: T;
  /** 1, 2, 3 ... per session; not in `ready` and a session's own refusal. */
  seq?: number;
}

export interface ServerMessage {
  type: string;
  seq?: number;
  [field: string]: unknown;
}

export type ServiceState = "starting" | "ready" | "restarting" | "unavailable" | "draining";

/** The session is open. */
export interface Ready extends ServerEvent<"ready"> {
  protocol: string;
  session: string;
  /** Its name and version. */
  server: string;
  model: string;
  /** Codes that `start.language` takes. */
  languages: string[];
  state: ServiceState;
  limits: Limits;
}

export interface Limits {
  queue_capacity: number;
  max_wait_ms: number;
  max_utterance_ms: number;
  max_message_bytes: number;
  max_sessions: number;
  hold_ms: number;
}

/** The settings in force. */
export interface Started extends ServerEvent<"started"> {
  audio: AudioFormat;
  /** Null: detected. */
  language: string | null;
  task: "transcribe" | "translate";
  partials: boolean;
  words: boolean;
  endpointing: Required<Endpointing>;
  max_wait_ms: number;
}

export interface AudioFormat {
  encoding: string;
  /** Hz. */
  sample_rate: number;
  channels: number;
}

/** An utterance is being heard. */
export interface SpeechStarted extends ServerEvent<"speech_started"> {
  utterance: string;
  audio_start_ms: number;
}

/** The text so far is `stable + unstable`; within an utterance `stable` only ever grows. */
export interface PartialText extends ServerEvent<"partial"> {
  utterance: string;
  stable: string;
  unstable: string;
  audio_end_ms: number;
}

/** The utterance has ended and is admitted. */
export interface Accepted extends ServerEvent<"accepted"> {
  utterance: string;
  /** 1, 2, ... */
  attempt: number;
  /** The id of the commit() that ended it. */
  commit: string | null;
  /** Decodes ahead of it; 0: it is decoded now. */
  position: number;
  estimated_wait_ms: number;
  estimated_final_ms: number;
  audio_start_ms: number;
  audio_end_ms: number;
  endpoint: "silence" | "commit" | "max_length" | "end";
}

/** The utterance's text; it replaces every partial. */
export interface Final extends ServerEvent<"final"> {
  utterance: string;
  attempt: number;
  text: string;
  language: string;
  /** 0..1 */
  language_probability: number;
  audio_start_ms: number;
  audio_end_ms: number;
  /** In the queue. */
  wait_ms: number;
  decode_ms: number;
  segments: Segment[];
  /** Only with `start.words`. */
  words?: Word[];
  /** Why the text was emptied; null: it was not. */
  filtered: string | null;
  /** The recognizer died after the text, before it had said so. */
  recovered?: boolean;
  /** The client's own: from the utterance's end to its text, where the audio comes as it is spoken. */
  latency_ms: number;
}

export interface Segment {
  text: string;
  start_ms: number;
  end_ms: number;
  avg_logprob: number;
  /** 0..1 */
  no_speech_prob: number;
}

export interface Word {
  /** With the space before it, where there is one. */
  word: string;
  start_ms: number;
  end_ms: number;
  /** 0..1 */
  probability: number;
}

export type RefusalReason =
  | "queue_full"
  | "predicted_wait"
  | "fair_share"
  | "retry_early"
  | "starting"
  | "restarting"
  | "unavailable"
  | "draining"
  | "max_sessions"
  | "deadline"
  | "worker_crashed"
  | "worker_hung"
  | Other;

interface Refusal<T extends "busy" | "retry"> extends ServerEvent<T> {
  /** Null: the session itself. */
  utterance: string | null;
  attempt: number;
  /** The id of the commit() that ended it. */
  commit: string | null;
  /** 429: the caller's own doing; 503: the server's state. */
  status: 429 | 503;
  reason: RefusalReason;
  /** 500..1500 */
  retry_after_ms: number;
  /** Honest, and without bounds. */
  estimated_wait_ms: number;
  queue_depth: number;
  queue_capacity: number;
  retryable: boolean;
  /** How long the server keeps the audio; 0: it does not. */
  held_ms: number;
}

/** Not admitted. The client offers it again by itself, if it is held. */
export interface Busy extends Refusal<"busy"> {}

/** Was admitted, could not be finished. The client offers it again by itself, if it is held. */
export interface Retry extends Refusal<"retry"> {
  waited_ms: number;
}

/**
 * The utterance is gone, without text. If it was not `cancelled`, its audio is sent again to another session as soon as
 * nothing else is under way: then it ends in a `final`, `error` or `gap`.
 */
export interface Dropped extends ServerEvent<"dropped"> {
  utterance: string;
  reason: "cancelled" | "hold_expired" | "evicted" | "not_held";
  audio_start_ms: number;
  audio_end_ms: number;
}

/** Somebody did something wrong. `closed` follows if that ends the recording. */
export interface ServerError extends ServerEvent<"error"> {
  code: ServerErrorCode | Other;
  message: string;
  hint: string;
  /** The session ends by it. */
  fatal: boolean;
  utterance: string | null;
  /** The id of the commit() that it answers. */
  commit: string | null;
}

/** The service changed. */
export interface State extends ServerEvent<"state"> {
  state: ServiceState;
  partials: "on" | "paused";
}

/** What the session accounts for: `received_ms` is the sum of the next four. */
export interface Done extends ServerEvent<"done"> {
  received_ms: number;
  decoded_ms: number;
  silence_ms: number;
  refused_ms: number;
  /** Anything but 0 is a bug of the server's. */
  lost_ms: number;
  finals: number;
  busy: number;
  retries: number;
  dropped: number;
  errors: number;
}

/** A refused utterance is offered again after `delay_ms`. Before the `busy` or `retry` itself. */
export type Waiting = (Busy | Retry) & { utterance: string; delay_ms: number };

/** It is offered again now. */
export interface Retrying {
  utterance: string;
}

/** The connection is away; the next try comes after `delay_ms`. */
export interface Reconnecting {
  /** 1, 2, ... in a row. */
  attempt: number;
  delay_ms: number;
  /** The WebSocket's close code. */
  code: number;
  /** May be empty. "dropped": the server is there, and gets again what it has dropped. */
  reason: string;
  /** Ids of utterances that had no outcome: their audio is sent again, under other ids. */
  interrupted: string[];
}

/** Audio that was lost: the ring had no room for it until it had an outcome, or the server would not take it. */
export interface Gap {
  audio_start_ms: number;
  audio_end_ms: number;
}

/** So much audio has not been sent. 0: it has caught up. */
export interface Behind {
  behind_ms: number;
  /** network: it is slow, or the server is behind in taking it; busy: the server has refused as many utterances as it keeps, and gets no more for now. */
  why: "network" | "busy";
}

/** A ping's way to the server and back, behind the audio before it. */
export interface RoundTrip {
  ms: number;
}

/** Of the microphone's last 40 ms, within 0..1. */
export interface Level {
  peak: number;
  rms: number;
}

/** lost: unplugged, or taken away; the recording is stopped. */
export interface MicrophoneState {
  state: "open" | "lost" | "closed";
}

/** The recording is over; null: by stop(), with all outcomes. */
export interface Closed {
  error: AsrError | null;
}

// ---------------------------------------------------------------- settings

/** The protocol's `start`; what is left out is the server's default, as given in parentheses. */
export interface StartFields {
  /** One of `ready.languages`; null: detected (null). */
  language?: string | null;
  /** translate: into English (transcribe). */
  task?: "transcribe" | "translate";
  /** Text as it might stand before, to set names and style; with `hotwords` at most 800 characters. */
  prompt?: string | null;
  hotwords?: string | null;
  /** Events `partial` (true). */
  partials?: boolean;
  /** Times of words, in `final` (false). */
  words?: boolean;
  endpointing?: Endpointing;
  /** In the queue; at most the server's (that). */
  max_wait_ms?: number | null;
  /** The program's name, for the server's log. */
  client?: string | null;
}

/** Where utterances end. */
export interface Endpointing {
  /** manual: by commit() alone (server). */
  mode?: "server" | "manual";
  /** After speech, that end it (600; 100..5000). */
  silence_ms?: number;
  /** Before speech, that belong to it (300; 0..1000). */
  prefix_ms?: number;
  /** Less is silence (150; 30..1000). */
  min_speech_ms?: number;
  /** (30000; 1000..30000) */
  max_utterance_ms?: number;
  /** Probability of speech (0.5; 0.05..0.95). */
  threshold?: number;
}

// ---------------------------------------------------------------- the microphone alone

export interface MicrophoneOptions {
  onAudio: (samples: Int16Array, level: Level) => void;
  /** It was unplugged, or taken away by the browser or the system. */
  onEnded?: () => void;
  constraints?: MediaTrackConstraints;
  /** Where recorder-worklet.js is, if it is not beside asr-client.js. */
  workletUrl?: string | URL;
}

/** What `AsrClient.start()` records with, for programs that record without a server. */
export class Microphone {
  private constructor();
  /** @throws {AsrError} microphone_* */
  static open(options: MicrophoneOptions): Promise<Microphone>;
  /** Hz. */
  get sampleRate(): number;
  /** Give it back, once the last of its audio has come. */
  close(): Promise<void>;
}
