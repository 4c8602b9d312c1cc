/**
 * One session on a scripted socket (see FakeSocket for what is unrealistic about it) and a clock that stands still.
 * Most recordings have 1000 samples a second: a sample is a millisecond, and its own position (see `audio`).
 */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { afterEach, beforeEach, describe, test } from "node:test";
import { PROTOCOL, Session, retryDelayMs } from "../../../clients/browser/asr-session.js";
import { AudioRing } from "../../../clients/browser/audio-ring.js";
import {
  FakeSocket,
  READY,
  STARTED,
  accepted,
  audio,
  dropped,
  final,
  freeTime,
  pass,
  sleep,
  speech,
  stopTime,
} from "./fakes.mjs";

const START = { client: "test", language: "en" };
const OWN = "asr-client.js";
const SCHEMA = new URL("../../../asr_ws/assets/asr-ws.v1.schema.json", import.meta.url);

/** A recording, and sessions of it, whose server has taken all audio at once, unless it `isMute`. */
class Scene {
  events = [];
  ends = [];
  isMute = false;

  constructor({ rate = 1000, ringSeconds = 60 } = {}) {
    this.recording = { ring: new AudioRing(ringSeconds * rate), rate, marks: [], isEnding: false };
  }

  connect(prefix = "") {
    this.session = new Session({
      url: "ws://server/v1/stream",
      WebSocket: FakeSocket,
      start: START,
      recording: this.recording,
      prefix,
      emit: (type, detail) => {
        this.events.push([type, detail]);
        this.onEvent?.(type);
      },
      onOver: (end) => this.ends.push(end),
    });
    this.socket = FakeSocket.last;
    return this;
  }

  begin(prefix) {
    this.connect(prefix).socket.begin();
    this.#answer();
    return this;
  }

  /** The connection ends, and the next session begins. */
  again(prefix = "1:") {
    this.socket.fail(1006);
    return this.begin(prefix);
  }

  record(n) {
    const { ring } = this.recording;
    ring.append(audio(ring.end, ring.end + n));
    this.session.pump();
    this.#answer();
  }

  commit(id = null) {
    this.recording.marks.push({ at: this.recording.ring.end, id });
    this.session.pump();
    this.#answer();
  }

  end() {
    this.recording.isEnding = true;
    this.session.pump();
    this.#answer();
  }

  #answer() {
    if (!this.isMute) this.socket.pong();
  }

  of(...types) {
    return this.events.filter(([type]) => types.includes(type)).map(([, detail]) => detail);
  }

  /** What a next session would send. */
  get unsettled() {
    const { ring } = this.recording;
    return ring.unsettled(0, ring.end);
  }
}

const HINT = { retry_after_ms: 800, estimated_wait_ms: 0, held_ms: 60_000 };

function busy(utterance, fields = {}) {
  return { type: "busy", utterance, attempt: 1, commit: null, reason: "queue_full", ...HINT, ...fields };
}

beforeEach(stopTime);
afterEach(freeTime);

describe("beginning", () => {
  test("it asks for the protocol and says start first, whatever was recorded before", () => {
    const scene = new Scene().connect();
    scene.record(300);
    scene.commit("c1");
    scene.socket.open();
    assert.deepEqual([scene.socket.url, scene.socket.protocol], ["ws://server/v1/stream", PROTOCOL]);
    assert.deepEqual(scene.socket.sent, [{ type: "start", ...START }]);
  });

  test("nothing but start goes before ready", () => {
    const scene = new Scene().connect();
    scene.socket.open();
    scene.record(300);
    scene.commit("c1");
    scene.end();
    pass(9000);
    assert.deepEqual(scene.socket.log, ["start"]);
    scene.socket.receive(READY);
    assert.deepEqual(scene.socket.log, ["start", [0, 300], "commit c1", "end"]);
  });

  test("a refusal of the settings ends it, though the server would go on with its own", () => {
    const error = { type: "error", code: "bad_message", message: "no", hint: "yes", fatal: false, utterance: null };
    const scene = new Scene().connect();
    scene.socket.open();
    scene.socket.receive(READY, error);
    assert.deepEqual(scene.ends, [{ code: 1008, reason: "bad_message", error, refusal: null }]);
    assert.equal(scene.socket.closed, 1000);
    assert.deepEqual(scene.of("error"), [error]);
  });

  test("after started an error that is not fatal ends nothing", () => {
    const scene = new Scene().begin();
    scene.socket.receive({ type: "error", code: "invalid_samples", fatal: false, utterance: null });
    assert.deepEqual([scene.ends, scene.socket.closed], [[], null]);
  });

  test("a fatal error is told with the close that follows it", () => {
    const error = { type: "error", code: "idle", message: "", hint: "", fatal: true, utterance: null };
    const scene = new Scene().begin();
    scene.socket.receive(error);
    assert.deepEqual(scene.ends, []);
    scene.socket.fail(1008, "idle");
    assert.deepEqual(scene.ends, [{ code: 1008, reason: "idle", error, refusal: null }]);
  });

  test("a refused session is told with the close that follows it", () => {
    const refusal = busy(null, { attempt: 0, reason: "max_sessions" });
    const scene = new Scene().connect();
    scene.socket.open();
    scene.socket.receive(refusal);
    scene.socket.fail(1013);
    assert.deepEqual(scene.ends, [{ code: 1013, reason: "", error: null, refusal }]);
    assert.deepEqual(scene.of("waiting"), []);
  });

  for (const text of ["<html>", "null", "7", "[]", "{}", '{"type":1}'])
    test(`what is no event of the protocol ends it: ${text}`, () => {
      const scene = new Scene().connect();
      scene.socket.open();
      scene.socket.receive(text);
      assert.equal(scene.socket.closed, 1000);
      const [{ code, error }] = scene.ends;
      assert.deepEqual([scene.ends.length, code, error.code], [1, 1007, "bad_message"]);
      assert.deepEqual(scene.events, []);
    });

  test("binary data ends it", () => {
    const scene = new Scene().begin();
    scene.socket.onmessage({ data: new ArrayBuffer(4) });
    assert.equal(scene.ends[0].code, 1007);
  });
});

