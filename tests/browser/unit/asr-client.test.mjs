/**
 * The client on scripted sockets (see FakeSocket for what is unrealistic about them) and a clock that stands still.
 * Recordings have 1000 samples a second: a sample is a millisecond, and its own position (see `audio`). A microphone
 * needs a browser, and is tested in one: here it is the test (see FakeMicrophone).
 */

import assert from "node:assert/strict";
import { afterEach, beforeEach, describe, mock, test } from "node:test";
import {
  AsrClient,
  AsrError,
  Microphone,
  VERSION,
  reconnectDelayMs,
  sessionUrl,
} from "../../../clients/browser/asr-client.js";
import {
  FakeSocket,
  READY,
  accepted,
  audio,
  client,
  dropped,
  final,
  freeTime,
  opened,
  pass,
  speech,
  stopTime,
  turn,
} from "./fakes.mjs";

const FULL = { type: "busy", utterance: null, attempt: 0, reason: "max_sessions", retry_after_ms: 1400 };
const DONE = { type: "done", seq: 9, received_ms: 1000, lost_ms: 0 };
const CODES = [1001, 1005, 1006, 1011, 1012, 1013]; // that the server, or the next one, comes back after

let rejections;

function onRejection(error) {
  rejections.push(error);
}

beforeEach(() => {
  stopTime();
  rejections = [];
  process.on("unhandledRejection", onRejection);
});

afterEach(async () => {
  freeTime();
  await turn();
  process.off("unhandledRejection", onRejection);
  assert.deepEqual(rejections, [], "nobody waits for these");
});

/** Unrealistic: it gives what the test says, and has drained when the test says so. */
class FakeMicrophone {
  sampleRate = 1000;
  isClosed = false;

  /** Those that are asked for open once the test says so: by what it returns. */
  static install() {
    const { promise, resolve, reject } = Promise.withResolvers();
    const made = { resolve, reject, microphone: new FakeMicrophone() };
    Microphone.open.mock?.restore(); // the next one
    mock.method(Microphone, "open", (asked) => {
      Object.assign(made.microphone, asked);
      return promise;
    });
    return Object.assign(made, { open: () => resolve(made.microphone) });
  }

  hear(from, to) {
    this.onAudio(audio(from, to), { peak: 0.5, rms: 0.1 });
  }

  async close() {
    this.isClosed = true;
    await this.draining;
  }
}

function fatal(code) {
  return { type: "error", code, message: "no", hint: "yes", fatal: true, utterance: null, commit: null };
}

/** Whether it is settled: "pending", "resolved", or the code of its error. */
async function state(promise) {
  const settled = promise.then(
    () => "resolved",
    (error) => error.code ?? error,
  );
  return Promise.race([settled, turn().then(() => "pending")]);
}

describe("reconnectDelayMs", () => {
  test("doubles from half a second to half a minute", () => {
    const delays = [1, 2, 3, 4, 5, 6, 7, 8, 50].map((attempt) => reconnectDelayMs(attempt, 0, () => 1));
    assert.deepEqual(delays, [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]);
  });

  test("is spread over the upper half", () => {
    assert.deepEqual(
      [0, 0.5, 1].map((random) => reconnectDelayMs(3, 0, () => random)),
      [1000, 1500, 2000],
    );
  });

  test("is never below the server's hint, which counts up to half a minute, and not added to it", () => {
    assert.equal(
      reconnectDelayMs(1, 1200, () => 1),
      1200,
    );
    assert.equal(
      reconnectDelayMs(1, 1e9, () => 1),
      30_000,
    );
    assert.equal(
      reconnectDelayMs(3, 1200, () => 1),
      2000,
    );
  });

  test("is a whole number, by the machine's own chance", () => {
    const delay = reconnectDelayMs(1);
    assert.ok(Number.isInteger(delay) && delay >= 250 && delay <= 500);
  });
});

describe("sessionUrl", () => {
  for (const [url, expected] of [
    ["http://server/", "ws://server/v1/stream"],
    ["http://server", "ws://server/v1/stream"],
    ["https://server/", "wss://server/v1/stream"],
    ["ws://server/", "ws://server/v1/stream"],
    ["wss://server", "wss://server/v1/stream"],
    ["http://server:8765/", "ws://server:8765/v1/stream"],
    ["https://server:8443", "wss://server:8443/v1/stream"],
    ["http://[::1]:8765/", "ws://[::1]:8765/v1/stream"],
    ["https://server/speech/", "wss://server/speech/v1/stream"],
    ["https://server/speech", "wss://server/speech/v1/stream"],
    ["https://server/speech//", "wss://server/speech/v1/stream"],
    ["http://server/v1/stream", "ws://server/v1/stream"],
    ["https://server/speech/v1/stream/", "wss://server/speech/v1/stream"],
    ["wss://server/v1/stream", "wss://server/v1/stream"],
    ["wss://server/elsewhere", "wss://server/elsewhere"], // who says ws:// and a path means it
    ["http://server/?room=1#top", "ws://server/v1/stream?room=1"],
  ])
    test(`${url} is ${expected}`, () => assert.equal(sessionUrl(url), expected));

  for (const [url, base, expected] of [
    [".", "https://server/", "wss://server/v1/stream"],
    [".", "https://server/speech/index.html", "wss://server/speech/v1/stream"],
    ["/", "https://server/speech/", "wss://server/v1/stream"],
    ["../asr/", "http://server:8000/app/page", "ws://server:8000/asr/v1/stream"],
    ["http://other/", "https://server/", "ws://other/v1/stream"],
  ])
    test(`${url} on a page at ${base} is ${expected}`, () => assert.equal(sessionUrl(url, base), expected));

  test("a host and a port alone are no address, though a URL", () =>
    assert.throws(() => sessionUrl("localhost:8765"), { code: "bad_address", hint: "such as http://127.0.0.1:8765/" }));

  test("a relative address without a page is no address", () => {
    assert.throws(() => sessionUrl("."), { name: "AsrError", code: "bad_address" });
    assert.throws(() => new AsrClient(), { name: "AsrError", code: "bad_address" });
  });
});

