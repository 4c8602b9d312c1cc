// Each was a fault once: what was held back, dropped, cancelled, or came too late.
import assert from "node:assert/strict";
import { afterEach, beforeEach, mock, test } from "node:test";
import { AsrClient, Microphone } from "../../../clients/browser/asr-client.js";
import {
  FakeSocket,
  READY,
  accepted,
  audio,
  dropped,
  final,
  freeTime,
  opened,
  pass,
  speech,
  stopTime,
  turn,
} from "./fakes.mjs";
const DONE = { type: "done", seq: 9 };
beforeEach(stopTime);
afterEach(freeTime);
test("ordered: a reconnect's ready releases what waits for an interrupted utterance", async () => {
  const { asr, of } = await opened({ ordered: true });
  await asr.send(audio(0, 900));
  FakeSocket.last.receive(
    speech("u1", 0),
    accepted("u1", 0, 200),
    speech("u2", 300),
    accepted("u2", 300, 900),
    final("u2", 300, 900, "two"),
  );
  FakeSocket.last.fail(1006);
  pass(250);
  FakeSocket.last.begin();
  FakeSocket.last.receive(speech("u1", 0), accepted("u1", 0, 200), final("u1", 0, 200, "one"));
  assert.deepEqual(
    of("final").map(({ text }) => text),
    ["one", "two"],
  );
});
test("ordered: what was dropped, and is sent again, comes before what was said later", async () => {
  const { asr, of } = await opened({ ordered: true });
  await asr.send(audio(0, 900));
  const stopping = asr.stop();
  await turn();
  FakeSocket.last.receive(
    speech("u1", 0),
    accepted("u1", 0, 200),
    speech("u2", 300),
    accepted("u2", 300, 900),
    final("u2", 300, 900, "two"),
    dropped("u1", "evicted", 0, 200),
    DONE,
  );
  pass(250);
  FakeSocket.last.begin();
  FakeSocket.last.receive(final("u1", 0, 200, "one"), DONE);
  await stopping;
  assert.deepEqual(
    of("final").map(({ text }) => text),
    ["one", "two"],
  );
});
test("ordered: what is held back comes before closed", async () => {
  const { asr, told } = await opened({ ordered: true });
  await asr.send(audio(0, 900));
  asr.addEventListener("final", () => asr.close());
  FakeSocket.last.receive(
    speech("u1", 0),
    accepted("u1", 0, 200),
    speech("u2", 300),
    final("u2", 300, 900, "two"),
    final("u1", 0, 200, "one"),
  );
  assert.deepEqual(
    told.map(([type]) => type),
    ["ready", "final", "final", "closed"],
  );
});
test("cancel() of what was dropped opens no session for it", async () => {
  const { asr } = await opened();
  await asr.send(audio(0, 900));
  FakeSocket.last.receive(accepted("u1", 0, 900), dropped("u1", "evicted", 0, 900));
  asr.cancel();
  const stopping = asr.stop();
  await turn();
  FakeSocket.last.receive(DONE);
  assert.equal(FakeSocket.all.length, 1);
});
test("cancel(id) of an interrupted utterance of unknown end, after the reconnect, leaves what came later", async () => {
  const { asr } = await opened();
  await asr.send(audio(0, 500));
  FakeSocket.last.receive(speech("u1", 100));
  FakeSocket.last.fail(1006);
  pass(250);
  FakeSocket.last.begin();
  await asr.send(audio(500, 900));
  FakeSocket.last.receive(speech("u1", 0), accepted("u1", 0, 300), speech("u2", 500)); // 1:u1 and 1:u2
  asr.cancel("u1");
  FakeSocket.last.fail(1006);
  pass(500);
  FakeSocket.last.begin();
  assert.deepEqual(FakeSocket.last.log.at(-1)[1], 900);
});
test("an error of an utterance that gets its text all the same leaves it finished", async () => {
  const { asr } = await opened();
  await asr.send(audio(0, 900));
  FakeSocket.last.receive(
    accepted("u1", 0, 900),
    { type: "error", code: "unexpected_message", fatal: false, utterance: "u1", commit: null },
    final("u1", 0, 900),
  );
  const stopping = asr.stop();
  await turn();
  FakeSocket.last.receive(DONE);
  assert.deepEqual((await stopping).unfinished, []);
});
test("send() at once after stop() is not_open", async () => {
  const { asr } = await opened();
  const stopping = asr.stop();
  await assert.rejects(asr.send(audio(0, 100)), { code: "not_open" });
  await turn();
  FakeSocket.last.receive(DONE);
  await stopping;
});
test("stop() while opening, then the user refuses: start() rejects with closed", async () => {
  const { promise, reject } = Promise.withResolvers();
  mock.method(Microphone, "open", () => promise);
  const asr = new AsrClient("http://server/", { WebSocket: FakeSocket });
  const starting = asr.start();
  await asr.stop();
  reject(Object.assign(new Error("no"), { code: "microphone_refused" }));
  await assert.rejects(starting, { code: "closed" });
});
test("the old microphone, while it drains, stops no other recording and tells no level", async () => {
  let asked;
  const drained = Promise.withResolvers();
  mock.method(Microphone, "open", async (options) => {
    asked = options;
    return { sampleRate: 1000, close: () => drained.promise };
  });
  const asr = new AsrClient("http://server/", { WebSocket: FakeSocket });
  const told = [];
  for (const type of ["level", "closed", "microphone"]) asr.addEventListener(type, () => told.push(type));
  const starting = asr.start();
  await turn();
  FakeSocket.last.begin();
  await starting;
  asr.close();
  const opening = asr.open({ sampleRate: 1000 });
  FakeSocket.last.begin();
  await opening;
  asked.onAudio(audio(0, 40), {});
  asked.onEnded();
  drained.resolve();
  await turn();
  assert.deepEqual([told, FakeSocket.last.log], [["microphone", "closed", "microphone"], ["start"]]);
});
test("a server that keeps dropping for minutes is not asked for ever", async () => {
  const { asr } = await opened({ maxReconnects: 2 });
  await asr.send(audio(0, 900));
  void asr.stop();
  await turn();
  for (let i = 0; i < 8; i++) {
    pass(5100);
    FakeSocket.last.pong();
    FakeSocket.last.receive(dropped("u1", "hold_expired", 0, 900), DONE);
    if (FakeSocket.last.readyState === 0) FakeSocket.last.begin();
  }
  assert.equal(FakeSocket.all.length, 3);
});
test("finals held back when the connection is lost for good are told", async () => {
  const { asr, of } = await opened({ ordered: true, maxReconnects: 0 });
  await asr.send(audio(0, 900));
  FakeSocket.last.receive(speech("u1", 0), accepted("u1", 0, 200), speech("u2", 300), final("u2", 300, 900, "two"));
  FakeSocket.last.fail(1006);
  assert.deepEqual(
    of("final").map(({ text }) => text),
    ["two"],
  );
});
test("what was dropped in mid-recording is sent again before it leaves the ring, and holds nothing up", async () => {
  const { asr, of } = await opened({ ordered: true, ringSeconds: 5 });
  await asr.send(audio(0, 900));
  FakeSocket.last.receive(speech("u1", 0), accepted("u1", 0, 900), dropped("u1", "hold_expired", 0, 900));
  void asr.send(audio(900, 1800));
  pass(250);
  FakeSocket.last.begin();
  FakeSocket.last.pong();
  assert.deepEqual(FakeSocket.last.log, ["start", [0, 1800]]);
  FakeSocket.last.receive(final("u1", 0, 900, "one"), final("u2", 900, 1800, "two"));
  assert.deepEqual(
    of("final").map(({ text }) => text),
    ["one", "two"],
  );
});
test("what was dropped and is not to be sent again ends as a gap, and holds up no text behind it", async () => {
  const { asr, of } = await opened({ ordered: true, maxReconnects: 0 });
  await asr.send(audio(0, 900));
  const [one, two] = [accepted("u1", 0, 500), speech("u2", 500)];
  FakeSocket.last.receive(speech("u1", 0), one, two, dropped("u1", "hold_expired", 0, 500));
  assert.deepEqual(of("gap"), [], "another one is under way");
  FakeSocket.last.receive(final("u2", 500, 900, "two"));
  assert.deepEqual(of("gap"), [{ audio_start_ms: 0, audio_end_ms: 500 }]);
  assert.deepEqual(
    of("final").map(({ text }) => text),
    ["two"],
  );
});
test("what was dropped is sent again though there is always another one under way, before the ring has lost it", async () => {
  const { asr, of } = await opened({ ringSeconds: 2 });
  void asr.send(audio(0, 1000));
  FakeSocket.last.receive(speech("u1", 0), accepted("u1", 0, 500), speech("u2", 500));
  FakeSocket.last.receive(dropped("u1", "hold_expired", 0, 500), speech("u3", 700));
  assert.equal(FakeSocket.last.closed, null);
  void asr.send(audio(1000, 1100));
  FakeSocket.last.receive({ type: "state", state: "ready" });
  assert.equal(FakeSocket.last.closed, 1000);
  const [{ reason, interrupted }] = of("reconnecting");
  assert.deepEqual([reason, interrupted], ["dropped", ["u2", "u3"]]);
  pass(250);
  FakeSocket.last.begin();
  FakeSocket.last.pong();
  assert.deepEqual(FakeSocket.last.log, ["start", [0, 1100]]);
  assert.deepEqual(of("gap"), []);
});
test("other audio that is dropped is sent again as often as the first, and the first no more often for that", async () => {
  const { asr, of } = await opened({ maxReconnects: 1 });
  void asr.send(audio(0, 900));
  FakeSocket.last.receive(dropped("u1", "not_held", 0, 300));
  pass(250);
  FakeSocket.last.begin();
  FakeSocket.last.receive(
    final("u2", 300, 600),
    dropped("u1", "not_held", 0, 300),
    dropped("u3", "not_held", 600, 900),
  );
  pass(250);
  FakeSocket.last.begin();
  assert.deepEqual([FakeSocket.all.length, of("gap")], [3, [{ audio_start_ms: 0, audio_end_ms: 300 }]]);
  assert.deepEqual(FakeSocket.last.log, ["start", [600, 900]]);
});
test("what was dropped is cancelled by its name before it is sent again", async () => {
  const { asr } = await opened();
  void asr.send(audio(0, 900));
  FakeSocket.last.receive(dropped("u1", "not_held", 0, 300));
  asr.cancel("u1");
  pass(250);
  FakeSocket.last.begin();
  assert.deepEqual(FakeSocket.last.log, ["start", [300, 900]]);
});
test("who closes the recording upon the first gap is told of no other", async () => {
  const { asr, told } = await opened({ maxReconnects: 0 });
  void asr.send(audio(0, 900));
  FakeSocket.last.receive(speech("u1", 100), final("u1", 300, 500));
  asr.addEventListener("gap", () => asr.close());
  FakeSocket.last.fail(1006);
  assert.deepEqual(
    told.slice(-2).map(([type]) => type),
    ["gap", "closed"],
  );
});
test("a commit between two milliseconds leaves nothing to be sent again", async () => {
  const { asr } = await opened({}, 16_000);
  for (const [from, to] of [
    [0, 16_004],
    [16_004, 32_006],
  ]) {
    await asr.send(new Int16Array(to - from));
    asr.commit();
    FakeSocket.last.pong();
    const [start, end] = [from, to].map((at) => Math.round(at / 16));
    FakeSocket.last.receive(speech(`u${end}`, start), final(`u${end}`, start, end));
  }
  FakeSocket.last.fail(1006);
  pass(250);
  FakeSocket.last.begin();
  void asr.stop();
  await turn();
  assert.deepEqual([FakeSocket.last.nSamples, FakeSocket.last.log], [0, ["start", "end"]]);
});
test("a final that was held back to the end comes while the recording is open, and closed is the last", async () => {
  const { asr, told } = await opened({ ordered: true, maxReconnects: 0 });
  await asr.send(audio(0, 900));
  const seen = [];
  asr.addEventListener("final", () => seen.push(asr.isOpen));
  let opening;
  asr.addEventListener("closed", () => (opening = asr.open({ sampleRate: 1000 })), { once: true });
  FakeSocket.last.receive(speech("u1", 0), accepted("u1", 0, 200), speech("u2", 300), final("u2", 300, 900, "two"));
  FakeSocket.last.fail(1006);
  assert.deepEqual(seen, [true]);
  FakeSocket.last.begin();
  await opening;
  assert.equal(told.at(-1)[0], "ready");
});