describe("sending", () => {
  test("live audio goes as it comes", () => {
    const scene = new Scene().begin();
    scene.record(40);
    scene.record(40);
    assert.deepEqual(scene.socket.sent.slice(1), [audio(0, 40), audio(40, 80)]);
  });

  test("older audio goes in frames of 100 ms", () => {
    const scene = new Scene().connect();
    scene.record(250);
    scene.socket.begin();
    assert.deepEqual(scene.socket.sent.slice(1), [audio(0, 100), audio(100, 200), audio(200, 250)]);
  });

  test("half a second of audio in the socket is enough, the rest follows as it drains", () => {
    const scene = new Scene().begin();
    scene.socket.isSlow = true;
    scene.record(1200);
    assert.deepEqual([scene.socket.nSamples, scene.session.behindMs], [500, 1200]);
    scene.socket.bufferedAmount -= 400; // bytes: 200 samples
    pass(100);
    assert.deepEqual([scene.socket.nSamples, scene.session.behindMs], [700, 1000]);
    scene.socket.pong();
    scene.socket.bufferedAmount = 0;
    pass(100);
    assert.deepEqual(scene.socket.log, ["start", [0, 1200]]);
  });

  test("a second that the server has not taken is enough, the rest follows its pongs", () => {
    const scene = new Scene().begin();
    scene.isMute = true;
    scene.record(20_000);
    pass(1000);
    assert.equal(scene.socket.nSamples, 1000);
    scene.socket.receive({ type: "pong", id: scene.socket.pings[0] });
    assert.equal(scene.socket.nSamples > 1000, true);
    scene.socket.pong();
    assert.deepEqual(scene.socket.log, ["start", [0, 20_000]]);
  });

  test("on a long way more is on it: twice what the fastest pong took", () => {
    const scene = new Scene().begin();
    scene.isMute = true;
    scene.record(20_000);
    pass(300);
    scene.socket.pong(1); // of half a second
    assert.equal(scene.socket.nSamples, 500 + 1000 + 600);
    pass(900);
    scene.socket.pong(1); // a slower one, of the whole first second
    assert.equal(scene.socket.nSamples, 1000 + 1000 + 600);
  });

  test("a pong answers the pings before its own too", () => {
    const scene = new Scene().begin();
    scene.isMute = true;
    scene.record(20_000);
    const [first, second] = scene.socket.pings;
    scene.socket.receive({ type: "pong", id: second });
    assert.equal(scene.socket.nSamples, 2000);
    scene.socket.receive({ type: "pong", id: first }); // not awaited any more: no step back
    scene.socket.receive({ type: "pong", id: "mine" });
    assert.equal(scene.socket.nSamples, 2000);
    assert.deepEqual(scene.of("rtt"), [{ ms: 0 }]);
  });

  test("a ping goes with each half second of audio, and else every five seconds", () => {
    const scene = new Scene().begin();
    scene.record(499);
    assert.deepEqual(scene.socket.pings, []);
    scene.record(1);
    assert.deepEqual(scene.socket.pings, [`${OWN}:1`]);
    pass(5000);
    assert.deepEqual(scene.socket.pings, [`${OWN}:1`]);
    pass(100);
    assert.deepEqual(scene.socket.pings, [`${OWN}:1`, `${OWN}:2`]);
  });

  test("the round trip is told in place of the pong", () => {
    const scene = new Scene().begin();
    scene.isMute = true;
    scene.record(500);
    pass(200);
    scene.socket.pong();
    assert.deepEqual([scene.of("rtt"), scene.of("pong")], [[{ ms: 200 }], []]);
  });

  test("commits go exactly where they belong", () => {
    const scene = new Scene().begin();
    for (const [n, id] of [
      [130, "c1"],
      [1, "c2"],
      [250, "c3"],
    ]) {
      scene.record(n);
      scene.commit(id);
    }
    scene.record(10);
    const pieces = [[0, 130], "commit c1", [130, 131], "commit c2", [131, 381], "commit c3", [381, 391]];
    assert.deepEqual(scene.socket.log, ["start", ...pieces]);
  });

  test("commits go exactly where they belong while the session is behind", () => {
    const scene = new Scene().connect();
    for (const [n, id] of [
      [530, "c1"],
      [1, "c2"],
      [6000, "c3"],
    ]) {
      scene.record(n);
      scene.commit(id);
    }
    scene.socket.isSlow = true;
    scene.socket.begin();
    for (let i = 0; i < 40; i++) {
      scene.socket.bufferedAmount = 0;
      scene.socket.pong();
      pass(100);
    }
    const pieces = [[0, 530], "commit c1", [530, 531], "commit c2", [531, 6531], "commit c3"];
    assert.deepEqual(scene.socket.log, ["start", ...pieces]);
  });

  test("nothing follows a commit before its pong has come: it is known by then what became of it", () => {
    const scene = new Scene().begin();
    scene.isMute = true;
    scene.record(130);
    scene.commit("c1");
    scene.record(20);
    scene.commit("c2");
    scene.record(20);
    assert.deepEqual(scene.socket.log, ["start", [0, 130], "commit c1"]);
    scene.socket.pong(1);
    assert.deepEqual(scene.socket.log, ["start", [0, 130], "commit c1", [130, 150], "commit c2"]);
    scene.end();
    assert.equal(scene.socket.log.at(-1), "commit c2");
    scene.socket.pong(1);
    assert.deepEqual(scene.socket.log.slice(-2), [[150, 170], "end"]);
  });

  test("two commits in one place both go", () => {
    const scene = new Scene().begin();
    scene.record(100);
    scene.commit("c1");
    scene.commit("c2");
    assert.deepEqual(scene.socket.log, ["start", [0, 100], "commit c1", "commit c2"]);
  });

  test("end goes once, after all audio", () => {
    const scene = new Scene().begin();
    scene.socket.isSlow = true;
    scene.record(700);
    scene.end();
    assert.deepEqual(scene.socket.log, ["start", [0, 500]]);
    scene.socket.bufferedAmount = 0;
    pass(300);
    assert.deepEqual(scene.socket.log, ["start", [0, 700], "end"]);
  });

  test("a commit at the very end goes before end", () => {
    const scene = new Scene().begin();
    scene.socket.isSlow = true;
    scene.record(500); // as much as the socket takes
    scene.commit("c1");
    scene.end();
    scene.socket.bufferedAmount = 0;
    pass(100);
    assert.deepEqual(scene.socket.log, ["start", [0, 500], "commit c1", "end"]);
  });

  test("a recording of nothing ends at once", () => {
    const scene = new Scene().begin();
    scene.end();
    assert.deepEqual(scene.socket.log, ["start", "end"]);
  });

  test("a slow network is told from one second on, until less than half a second waits", () => {
    const scene = new Scene().begin();
    scene.socket.isSlow = true;
    scene.record(1000);
    assert.deepEqual(scene.of("behind"), []);
    scene.record(1);
    assert.deepEqual(scene.of("behind"), [{ behind_ms: 1001, why: "network" }]);
    scene.socket.bufferedAmount = 0; // 501 still wait
    pass(100);
    assert.deepEqual(scene.of("behind").at(-1), { behind_ms: 501, why: "network" });
    scene.socket.bufferedAmount = 0;
    pass(100);
    const told = scene.of("behind");
    assert.deepEqual(told.at(-1), { behind_ms: 0, why: "network" });
    pass(1000);
    assert.equal(scene.of("behind").length, told.length);
  });

  test("audio that the ring could not keep until it was sent is a gap, and what is around it stays apart", () => {
    const scene = new Scene({ ringSeconds: 1 }).begin();
    scene.socket.isSlow = true;
    for (let i = 0; i < 20; i++) scene.record(100);
    assert.deepEqual([scene.socket.log, scene.of("gap").length], [["start", [0, 500]], 5]);
    scene.socket.bufferedAmount = 0;
    scene.socket.isSlow = false;
    pass(100);
    scene.socket.pong();
    const gaps = scene.of("gap").map(({ audio_start_ms, audio_end_ms }) => [audio_start_ms, audio_end_ms]);
    assert.deepEqual(gaps, [
      [500, 600],
      [600, 700],
      [700, 800],
      [800, 900],
      [900, 1000],
    ]);
    assert.deepEqual(scene.socket.log, ["start", [0, 500], `commit ${OWN}`, [1000, 2000]]);
    assert.deepEqual(scene.unsettled, [
      [0, 500],
      [1000, 2000],
    ]);
  });

  test("audio from before the connection that the ring could not keep is one gap", () => {
    const scene = new Scene({ ringSeconds: 1 }).connect();
    for (let i = 0; i < 20; i++) scene.record(100);
    scene.socket.begin();
    assert.deepEqual(scene.of("gap"), [{ audio_start_ms: 0, audio_end_ms: 1000 }]);
    assert.deepEqual(scene.socket.log, ["start", [1000, 2000]]);
  });

  test("cancel names its own utterances by the server's id, and no others", () => {
    const scene = new Scene().begin("2:");
    scene.session.cancel("2:u1");
    scene.session.cancel("1:u1");
    scene.session.cancel();
    assert.deepEqual(scene.socket.log, ["start", "cancel u1", "cancel"]);
  });
});