describe("a recording", () => {
  test("begins with start, whose audio the client says itself", async () => {
    const start = { language: "en", audio: { encoding: "pcm_f32le" } };
    const { asr, of } = await opened({ start, token: "secret" });
    const audio = { encoding: "pcm_s16le", sample_rate: 1000, channels: 1 };
    const said = { type: "start", client: `asr-client.js/${VERSION}`, language: "en", audio, token: "secret" };
    assert.deepEqual(FakeSocket.last.sent, [said]);
    assert.deepEqual([asr.isOpen, asr.ready, of("ready")], [true, READY, [READY]]);
  });

  test("has no token where none was given", async () => {
    await opened();
    assert.deepEqual(Object.keys(FakeSocket.last.sent[0]), ["type", "client", "audio"]);
  });

  test("gives its text in the order in which it was said, and what the server accounts for", async () => {
    const { asr, told } = await opened();
    await asr.send(audio(0, 1000));
    const stopping = asr.stop();
    await turn();
    assert.deepEqual(FakeSocket.last.log, ["start", [0, 1000], "end"]);
    const late = final("u3", 700, 900, "there");
    const empty = final("u2", 600, 650, "");
    const early = final("u1", 0, 500, "hello");
    FakeSocket.last.receive(late, empty, early, DONE);
    const result = await stopping;
    assert.equal(result.text, "hello there");
    assert.deepEqual(result.finals, [
      { ...early, latency_ms: 500 },
      { ...empty, latency_ms: 350 },
      { ...late, latency_ms: 100 },
    ]);
    assert.deepEqual(result.done, DONE);
    assert.deepEqual([asr.isOpen, told.at(-1)], [false, ["closed", { error: null }]]);
    assert.equal(FakeSocket.last.closed, 1000);
  });

  test("tells how long it is", async () => {
    const { asr } = client();
    assert.equal(asr.positionMs, 0);
    const opening = asr.open({ sampleRate: 8000 });
    void asr.send(new Int16Array(4005));
    assert.equal(asr.positionMs, 501);
    FakeSocket.last.begin();
    await opening;
    asr.close();
    assert.equal(asr.positionMs, 0);
  });

  test("takes floats as whole numbers, cut at 1", async () => {
    const { asr } = await opened();
    await asr.send(Float32Array.of(0, 0.5, -0.5, 1, -1, 1.5, -7, NaN));
    assert.deepEqual(FakeSocket.last.sent[1], Int16Array.of(0, 16384, -16383, 32767, -32767, 32767, -32767, 0));
  });

  test("takes no more audio once it was stopped", async () => {
    const { asr } = await opened();
    await asr.send(audio(0, 100));
    const stopping = asr.stop();
    await turn();
    await assert.rejects(asr.send(audio(100, 200)), { code: "not_open" });
    assert.equal(asr.positionMs, 100);
    FakeSocket.last.receive(DONE);
    await stopping;
  });

  test("stopped twice has one result", async () => {
    const { asr } = await opened();
    const [one, other] = [asr.stop(), asr.stop()];
    await turn();
    FakeSocket.last.receive(DONE);
    assert.equal(await one, await other);
    assert.deepEqual(FakeSocket.last.log, ["start", "end"]);
  });

  test("follows another one", async () => {
    const { asr } = await opened();
    const stopping = asr.stop();
    await turn();
    FakeSocket.last.receive(DONE);
    await stopping;
    const opening = asr.open({ sampleRate: 1000 });
    FakeSocket.last.begin();
    await opening;
    await asr.send(audio(0, 50));
    assert.deepEqual([FakeSocket.all.length, FakeSocket.last.log], [2, ["start", [0, 50]]]);
  });

  test("commits and cancels where it is", async () => {
    const { asr } = await opened();
    await asr.send(audio(0, 50));
    asr.commit("c1");
    FakeSocket.last.pong();
    await asr.send(audio(50, 80));
    asr.cancel("u1");
    asr.cancel();
    assert.deepEqual(FakeSocket.last.log, ["start", [0, 50], "commit c1", [50, 80], "cancel u1", "cancel"]);
  });

  test("tells what has no text, and why", async () => {
    const { asr } = await opened({ ringSeconds: 1 });
    const gap = { audio_start_ms: 1000, audio_end_ms: 2000 };
    const failed = { type: "error", code: "decode_failed", fatal: false, utterance: "u2", commit: null };
    const others = [{ type: "error", code: "nothing_to_commit", fatal: false, utterance: null, commit: "c1" }];
    const cancelled = dropped("u3", "cancelled", 600, 700);
    await asr.send(audio(0, 1000));
    FakeSocket.last.receive(final("u1", 0, 100), failed, cancelled, ...others);
    void asr.send(audio(1000, 2000));
    void asr.send(audio(2000, 3000)); // more than a second waits for a pong, and this has no room
    const stopping = asr.stop();
    await turn();
    FakeSocket.last.pong();
    FakeSocket.last.receive(DONE);
    const { text, unfinished } = await stopping;
    assert.equal(text, "hello");
    assert.deepEqual(unfinished, [failed, cancelled, gap]);
  });

  test("sends again what the server dropped, and tells of it only if that has no outcome either", async () => {
    const { asr } = await opened();
    const failed = { type: "error", code: "decode_failed", fatal: false, utterance: "u1", commit: null };
    const cancelled = dropped("u2", "cancelled", 100, 200);
    await asr.send(audio(0, 1000));
    FakeSocket.last.receive(accepted("u4", 500, 1000), failed, cancelled, dropped("u3", "not_held", 200, 500));
    assert.equal(FakeSocket.last.closed, null, "another one is under way");
    FakeSocket.last.receive(final("u4", 500, 1000));
    assert.equal(FakeSocket.last.closed, 1000);
    const stopping = asr.stop();
    await turn();
    pass(250);
    FakeSocket.last.begin();
    FakeSocket.last.receive(final("u1", 0, 300, "again"), DONE);
    const { text, unfinished } = await stopping;
    assert.deepEqual([text, unfinished], ["again hello", [failed, cancelled]]);
  });

  test("sends again what the server dropped also when the rest is done", async () => {
    const { asr, of } = await opened();
    await asr.send(audio(0, 1000));
    const stopping = asr.stop();
    await turn();
    FakeSocket.last.receive(final("u1", 0, 600), dropped("u2", "not_held", 600, 1000), DONE);
    assert.equal(FakeSocket.last.closed, 1000);
    pass(250);
    assert.deepEqual([await state(stopping), of("closed"), FakeSocket.all.length], ["pending", [], 2]);
    FakeSocket.last.begin();
    assert.deepEqual(FakeSocket.last.log, ["start", [600, 1000], "end"]);
    FakeSocket.last.receive(final("u1", 0, 400, "world"), DONE);
    const { text, unfinished } = await stopping;
    assert.deepEqual([text, unfinished, of("closed")], ["hello world", [], [{ error: null }]]);
  });

  test("sends again what the server dropped as often as it would connect again, and no more", async () => {
    const { asr } = await opened({ maxReconnects: 2 });
    await asr.send(audio(0, 1000));
    const stopping = asr.stop();
    await turn();
    const told = dropped("u1", "not_held", 0, 1000);
    FakeSocket.last.receive(told, DONE);
    for (const delay of [250, 500]) {
      pass(delay);
      FakeSocket.last.begin();
      FakeSocket.last.receive(told, DONE);
    }
    const { text, unfinished } = await stopping;
    assert.deepEqual([text, unfinished, FakeSocket.all.length], ["", [{ audio_start_ms: 0, audio_end_ms: 1000 }], 3]);
  });

  test("counts a text's latency on after its last sample", async () => {
    const { asr, of } = await opened();
    await asr.send(audio(0, 500));
    pass(1000); // a source may pause
    FakeSocket.last.receive(final("u1", 0, 200));
    const stopping = asr.stop();
    await turn();
    pass(300);
    void asr.stop(); // is no end anew
    await turn();
    pass(100);
    FakeSocket.last.receive(final("u2", 200, 450), DONE);
    await stopping;
    assert.deepEqual(
      of("final").map(({ latency_ms }) => latency_ms),
      [300, 450],
    );
  });

  test("an utterance that was cancelled is not sent after a reconnect, the others are", async () => {
    const { asr } = await opened();
    await asr.send(audio(0, 800));
    FakeSocket.last.receive(speech("u1", 100), accepted("u1", 100, 300), speech("u2", 400), accepted("u2", 400, 600));
    asr.cancel("u1");
    asr.cancel("u9"); // there is none
    assert.deepEqual(FakeSocket.last.log.slice(2), ["cancel u1", "cancel u9"]);
    FakeSocket.last.fail(1006);
    pass(250);
    FakeSocket.last.begin();
    assert.deepEqual(FakeSocket.last.log, ["start", [400, 800]]); // and what was silence is not either
  });

  test("an utterance of a session before is cancelled while the connection is away", async () => {
    const { asr } = await opened();
    await asr.send(audio(0, 800));
    FakeSocket.last.receive(speech("u1", 0), accepted("u1", 0, 300), speech("u2", 300));
    FakeSocket.last.fail(1006);
    asr.cancel("u1");
    pass(250);
    FakeSocket.last.begin();
    assert.deepEqual(FakeSocket.last.log, ["start", [300, 800]]);
  });

  test("what was cancelled is not sent after a reconnect", async () => {
    const { asr } = await opened();
    await asr.send(audio(0, 500));
    asr.cancel();
    await asr.send(audio(500, 700));
    FakeSocket.last.fail(1006);
    asr.cancel("u1"); // of a session that is no more: nothing to say
    pass(250);
    FakeSocket.last.begin();
    assert.deepEqual(FakeSocket.last.log, ["start", [500, 700]]);
  });
});

describe("send", () => {
  test("takes samples alone: bad_audio", async () => {
    const { asr } = await opened();
    for (const samples of [new Uint8Array(4), new ArrayBuffer(4), [1, 2], null, "audio"])
      assert.equal(await state(asr.send(samples)), "bad_audio");
    assert.deepEqual([asr.positionMs, FakeSocket.last.log], [0, ["start"]]);
  });

  test("resolves at once while the server keeps up", async () => {
    const { asr } = await opened();
    assert.equal(await state(asr.send(audio(0, 100))), "resolved");
  });

  test("waits before the server is there", async () => {
    const { asr } = client();
    const opening = asr.open({ sampleRate: 1000 });
    const sending = asr.send(audio(0, 100));
    assert.equal(await state(sending), "pending");
    FakeSocket.last.begin();
    assert.equal(await state(sending), "resolved");
    await opening;
  });

  test("waits while two utterances are admitted", async () => {
    const { asr } = await opened();
    await asr.send(audio(0, 400));
    FakeSocket.last.receive(accepted("u1", 0, 100), accepted("u2", 100, 200));
    const sending = asr.send(audio(400, 500));
    assert.equal(await state(sending), "pending");
    assert.deepEqual(FakeSocket.last.log.at(-1), [0, 500], "it waits for more, and has sent this");
    FakeSocket.last.receive(final("u1", 0, 100, "hello"));
    assert.equal(await state(sending), "resolved");
  });

  test("waits while the connection is away", async () => {
    const { asr } = await opened();
    FakeSocket.last.fail(1006);
    const sending = asr.send(audio(0, 100));
    pass(250);
    assert.equal(await state(sending), "pending");
    FakeSocket.last.begin();
    assert.equal(await state(sending), "resolved");
  });

  test("resolves once the socket has drained", async () => {
    const { asr } = await opened();
    FakeSocket.last.isSlow = true;
    const sending = asr.send(audio(0, 600));
    assert.equal(await state(sending), "pending");
    FakeSocket.last.isSlow = false;
    FakeSocket.last.bufferedAmount = 0;
    pass(1000); // and not only with the next ping, after 5 s
    assert.deepEqual(FakeSocket.last.log, ["start", [0, 600]]);
    assert.equal(await state(sending), "resolved");
  });

  test("rejects with what ended the recording", async () => {
    const { asr } = await opened();
    FakeSocket.last.receive(accepted("u1", 0, 100), accepted("u2", 100, 200));
    const sending = asr.send(audio(0, 100));
    FakeSocket.last.fail(1008, "policy");
    assert.equal(await state(sending), "connection_lost");
  });

  test("resolves with the recording's end", async () => {
    const { asr } = await opened();
    FakeSocket.last.receive(accepted("u1", 0, 100), accepted("u2", 100, 200));
    const sending = asr.send(audio(0, 100));
    const stopping = asr.stop();
    await turn();
    FakeSocket.last.receive(DONE);
    assert.deepEqual([await state(sending), await state(stopping)], ["resolved", "resolved"]);
  });
});