describe("after a reconnect", () => {
  test("only what has no outcome is sent, with a commit between its pieces", () => {
    const scene = new Scene().begin();
    scene.record(4000);
    scene.socket.receive(final("u1", 0, 1000), final("u2", 2000, 3000));
    scene.again();
    assert.deepEqual(scene.socket.log, ["start", [1000, 2000], `commit ${OWN}`, [3000, 4000]]);
    scene.record(50);
    assert.deepEqual(scene.socket.log.at(-1), [3000, 4050]);
  });

  test("no commit stands before the first piece, nor behind the last before its end", () => {
    const scene = new Scene().begin();
    scene.record(3000);
    scene.socket.receive(final("u1", 0, 1000));
    scene.again();
    scene.end();
    assert.deepEqual(scene.socket.log, ["start", [1000, 3000], "end"]);
  });

  test("nothing is sent again if all has its outcome", () => {
    const scene = new Scene().begin();
    scene.record(1000);
    scene.socket.receive(final("u1", 0, 1000));
    scene.again();
    scene.record(20);
    assert.deepEqual(scene.socket.log, ["start", [1000, 1020]]);
  });

  test("the user's commits within pieces are sent again, those in settled audio are not", () => {
    const scene = new Scene().begin();
    for (const id of ["c1", "c2", "c3"]) {
      scene.record(1000);
      scene.commit(id);
    }
    scene.record(100);
    scene.socket.receive(final("u1", 0, 1000));
    scene.again();
    assert.deepEqual(scene.socket.log, ["start", [1000, 2000], "commit c2", [2000, 3000], "commit c3", [3000, 3100]]);
  });

  test("the user's commit at a piece's end keeps its id", () => {
    const scene = new Scene().begin();
    for (const id of ["c1", "c2"]) {
      scene.record(1000);
      scene.commit(id);
    }
    scene.record(100);
    scene.socket.receive(final("u2", 1000, 2000));
    scene.again();
    assert.deepEqual(scene.socket.log, ["start", [0, 1000], "commit c1", [2000, 2100]]);
  });

  /** [1000, 2000) and [3000, 4000) of the recording are 0..1000 and 1000..2000 of the session. */
  function twoPieces() {
    const scene = new Scene().begin();
    scene.record(4000);
    scene.socket.receive(final("u1", 0, 1000), final("u2", 2000, 3000));
    return scene.again("3:");
  }

  test("utterances and times are the recording's", () => {
    const scene = twoPieces();
    scene.socket.receive(speech("u1", 100), accepted("u1", 100, 900), final("u1", 100, 900));
    scene.socket.receive(speech("u2", 1300), { type: "partial", utterance: "u2", audio_end_ms: 1700 });
    assert.deepEqual(scene.of("speech_started").slice(-2), [speech("3:u1", 1100), speech("3:u2", 3300)]);
    assert.deepEqual(scene.of("accepted"), [accepted("3:u1", 1100, 1900)]);
    assert.deepEqual(scene.of("final").at(-1), final("3:u1", 1100, 1900));
    assert.equal(scene.of("partial")[0].audio_end_ms, 3700);
    assert.deepEqual(scene.session.unfinished, new Map([["3:u2", { start: 3300, end: Infinity }]]));
  });

  test("a beginning at a piece's edge is the next piece's, an end the former's", () => {
    const scene = twoPieces();
    scene.socket.receive(accepted("u1", 0, 1000), accepted("u2", 1000, 2000));
    assert.deepEqual(scene.of("accepted"), [accepted("3:u1", 1000, 2000), accepted("3:u2", 3000, 4000)]);
  });

  test("segments and words are placed too", () => {
    const scene = twoPieces();
    scene.socket.receive({
      ...final("u2", 1000, 2000),
      segments: [{ text: "hello", start_ms: 1000, end_ms: 1500, avg_logprob: -0.5 }],
      words: [{ word: "hello", start_ms: 1250, end_ms: 2000, probability: 0.9 }],
    });
    const { segments, words } = scene.of("final").at(-1);
    assert.deepEqual(segments, [{ text: "hello", start_ms: 3000, end_ms: 3500, avg_logprob: -0.5 }]);
    assert.deepEqual(words, [{ word: "hello", start_ms: 3250, end_ms: 4000, probability: 0.9 }]);
  });

  test("what its utterances settle is the recording's", () => {
    const scene = twoPieces();
    scene.socket.receive(final("u2", 1200, 1800));
    assert.deepEqual(scene.unsettled, [
      [1000, 2000],
      [3000, 3200],
      [3800, 4000],
    ]);
  });

  test("an utterance lies in the piece in which it ends, though its pre-roll begins in the one before", () => {
    const scene = new Scene();
    scene.recording.ring.append(audio(0, 9000));
    scene.recording.ring.settle(0, 1000);
    scene.recording.ring.settle(1400, 5000); // pieces: 1000 to 1400, 5000 to 9000
    scene.begin("1:");
    scene.socket.receive(speech("u1", 300), accepted("u1", 300, 2400), final("u1", 300, 2400));
    assert.deepEqual(
      scene.of("speech_started", "accepted", "final").map(({ audio_start_ms }) => audio_start_ms),
      [5000, 5000, 5000],
    );
    assert.deepEqual(scene.unsettled.slice(-1), [[7000, 9000]]);
  });

  // Times are whole milliseconds: at 44.1 kHz a piece's edge is next to one, before it or behind it.
  for (const [ms, told] of [
    [1001, "behind"],
    [1007, "before"],
  ])
    test(`an edge that is ${told} its rounded millisecond still is the edge`, () => {
      const scene = new Scene({ rate: 44_100 });
      const edge = Math.floor((ms * 44_100) / 1000) + (told === "behind" ? 1 : 0);
      scene.recording.ring.append(new Int16Array(10 * 44_100));
      scene.recording.ring.settle(0, 44_100);
      scene.recording.ring.settle(44_100 + edge, 9 * 44_100); // pieces: `edge` samples from 1 s on; from 9 s on
      scene.begin("1:");
      const edgeMs = Math.round((edge * 1000) / 44_100); // as the server tells it
      assert.equal(edgeMs, ms);
      scene.socket.receive(accepted("u1", 0, edgeMs), accepted("u2", edgeMs, edgeMs + 500));
      const [first, second] = scene.of("accepted");
      assert.ok(Math.abs(first.audio_end_ms - (1000 + ms)) <= 1, `u1 ends at ${first.audio_end_ms}`);
      assert.ok(Math.abs(second.audio_start_ms - 9000) <= 1, `u2 begins at ${second.audio_start_ms}`);
    });
});