describe("the connection", () => {
  for (const code of CODES)
    test(`closed with ${code} comes back, with what has no outcome`, async () => {
      const { asr, of } = await opened();
      await asr.send(audio(0, 300));
      FakeSocket.last.receive(speech("u1", 100));
      FakeSocket.last.fail(code, "why");
      const told = { attempt: 1, delay_ms: 250, code, reason: "why", interrupted: ["u1"] };
      assert.deepEqual([of("reconnecting"), asr.isOpen, FakeSocket.all.length], [[told], true, 1]);
      pass(200);
      assert.equal(FakeSocket.all.length, 1);
      pass(50);
      assert.equal(FakeSocket.all.length, 2);
      FakeSocket.last.begin();
      assert.deepEqual([of("reconnected"), of("closed")], [[{}], []]);
      assert.deepEqual(FakeSocket.last.log, ["start", [100, 300]]);
    });

  for (const code of [1000, 1002, 1003, 1007, 1008, 1009, 1010, 1015, 4000])
    test(`closed with ${code} is over`, async () => {
      const { asr, of } = await opened();
      const stopping = asr.stop();
      FakeSocket.last.fail(code, "why");
      assert.equal(await state(stopping), "connection_lost");
      const [{ error }] = of("closed");
      assert.deepEqual([error instanceof AsrError, error.message], [true, `the connection ended with ${code} why`]);
      pass(60_000);
      assert.deepEqual([FakeSocket.all.length, of("reconnecting"), asr.isOpen], [1, [], false]);
    });

  for (const code of ["internal", "slow_consumer"])
    test(`that ended by the fatal error ${code} comes back`, async () => {
      const { of } = await opened();
      FakeSocket.last.receive(fatal(code));
      FakeSocket.last.fail(1008);
      assert.deepEqual(
        of("reconnecting").map(({ reason }) => reason),
        [code],
      );
      pass(250);
      assert.equal(FakeSocket.all.length, 2);
    });

  for (const code of ["unauthorized", "unsupported_format", "idle", "too_large", "bad_message"])
    test(`that ended by the fatal error ${code} is over, also by a close that else comes back`, async () => {
      const { asr, of } = await opened();
      const stopping = asr.stop();
      FakeSocket.last.receive(fatal(code));
      FakeSocket.last.fail(1006);
      assert.equal(await state(stopping), code);
      const [{ error }] = of("closed");
      assert.deepEqual([error.message, error.hint, of("reconnecting")], ["no", "yes", []]);
    });

  test("refused comes back after the server's hint", () => {
    const { asr, of } = client();
    asr.open().catch(() => {});
    FakeSocket.last.open();
    FakeSocket.last.receive(FULL);
    FakeSocket.last.fail(1013);
    const told = { attempt: 1, delay_ms: 1400, code: 1013, reason: "max_sessions", interrupted: [] };
    assert.deepEqual(of("reconnecting"), [told]);
  });

  test("refused to the last is told so", async () => {
    const { asr } = client({ maxReconnects: 0 });
    const opening = asr.open();
    FakeSocket.last.open();
    FakeSocket.last.receive(FULL);
    FakeSocket.last.fail(1013);
    assert.equal(await state(opening), "session_refused");
  });

  test("is tried as often as it was asked to, each time later", async () => {
    const { asr, of } = client({ maxReconnects: 3 });
    const opening = asr.open();
    for (let i = 0; i < 4; i++) {
      FakeSocket.last.fail(1006);
      pass(5000);
    }
    const tries = of("reconnecting").map(({ attempt, delay_ms }) => [attempt, delay_ms]);
    assert.deepEqual(tries, [
      [1, 250],
      [2, 500],
      [3, 1000],
    ]);
    assert.equal(await state(opening), "unreachable");
    assert.deepEqual([FakeSocket.all.length, of("closed").length, asr.isOpen], [4, 1, false]);
  });

  test("that never was is tried three times again, however often one that was would be", async () => {
    const { asr, of } = client({ maxReconnects: Infinity });
    const opening = asr.open();
    for (let i = 0; i < 4; i++) {
      FakeSocket.last.fail(1006);
      pass(5000);
    }
    assert.deepEqual([await state(opening), of("reconnecting").length], ["unreachable", 3]);
  });

  test("that never was because the server is full is tried on", async () => {
    const { asr, of } = client();
    const opening = asr.open();
    for (let i = 0; i < 6; i++) {
      FakeSocket.last.open();
      FakeSocket.last.receive(FULL);
      FakeSocket.last.fail(1013);
      pass(of("reconnecting").at(-1).delay_ms);
    }
    assert.deepEqual([await state(opening), of("reconnecting").length], ["pending", 6]);
    asr.close();
  });

  test("that was there and does not come back is told as lost, with the audio that has no outcome", async () => {
    const { asr, told } = await opened({ maxReconnects: 1 });
    await asr.send(audio(0, 900));
    FakeSocket.last.receive(final("u1", 0, 300));
    const stopping = asr.stop();
    FakeSocket.last.fail(1012);
    pass(250);
    FakeSocket.last.fail(1006);
    assert.equal(await state(stopping), "connection_lost");
    assert.deepEqual(told.at(-2), ["gap", { audio_start_ms: 300, audio_end_ms: 900 }]);
    assert.equal(told.at(-1)[0], "closed");
  });

  test("that lasts five seconds ends the row of failed ones", async () => {
    const { of } = await opened();
    FakeSocket.last.fail(1006);
    pass(250);
    FakeSocket.last.begin();
    pass(4950);
    FakeSocket.last.fail(1006);
    pass(500);
    FakeSocket.last.begin();
    pass(5000);
    FakeSocket.last.fail(1006);
    assert.deepEqual(
      of("reconnecting").map(({ attempt }) => attempt),
      [1, 2, 1],
    );
  });

  test("five seconds of a session that is over count for nothing", async () => {
    const { of } = await opened();
    FakeSocket.last.fail(1006);
    pass(250);
    FakeSocket.last.fail(1006);
    pass(500);
    pass(4500); // the third tries to open all the while
    FakeSocket.last.fail(1006);
    assert.deepEqual(
      of("reconnecting").map(({ attempt }) => attempt),
      [1, 2, 3],
    );
  });

  test("that comes back gives utterances an id of their own, and one result", async () => {
    const { asr } = await opened();
    await asr.send(audio(0, 400));
    FakeSocket.last.receive(final("u1", 0, 100, "hello"));
    FakeSocket.last.fail(1012);
    const stopping = asr.stop();
    await turn();
    pass(250);
    FakeSocket.last.begin();
    assert.deepEqual(FakeSocket.last.log, ["start", [100, 400], "end"]);
    FakeSocket.last.receive(final("u1", 0, 200, "dear"));
    FakeSocket.last.fail(1012);
    pass(500);
    FakeSocket.last.begin();
    assert.deepEqual(FakeSocket.last.log, ["start", [300, 400], "end"]);
    FakeSocket.last.receive(final("u1", 0, 100, "world"), DONE);
    const { text, finals } = await stopping;
    assert.equal(text, "hello dear world");
    assert.deepEqual(
      finals.map(({ utterance, audio_start_ms, audio_end_ms }) => [utterance, audio_start_ms, audio_end_ms]),
      [
        ["u1", 0, 100],
        ["1:u1", 100, 300],
        ["2:u1", 300, 400],
      ],
    );
  });

  test("to what is no asr_ws server is over", async () => {
    const { asr } = client();
    const opening = asr.open();
    FakeSocket.last.open();
    FakeSocket.last.receive("<html>");
    assert.equal(await state(opening), "bad_message");
    assert.equal(asr.isOpen, false);
  });

  test("to an address that no socket takes is over at once", async () => {
    class Refusing {
      constructor() {
        throw new SyntaxError("insecure");
      }
    }
    const { asr, of } = client({ WebSocket: Refusing });
    const error = await asr.open().catch((error) => error);
    assert.deepEqual([error.code, error.message, error.cause.name], ["bad_address", "insecure", "SyntaxError"]);
    assert.deepEqual([of("closed"), asr.isOpen], [[{ error }], false]);
  });

  test("that the browser refuses gets nothing of a microphone either, whose level nobody hears", async () => {
    class Refusing {
      constructor() {
        throw new DOMException("insecure", "SyntaxError");
      }
    }
    const { microphone, open } = FakeMicrophone.install();
    const { asr, told } = client({ WebSocket: Refusing });
    const starting = asr.start();
    microphone.hear?.(0, 40);
    open();
    assert.equal(await state(starting), "bad_address");
    microphone.hear(40, 80);
    await turn();
    assert.deepEqual(
      [told.map(([type, { state }]) => state ?? type), microphone.isClosed],
      [["closed", "closed"], true], // the recording, and the microphone
    );
  });

  test("that does not take the settings keeps it from opening", async () => {
    const { asr, of } = client();
    const opening = asr.open({ sampleRate: 1000 });
    FakeSocket.last.open();
    FakeSocket.last.receive(READY);
    assert.equal(await state(opening), "pending");
    FakeSocket.last.receive(fatal("unsupported_language"));
    FakeSocket.last.fail(1008);
    assert.equal(await state(opening), "unsupported_language");
    assert.deepEqual([asr.isOpen, of("closed").length], [false, 1]);
  });

  test("whose events lack their fields is none of ours: bad_message", async () => {
    const { of } = await opened();
    FakeSocket.last.receive({ type: "started" });
    assert.equal(of("closed")[0].error.code, "bad_message");
  });
});

describe("ordered", () => {
  test("a text waits for those before it", async () => {
    const { asr, of } = await opened({ ordered: true });
    const texts = () => of("final").map(({ text }) => text);
    await asr.send(audio(0, 900));
    FakeSocket.last.receive(speech("u1", 0), accepted("u1", 0, 200), speech("u2", 300), accepted("u2", 300, 500));
    FakeSocket.last.receive(speech("u3", 600), final("u2", 300, 500, "two"));
    assert.deepEqual(texts(), []);
    FakeSocket.last.receive(final("u1", 0, 200, "one"));
    assert.deepEqual(texts(), ["one", "two"]);
    FakeSocket.last.receive(final("u3", 600, 900, "three"));
    assert.deepEqual(texts(), ["one", "two", "three"]);
  });

  test("a text does not wait for what will have none", async () => {
    const { asr, of } = await opened({ ordered: true });
    await asr.send(audio(0, 900));
    FakeSocket.last.receive(speech("u1", 0), accepted("u1", 0, 200), speech("u2", 300), final("u2", 300, 500, "two"));
    assert.deepEqual(of("final"), []);
    FakeSocket.last.receive(dropped("u1", "cancelled", 0, 200));
    assert.deepEqual(
      of("final").map(({ text }) => text),
      ["two"],
    );
  });

  test("without it none waits", async () => {
    const { asr, of } = await opened();
    await asr.send(audio(0, 900));
    FakeSocket.last.receive(speech("u1", 0), accepted("u1", 0, 200), speech("u2", 300), final("u2", 300, 500, "two"));
    assert.deepEqual(
      of("final").map(({ text }) => text),
      ["two"],
    );
  });
});