describe("outcomes", () => {
  const outcomes = {
    final: final("u1", 200, 800),
    "dropped, cancelled": dropped("u1", "cancelled", 200, 800),
    "error, decode_failed": { type: "error", code: "decode_failed", fatal: false, utterance: "u1", commit: null },
    "error, poison_audio": { type: "error", code: "poison_audio", fatal: false, utterance: "u1", commit: null },
  };
  for (const [name, event] of Object.entries(outcomes))
    test(`${name}: is not sent again`, () => {
      const scene = new Scene().begin();
      scene.record(1000);
      scene.socket.receive(accepted("u1", 200, 800), event);
      assert.deepEqual(scene.unsettled, [
        [0, 200],
        [800, 1000],
      ]);
      assert.equal(scene.session.unfinished.size, 0);
    });

  for (const reason of ["evicted", "not_held", "hold_expired"])
    test(`dropped, ${reason}: is sent again by the next session`, () => {
      const scene = new Scene().begin();
      scene.record(1000);
      scene.socket.receive(accepted("u1", 200, 800), dropped("u1", reason, 200, 800));
      assert.equal(scene.session.unfinished.size, 0);
      assert.deepEqual(scene.unsettled, [[0, 1000]]);
      scene.socket.receive(speech("u2", 900));
      assert.deepEqual(scene.unsettled, [
        [200, 800],
        [900, 1000],
      ]);
      scene.again();
      assert.deepEqual(scene.socket.log, ["start", [200, 800], `commit ${OWN}`, [900, 1000]]);
    });

  for (const code of ["unknown_utterance", "unexpected_message"])
    test(`error, ${code}: is no outcome`, () => {
      const scene = new Scene().begin();
      scene.record(1000);
      scene.socket.receive(accepted("u1", 200, 800), { type: "error", code, fatal: false, utterance: "u1" });
      assert.deepEqual(scene.unsettled, [[0, 1000]]);
      assert.deepEqual(scene.session.unfinished, new Map([["u1", { start: 200, end: 800 }]]));
    });

  test("silence before a speech is settled by it", () => {
    const scene = new Scene().begin();
    scene.record(1000);
    scene.socket.receive(speech("u1", 700));
    assert.deepEqual(scene.unsettled, [[700, 1000]]);
  });

  test("silence is settled by a pong, but for the last 3.45 s, in which speech may still be found", () => {
    const scene = new Scene().begin();
    scene.record(3000);
    scene.isMute = true;
    scene.record(1000);
    assert.deepEqual(scene.unsettled, [[0, 4000]]);
    scene.socket.pong(1);
    assert.deepEqual(scene.unsettled, [[50, 4000]]);
    scene.socket.pong(1);
    assert.deepEqual(scene.unsettled, [[550, 4000]]);
  });

  for (const [endpointing, ms] of [
    [{ prefix_ms: 0, min_speech_ms: 30, silence_ms: 100 }, 130],
    [{ prefix_ms: 0, min_speech_ms: 32, silence_ms: 100 }, 132],
    [{ prefix_ms: 1000, min_speech_ms: 33, silence_ms: 200 }, 1433],
    [{ prefix_ms: 300, min_speech_ms: 150, silence_ms: 700 }, 3950],
    [{ prefix_ms: 1000, min_speech_ms: 1000, silence_ms: 600 }, 21_200],
  ])
    test(`speech may be found within ${ms} ms by the rules ${JSON.stringify(endpointing)}`, () => {
      const scene = new Scene().connect();
      scene.socket.open();
      scene.socket.receive(READY, { ...STARTED, endpointing });
      scene.record(30_000);
      assert.deepEqual(scene.unsettled, [[30_000 - ms, 30_000]]);
    });

  test("silence is not settled before started, which says what silence is", () => {
    const scene = new Scene().connect();
    scene.socket.open();
    scene.socket.receive(READY);
    scene.record(5000);
    assert.deepEqual(scene.unsettled, [[0, 5000]]);
    scene.socket.receive(STARTED);
    scene.record(1000);
    assert.deepEqual(scene.unsettled, [[2550, 6000]]);
  });

  test("an utterance that is open is not silence, and what is behind it neither", () => {
    const scene = new Scene().begin();
    scene.record(1000);
    scene.socket.receive(speech("u1", 700));
    scene.record(4000);
    assert.deepEqual(scene.unsettled, [[700, 5000]]);
  });

  test("an utterance that waits for its outcome is not silence", () => {
    const scene = new Scene().begin();
    scene.record(2000);
    scene.socket.receive(speech("u1", 700), accepted("u1", 700, 1200));
    scene.record(3000);
    assert.deepEqual(scene.unsettled, [
      [700, 1200],
      [1550, 5000],
    ]);
  });

  test("an utterance that was refused is not silence", () => {
    const scene = new Scene().begin();
    scene.record(2000);
    scene.socket.receive(speech("u1", 700), busy("u1"), speech("u2", 1300), final("u2", 1300, 1400));
    scene.record(3000);
    assert.deepEqual(scene.unsettled, [
      [700, 1300],
      [1550, 5000],
    ]);
  });

  test("a speech ends the one before it, of whose end nothing was heard", () => {
    const scene = new Scene().begin();
    scene.record(2000);
    scene.socket.receive(speech("u1", 700), speech("u2", 1500));
    scene.socket.receive({ type: "error", code: "decode_failed", utterance: "u1" });
    assert.deepEqual(scene.unsettled, [[1500, 2000]]);
  });

  test("an outcome settles nothing that was not sent yet", () => {
    const scene = new Scene().begin();
    scene.record(1000);
    scene.socket.receive(speech("u1", 200), { type: "error", code: "poison_audio", utterance: "u1" });
    scene.record(500);
    assert.deepEqual(scene.unsettled, [[1000, 1500]]);
  });
});