describe("close", () => {
  test("ends everything that waits, at once", async () => {
    const { asr, told } = await opened();
    FakeSocket.last.receive(accepted("u1", 0, 100), accepted("u2", 100, 200));
    const sending = asr.send(audio(0, 100));
    const stopping = asr.stop();
    asr.close();
    assert.deepEqual([await state(sending), await state(stopping)], ["closed", "closed"]);
    assert.deepEqual([told.at(-1)[0], told.at(-1)[1].error.code], ["closed", "closed"]);
    assert.deepEqual([asr.isOpen, FakeSocket.last.closed], [false, 1000]);
  });

  test("before the server is there rejects open()", async () => {
    const { asr } = client();
    const opening = asr.open();
    asr.close();
    assert.equal(await state(opening), "closed");
  });

  test("while the connection is away ends the tries", async () => {
    const { asr, of } = await opened();
    FakeSocket.last.fail(1006);
    asr.close();
    pass(60_000);
    assert.deepEqual([FakeSocket.all.length, of("closed").length], [1, 1]);
  });

  test("of nothing does nothing", () => {
    const { asr, told } = client();
    asr.close();
    assert.deepEqual(told, []);
  });

  test("when reconnecting is told ends the tries", async () => {
    const { asr } = await opened();
    asr.addEventListener("reconnecting", () => asr.close());
    FakeSocket.last.fail(1006);
    pass(60_000);
    assert.equal(FakeSocket.all.length, 1);
  });

  test("when a message is told ends it there", async () => {
    const { asr, told } = await opened();
    asr.addEventListener("message", () => asr.close());
    FakeSocket.last.receive(final("u1", 0, 100, "hello"));
    assert.deepEqual(
      told.map(([type]) => type),
      ["ready", "closed"],
    );
  });

  for (const type of ["ready", "started", "final", "done", "closed"])
    test(`when ${type} is told is safe`, async () => {
      const { asr, of } = client();
      asr.addEventListener(type, () => asr.close());
      const opening = asr.open({ sampleRate: 1000 });
      FakeSocket.last.begin();
      FakeSocket.last.receive(final("u1", 0, 100, "hello"), DONE);
      if (type === "closed" && asr.isOpen) asr.close();
      await state(opening);
      assert.deepEqual([asr.isOpen, of("closed").length], [false, 1]);
    });

  test("when reconnected is told is the last that is told", async () => {
    const { asr, told } = await opened();
    asr.addEventListener("reconnected", () => asr.close());
    FakeSocket.last.fail(1006);
    pass(250);
    FakeSocket.last.begin();
    assert.deepEqual(
      told.map(([type]) => type),
      ["ready", "reconnecting", "reconnected", "closed"],
    );
  });

  test("when closed is told another recording may begin", async () => {
    const { asr } = await opened();
    let opening;
    asr.addEventListener("closed", () => (opening = asr.open({ sampleRate: 1000 })), { once: true });
    asr.close();
    FakeSocket.last.begin();
    await opening;
    assert.deepEqual([asr.isOpen, FakeSocket.all.length], [true, 2]);
  });
});

describe("the wrong moment", () => {
  test("there is nothing to send, commit, cancel or stop before a recording: not_open", async () => {
    const { asr } = client();
    assert.deepEqual([await state(asr.send(audio(0, 1))), await state(asr.stop())], ["not_open", "not_open"]);
    for (const call of [() => asr.commit(), () => asr.cancel(), () => asr.cancel("u1")])
      assert.throws(call, { name: "AsrError", code: "not_open" });
  });

  test("after stop() there is nothing more to commit", async () => {
    const { asr } = await opened();
    void asr.stop();
    assert.throws(() => asr.commit(), { code: "not_open" });
  });

  test("there is nothing after it either", async () => {
    const { asr } = await opened();
    asr.close();
    assert.deepEqual([await state(asr.send(audio(0, 1))), await state(asr.stop())], ["not_open", "not_open"]);
    assert.throws(() => asr.commit(), { code: "not_open" });
  });

  test("a second recording beside the first is refused, and leaves it alone: already_open", async () => {
    const { asr } = await opened();
    const error = await asr.open().catch((error) => error);
    assert.deepEqual([error instanceof AsrError, error.code, error.hint !== ""], [true, "already_open", true]);
    assert.equal(await state(asr.start()), "already_open");
    assert.deepEqual([asr.isOpen, FakeSocket.all.length], [true, 1]);
  });

  for (const [where, document, code] of [
    ["outside of a page", undefined, "microphone_missing"],
    ["on a page that is not secure", {}, "microphone_insecure"],
  ])
    test(`no microphone is to be had ${where}, and start() may be called again`, async (context) => {
      context.after(() => delete globalThis.document);
      if (document) globalThis.document = document;
      const { asr, told } = client();
      const errors = [await asr.start().catch((error) => error), await asr.start().catch((error) => error)];
      assert.deepEqual(
        errors.map((error) => [error.name, error.code]),
        Array(2).fill(["AsrError", code]),
      );
      assert.deepEqual(
        told,
        errors.map((error) => ["closed", { error }]),
      );
      assert.deepEqual([asr.isOpen, FakeSocket.all], [false, []]);
    });
});