describe("refusals", () => {
  test("the utterance is offered again by its id once the hint has passed", () => {
    const scene = new Scene().begin("1:");
    scene.socket.receive(speech("u1", 0), busy("u1"));
    assert.deepEqual(scene.of("waiting"), [{ ...busy("1:u1"), delay_ms: 800 }]);
    pass(750);
    assert.deepEqual(scene.socket.log, ["start"]);
    pass(50);
    assert.deepEqual(scene.socket.log, ["start", "retry u1"]);
    assert.deepEqual(scene.of("retrying"), [{ utterance: "1:u1" }]);
  });

  test("the event retry is a refusal like busy", () => {
    const scene = new Scene().begin();
    scene.socket.receive(accepted("u1", 0, 500), busy("u1", { type: "retry", reason: "worker_crashed", waited_ms: 9 }));
    pass(800);
    assert.deepEqual(scene.socket.log, ["start", "retry u1"]);
  });

  test("a refusal after a refusal waits for its own hint alone", () => {
    const scene = new Scene().begin();
    scene.socket.receive(busy("u1"));
    pass(500);
    scene.socket.receive(busy("u1", { reason: "retry_early", retry_after_ms: 1000 }));
    pass(950);
    assert.deepEqual(scene.socket.log, ["start"]);
    pass(50);
    assert.deepEqual(scene.socket.log, ["start", "retry u1"]);
  });

  test("what is not held is not offered again", () => {
    const scene = new Scene().begin();
    scene.socket.receive(busy("u1", { held_ms: 0 }), dropped("u1", "not_held", 0, 500));
    pass(2000);
    assert.deepEqual([scene.socket.log, scene.of("waiting", "retrying")], [["start"], []]);
  });

  for (const event of [final("u1", 0, 500), dropped("u1", "evicted", 0, 500), accepted("u1", 0, 500)])
    test(`nothing is offered again after ${event.type}`, () => {
      const scene = new Scene().begin();
      scene.socket.receive(busy("u1"), event);
      pass(2000);
      assert.deepEqual(scene.socket.log, ["start"]);
    });

  for (const [how, end] of [
    ["closed", ({ session }) => session.close()],
    ["lost", ({ socket }) => socket.fail(1006)],
  ])
    test(`nothing is offered again once the session is ${how}`, () => {
      const scene = new Scene().begin();
      scene.socket.receive(busy("u1"));
      end(scene);
      pass(2000);
      assert.deepEqual([scene.socket.log, scene.of("retrying")], [["start"], []]);
    });

  test("a later one waits until the first is taken, which it would drive out else", () => {
    const scene = new Scene().begin();
    scene.socket.receive(speech("u1", 0), busy("u1", { retry_after_ms: 1500 }), speech("u2", 500), busy("u2"));
    pass(1450);
    assert.deepEqual([scene.socket.log, scene.of("retrying")], [["start"], []]);
    pass(50);
    assert.deepEqual(scene.socket.log, ["start", "retry u1"]);
    pass(1000);
    assert.deepEqual(scene.socket.log, ["start", "retry u1"]);
    scene.socket.receive(accepted("u1", 0, 500));
    assert.deepEqual(scene.socket.log, ["start", "retry u1", "retry u2"]);
    assert.deepEqual(scene.of("retrying"), [{ utterance: "u1" }, { utterance: "u2" }]);
  });

  test("a later one is not due because the first is", () => {
    const scene = new Scene().begin();
    scene.socket.receive(speech("u1", 0), busy("u1"), speech("u2", 500), busy("u2", { retry_after_ms: 1500 }));
    pass(800);
    scene.socket.receive(final("u1", 0, 500));
    pass(650);
    assert.deepEqual(scene.socket.log, ["start", "retry u1"]);
    pass(50);
    assert.deepEqual(scene.socket.log, ["start", "retry u1", "retry u2"]);
  });

  test("audio waits here while one is refused and another unfinished: the server may have no room for a third", () => {
    const scene = new Scene().begin();
    scene.record(100);
    scene.socket.receive(busy("u1"));
    scene.record(100);
    scene.socket.receive(busy("u2"));
    scene.record(1500);
    scene.commit("c1");
    assert.deepEqual(scene.socket.log, ["start", [0, 200]]);
    assert.deepEqual(scene.of("behind"), [
      { behind_ms: 1500, why: "busy" },
      { behind_ms: 1500, why: "busy" },
    ]);
    scene.socket.receive(accepted("u1", 0, 100));
    assert.deepEqual(scene.socket.log, ["start", [0, 200]]);
    scene.socket.receive(final("u1", 0, 100));
    scene.socket.pong();
    assert.deepEqual(scene.socket.log, ["start", [0, 1700], "commit c1"]);
    assert.deepEqual(scene.of("behind").at(-1), { behind_ms: 0, why: "network" });
  });

  test("a source that can wait has no room while something is refused, or two are admitted", () => {
    const scene = new Scene().connect();
    assert.equal(scene.session.hasRoom, false, "before ready");
    scene.socket.begin();
    assert.equal(scene.session.hasRoom, true);
    scene.socket.receive(busy("u1"));
    assert.equal(scene.session.hasRoom, false);
    scene.socket.receive(accepted("u1", 0, 100));
    assert.equal(scene.session.hasRoom, true);
    scene.socket.receive(accepted("u2", 100, 200));
    assert.equal(scene.session.hasRoom, false);
    scene.socket.receive(final("u1", 0, 100));
    assert.equal(scene.session.hasRoom, true);
  });

  test("a source that can wait has no room while half a second has not been sent", () => {
    const scene = new Scene().begin();
    scene.socket.isSlow = true;
    scene.record(500);
    assert.equal(scene.session.hasRoom, true);
    scene.record(1);
    assert.equal(scene.session.hasRoom, false);
  });
});