describe("the microphone", () => {
  /** A client that hears. */
  async function hearing(options) {
    const { open, microphone } = FakeMicrophone.install();
    const made = client(options);
    const starting = made.asr.start();
    open();
    await turn();
    FakeSocket.last.begin();
    await starting;
    return { ...made, microphone };
  }

  test("is asked for with what the options say, and is the recording from its first sample on", async () => {
    const { open, microphone } = FakeMicrophone.install();
    const { asr, told } = client({ microphone: { deviceId: "usb" }, workletUrl: "/worklet.js" });
    const starting = asr.start();
    assert.deepEqual([microphone.constraints, microphone.workletUrl], [{ deviceId: "usb" }, "/worklet.js"]);
    microphone.hear(0, 40); // before the client knows the rate
    open();
    await turn();
    FakeSocket.last.begin();
    await starting;
    microphone.hear(40, 80);
    assert.deepEqual(FakeSocket.last.log, ["start", [0, 80]]);
    assert.equal(FakeSocket.last.sent[0].audio.sample_rate, 1000);
    assert.deepEqual(told, [
      ["level", { peak: 0.5, rms: 0.1 }],
      ["microphone", { state: "open" }],
      ["ready", READY],
      ["level", { peak: 0.5, rms: 0.1 }],
    ]);
  });

  test("is heard to its last frame at stop()", async () => {
    const { asr, microphone, of } = await hearing();
    const drained = Promise.withResolvers();
    microphone.draining = drained.promise;
    microphone.hear(0, 40);
    const stopping = asr.stop();
    microphone.hear(40, 50);
    drained.resolve();
    await turn();
    assert.deepEqual(FakeSocket.last.log, ["start", [0, 50], "end"]);
    FakeSocket.last.receive(DONE);
    await stopping;
    assert.deepEqual(of("microphone"), [{ state: "open" }, { state: "closed" }]);
  });

  test("is heard to its last frame at two stop()s", async () => {
    const { asr, microphone } = await hearing();
    const drained = Promise.withResolvers();
    microphone.draining = drained.promise;
    microphone.hear(0, 40);
    const stopping = Promise.all([asr.stop(), asr.stop()]);
    await turn();
    microphone.hear(40, 50);
    drained.resolve();
    await turn();
    FakeSocket.last.receive(DONE);
    await stopping;
    assert.deepEqual(FakeSocket.last.log, ["start", [0, 50], "end"]);
  });

  test("that is lost stops the recording", async () => {
    const { microphone, of } = await hearing();
    microphone.hear(0, 40);
    microphone.onEnded();
    await turn();
    FakeSocket.last.receive(DONE);
    assert.deepEqual(FakeSocket.last.log, ["start", [0, 40], "end"]);
    assert.deepEqual(of("microphone"), [{ state: "open" }, { state: "lost" }, { state: "closed" }]);
    assert.deepEqual(of("closed"), [{ error: null }]);
  });

  for (const call of ["stop", "close"])
    test(`that opens after ${call}() is given back`, async () => {
      const { open, microphone } = FakeMicrophone.install();
      const { asr, of } = client();
      const starting = asr.start();
      assert.equal(asr.isOpen, true);
      const result = await asr[call]();
      const nothing = { text: "", finals: [], unfinished: [], done: null };
      assert.deepEqual(result, call === "stop" ? nothing : undefined);
      assert.deepEqual([of("closed").map(({ error }) => error.code), asr.isOpen], [["closed"], false]);
      open();
      assert.equal(await state(starting), "closed");
      assert.deepEqual([microphone.isClosed, FakeSocket.all, asr.isOpen], [true, [], false]);
      assert.equal(of("closed").length, 1);
    });

  test("that opens after close() is not the next recording's", async () => {
    const first = FakeMicrophone.install();
    const { asr, of } = client();
    const starting = asr.start();
    asr.close();
    const second = FakeMicrophone.install();
    const again = asr.start();
    first.open();
    assert.equal(await state(starting), "closed");
    assert.deepEqual([asr.isOpen, of("closed").length, FakeSocket.all], [true, 1, []]);
    second.open();
    await turn();
    FakeSocket.last.begin();
    await again;
    second.microphone.hear(0, 40);
    assert.deepEqual([first.microphone.isClosed, FakeSocket.last.log], [true, ["start", [0, 40]]]);
  });

  test("whose last frame comes late is not heard in the next recording", async () => {
    const { asr, microphone } = await hearing();
    const drained = Promise.withResolvers();
    microphone.draining = drained.promise;
    microphone.hear(0, 40);
    asr.close();
    const opening = asr.open({ sampleRate: 1000 });
    FakeSocket.last.begin();
    await opening;
    microphone.hear(40, 80);
    drained.resolve();
    assert.deepEqual([asr.positionMs, FakeSocket.last.log], [0, ["start"]]);
  });

  test("is given back if the server is not there, which is told once", async () => {
    const { open, microphone } = FakeMicrophone.install();
    const { asr, of } = client({ maxReconnects: 0 });
    const starting = asr.start();
    open();
    await turn();
    FakeSocket.last.fail(1006);
    assert.equal(await state(starting), "unreachable");
    assert.deepEqual(
      of("closed").map(({ error }) => error.code),
      ["unreachable"],
    );
    assert.deepEqual([microphone.isClosed, asr.isOpen], [true, false]);
  });

  test("is given back when the connection ends for good", async () => {
    const { microphone, of } = await hearing({ maxReconnects: 0 });
    FakeSocket.last.fail(1006);
    await turn();
    assert.deepEqual([microphone.isClosed, of("closed")[0].error.code], [true, "connection_lost"]);
  });

  test("that is refused is told so, and start() may be called again", async () => {
    const { reject } = FakeMicrophone.install();
    const { asr, told } = client();
    const starting = asr.start();
    const error = new AsrError("microphone_refused", "no");
    reject(error);
    assert.equal(await state(starting), "microphone_refused");
    assert.deepEqual([told, asr.isOpen], [[["closed", { error }]], false]);
    mock.restoreAll();
    assert.equal(await state(asr.start()), "microphone_missing", "of the real one, under node");
  });

  test("is asked for once at a time: already_open", async () => {
    const { reject } = FakeMicrophone.install();
    const { asr } = client();
    const starting = asr.start();
    assert.deepEqual([await state(asr.start()), await state(asr.open())], ["already_open", "already_open"]);
    reject(new AsrError("microphone_refused", "no"));
    assert.equal(await state(starting), "microphone_refused");
  });
});