describe("retryDelayMs", () => {
  const hint = { reason: "queue_full", ...HINT };

  test("the hint, and up to 250 ms upon it", () => {
    assert.equal(
      retryDelayMs(hint, () => 0),
      800,
    );
    assert.equal(
      retryDelayMs(hint, () => 0.5),
      925,
    );
    assert.equal(
      retryDelayMs(hint, () => 1),
      1050,
    );
  });

  test("the estimate is not waited for where only the queue is full", () => {
    assert.equal(
      retryDelayMs({ ...hint, estimated_wait_ms: 9000 }, () => 0),
      800,
    );
  });

  for (const reason of ["starting", "restarting", "unavailable"])
    test(`${reason}: the estimate is waited for, up to 10 s`, () => {
      const delay = (estimated_wait_ms) => retryDelayMs({ ...hint, reason, estimated_wait_ms }, () => 0);
      assert.deepEqual([300, 4000, 10_000, 60_000].map(delay), [800, 4000, 10_000, 10_000]);
    });

  test("never after half a second before the hold ends", () => {
    const delay = (held_ms) => retryDelayMs({ ...hint, reason: "starting", estimated_wait_ms: 9000, held_ms }, () => 1);
    assert.deepEqual([60_000, 9750, 9600, 5000].map(delay), [9250, 9250, 9100, 4500]);
  });

  test("never after a minute, whatever the server says", () => {
    assert.equal(
      retryDelayMs({ ...hint, retry_after_ms: 1e9, held_ms: 1e9 }, () => 0),
      60_000,
    );
  });

  test("never before the hint, whatever the hold: the server would refuse it", () => {
    assert.equal(
      retryDelayMs({ ...hint, held_ms: 1000 }, () => 1),
      800,
    );
  });
});

describe("owed", () => {
  for (const [reason, isOwed] of [
    ["not_held", true],
    ["evicted", true],
    ["hold_expired", true],
    ["cancelled", false],
  ])
    test(`what was dropped as ${reason}: ${isOwed}`, () => {
      const scene = new Scene().begin();
      scene.record(1000);
      assert.deepEqual(scene.session.owed, []);
      scene.socket.receive(accepted("u1", 200, 800), dropped("u1", reason, 200, 800));
      assert.deepEqual(scene.session.owed, isOwed ? [[200, 800]] : []);
    });

  test("what the ring has no more is owed no more, and told second by second", () => {
    const scene = new Scene({ ringSeconds: 2 }).begin();
    for (let i = 0; i < 20; i++) scene.record(100);
    scene.socket.receive(accepted("u1", 200, 1700), dropped("u1", "not_held", 200, 1700));
    for (let i = 0; i < 20; i++) scene.record(100);
    assert.deepEqual(scene.session.owed, []);
    assert.deepEqual(
      scene.of("gap").map(({ audio_start_ms, audio_end_ms }) => [audio_start_ms, audio_end_ms]),
      [
        [200, 1200],
        [1200, 1700],
      ],
    );
  });
});

describe("events", () => {
  test("each is a message first, as it came", () => {
    const scene = new Scene().begin("1:");
    scene.socket.receive(speech("u1", 0));
    assert.deepEqual(scene.events.slice(-2), [
      ["message", speech("u1", 0)],
      ["speech_started", speech("1:u1", 0)],
    ]);
  });

  const { $defs } = JSON.parse(readFileSync(SCHEMA, "utf8"));
  const types = $defs.ServerEvent.oneOf.map(({ $ref }) => $defs[$ref.split("/").at(-1)].properties.type.enum[0]);

  for (const type of types.filter((type) => type !== "pong"))
    test(`${type} is one`, () => {
      const scene = new Scene().begin("1:");
      const before = scene.events.length;
      const fields = type === "started" ? { endpointing: {} } : {};
      scene.socket.receive({ type, utterance: "u1", ...fields });
      const told = { type, utterance: "1:u1", ...fields };
      const own = ["waiting"]; // of busy and retry
      const events = scene.events.slice(before).filter(([type]) => !own.includes(type));
      assert.deepEqual(events, [
        ["message", { type, utterance: "u1", ...fields }],
        [type, told],
      ]);
    });

  test("an unknown field is passed on", () => {
    const scene = new Scene().begin();
    scene.socket.receive({ ...speech("u1", 0), mood: "good" });
    assert.deepEqual(scene.of("speech_started"), [{ ...speech("u1", 0), mood: "good" }]);
  });

  const own = ["message", "waiting", "retrying", "reconnecting", "reconnected", "gap", "behind", "rtt", "level"];
  for (const type of ["speaker", "pong", ...own, "microphone", "closed", "__proto__", ""])
    test(`what is none of the protocol's is a message alone: ${type || "of no name"}`, () => {
      const scene = new Scene().begin("1:");
      const before = scene.events.length;
      const event = { type, utterance: "u1", audio_start_ms: 0, audio_end_ms: 100, id: 7 };
      scene.socket.receive(event);
      assert.deepEqual(scene.events.slice(before), [["message", event]]);
      assert.equal(scene.session.unfinished.size, 0);
    });

  const nothing = { type: "error", code: "nothing_to_commit", message: "", hint: "", fatal: false, utterance: null };

  test("that a commit of its own had nothing to end is nobody's business", () => {
    const scene = new Scene().begin();
    scene.socket.receive({ ...nothing, commit: OWN });
    assert.deepEqual([scene.of("error"), scene.ends], [[], []]);
  });

  for (const commit of ["c1", null])
    test(`that a commit of the user's had nothing to end is an error, id ${commit}`, () => {
      const scene = new Scene().begin();
      scene.socket.receive({ ...nothing, commit });
      assert.deepEqual([scene.of("error"), scene.ends], [[{ ...nothing, commit }], []]);
    });

  test("the id of a commit of its own is not told", () => {
    const scene = new Scene().begin();
    scene.socket.receive({ ...accepted("u1", 0, 100), commit: OWN }, busy("u2", { commit: OWN }));
    assert.deepEqual(
      scene.of("accepted", "busy", "waiting").map(({ commit }) => commit),
      [null, null, null],
    );
  });
});

describe("ending", () => {
  test("no answer for 10 s before ready: over once, with 1006", () => {
    const scene = new Scene().connect();
    scene.socket.open();
    pass(10_000);
    assert.deepEqual(scene.ends, []);
    pass(100);
    pass(30_000);
    assert.deepEqual(scene.ends, [{ code: 1006, reason: "no answer", error: null, refusal: null }]);
    assert.equal(scene.socket.closed, 1000);
  });

  test("no answer to a ping for 15 s: over once, with 1006", () => {
    const scene = new Scene().begin();
    pass(5100); // its ping
    pass(15_000); // and two more, which count for nothing
    assert.deepEqual(scene.ends, []);
    pass(100);
    pass(30_000);
    assert.deepEqual(scene.ends, [{ code: 1006, reason: "no answer", error: null, refusal: null }]);
  });

  test("while it is closing nothing is sent, but for the next session to send; for 15 s, if it never closes", () => {
    const scene = new Scene().begin();
    scene.record(1000);
    const { log } = scene.socket;
    scene.socket.readyState = 2; // the server's closing frame has come
    scene.record(500);
    scene.commit("c1");
    scene.record(500);
    scene.end();
    scene.session.cancel();
    assert.deepEqual(scene.socket.log, log);
    pass(5100); // its ping
    pass(15_100);
    assert.equal(scene.ends.length, 1);
    scene.begin("1:");
    assert.deepEqual(scene.socket.log, ["start", [0, 1500], "commit c1", [1500, 2000], "end"]);
  });

  test("pongs keep it alive", () => {
    const scene = new Scene().begin();
    for (let i = 0; i < 12; i++) {
      pass(5000);
      scene.socket.pong();
    }
    assert.deepEqual(scene.ends, []);
  });

  test("anything that comes keeps it alive", () => {
    const scene = new Scene().begin();
    for (let i = 0; i < 4; i++) {
      pass(14_000);
      scene.socket.receive({ type: "state", state: "ready", partials: "on" });
    }
    pass(15_000);
    assert.deepEqual(scene.ends, []);
    pass(100);
    assert.equal(scene.ends.length, 1);
  });

  test("a tab that sleeps for minutes is not taken for a dead connection: nothing was asked", () => {
    const scene = new Scene().begin();
    for (let i = 0; i < 3; i++) {
      sleep(120_000);
      pass(100); // wakes, and asks
      scene.socket.pong();
    }
    assert.deepEqual([scene.ends, scene.of("rtt").length], [[], 3]);
    sleep(120_000);
    pass(100);
    pass(15_000);
    assert.deepEqual(scene.ends, []);
    pass(100);
    assert.equal(scene.ends.length, 1);
  });

  test("a buffer that drains keeps it alive, one that does not drain does not", () => {
    const scene = new Scene().begin();
    scene.socket.bufferedAmount = 50_000;
    for (let i = 0; i < 4; i++) {
      pass(10_000);
      scene.socket.bufferedAmount -= 1000;
    }
    assert.deepEqual(scene.ends, []);
    pass(15_300);
    assert.equal(scene.ends.length, 1);
  });

  test("the close's code and reason are told, once", () => {
    const scene = new Scene().begin();
    const { onclose } = scene.socket;
    scene.socket.fail(1012, "restart");
    onclose({ code: 1006, reason: "" });
    assert.deepEqual(scene.ends, [{ code: 1012, reason: "restart", error: null, refusal: null }]);
  });

  test("whoever closes it is not told", () => {
    const scene = new Scene().begin();
    scene.session.close();
    pass(60_000);
    assert.deepEqual([scene.ends, scene.socket.closed], [[], 1000]);
  });

  test("closed while it connects, it is closed once it is open, and says nothing", () => {
    const scene = new Scene().connect();
    scene.session.close();
    assert.equal(scene.socket.closed, null, "browsers complain of a close before that");
    scene.socket.open();
    assert.deepEqual([scene.socket.closed, scene.socket.sent, scene.ends], [1000, [], []]);
  });

  test("closed while it connects, it is closed after 10 s whatever becomes of it: the next one may wait for it", () => {
    const scene = new Scene().connect();
    scene.session.close();
    pass(9950);
    assert.equal(scene.socket.closed, null);
    pass(50);
    assert.deepEqual([scene.socket.closed, scene.ends], [1000, []]);
  });

  test("with no answer while it connects, it is closed at once", () => {
    const scene = new Scene().connect();
    pass(10_100);
    assert.deepEqual([scene.socket.closed, scene.ends.length], [1000, 1]);
  });

  test("nothing goes out after its end", () => {
    const scene = new Scene().begin();
    scene.socket.fail(1006);
    scene.record(100);
    pass(1000);
    assert.deepEqual(scene.socket.log, ["start"]);
  });

  test("whoever closes it at an event hears no more of it", () => {
    const scene = new Scene().connect();
    scene.onEvent = () => scene.session.close();
    scene.socket.open();
    scene.socket.receive(READY);
    assert.deepEqual(scene.events, [["message", READY]]);
  });
});
