/** What must type-check, and what must not: see test_types.py. Nothing here is run. */

import {
  AsrClient,
  AsrError,
  Microphone,
  VERSION,
  reconnectDelayMs,
  sessionUrl,
  type AsrClientOptions,
  type AsrEventMap,
  type Final,
  type StartFields,
} from "asr-ws-client";

const start: StartFields = {
  language: null,
  task: "translate",
  prompt: "Dear Ann",
  hotwords: "Ann",
  partials: false,
  words: true,
  endpointing: { mode: "manual", silence_ms: 500, threshold: 0.4 },
  max_wait_ms: 2000,
  client: "mine",
};
const microphone = { deviceId: "usb" };
const options: AsrClientOptions = {
  token: "secret",
  start,
  ringSeconds: 30,
  maxReconnects: 3,
  ordered: true,
  microphone,
};
const asr = new AsrClient(new URL("https://server/"), options);
new AsrClient();
new AsrClient("/", { workletUrl: new URL("https://server/worklet.js"), WebSocket });

export async function record(): Promise<string> {
  await asr.start();
  await asr.open();
  await asr.open({ sampleRate: 48_000 });
  await asr.send(new Int16Array(160));
  await asr.send(new Float32Array(160));
  asr.commit();
  asr.commit("c1");
  asr.cancel();
  asr.cancel("u1");
  const { text, finals, unfinished, done } = await asr.stop();
  const lostMs = unfinished.map((each) =>
    "audio_end_ms" in each ? each.audio_end_ms - each.audio_start_ms : each.code,
  );
  const lost: number | undefined = done?.lost_ms;
  const first: Final | undefined = finals[0];
  asr.close();
  return `${text} ${lost} ${first?.latency_ms} ${lostMs} ${asr.isOpen} ${asr.positionMs} ${asr.ready?.limits.hold_ms}`;
}

asr.addEventListener("ready", ({ detail }) => detail.languages.includes("en"));
asr.addEventListener("started", ({ detail }) => detail.endpointing.silence_ms + detail.audio.sample_rate);
asr.addEventListener("speech_started", ({ detail }) => detail.audio_start_ms);
asr.addEventListener("partial", ({ detail }) => (detail.stable + detail.unstable).trim());
asr.addEventListener("accepted", ({ detail }) => detail.endpoint === "end" || detail.estimated_final_ms);
asr.addEventListener("final", function ({ detail }) {
  this.commit();
  detail.segments.map(({ text, no_speech_prob }) => text + no_speech_prob);
  detail.words?.map(({ word, probability }) => word + probability);
  detail.filtered?.trim();
});
asr.addEventListener("busy", ({ detail }) => detail.utterance?.trim() || detail.reason === "queue_full");
asr.addEventListener("retry", ({ detail }) => detail.waited_ms + detail.retry_after_ms);
asr.addEventListener("dropped", ({ detail }) => detail.reason === "hold_expired");
asr.addEventListener("error", ({ detail }) => detail.fatal && detail.code === "unauthorized" && detail.hint);
asr.addEventListener("state", ({ detail }) => detail.state === "draining" && detail.partials === "paused");
asr.addEventListener("done", ({ detail }) => detail.received_ms - detail.lost_ms);
asr.addEventListener("message", ({ detail }) => detail.type === "speaker" && detail["name"]);
asr.addEventListener("waiting", ({ detail }) => detail.utterance.trim() + detail.delay_ms + detail.reason);
asr.addEventListener("retrying", ({ detail }) => detail.utterance);
asr.addEventListener("reconnecting", ({ detail }) => [detail.attempt, detail.code, ...detail.interrupted]);
asr.addEventListener("reconnected", () => {}, { once: true });
asr.addEventListener("gap", ({ detail }) => detail.audio_end_ms - detail.audio_start_ms);
asr.addEventListener("behind", ({ detail }) => detail.behind_ms > 0 && detail.why === "busy");
asr.addEventListener("rtt", ({ detail }) => detail.ms);
asr.addEventListener("level", ({ detail }) => detail.peak + detail.rms);
asr.addEventListener("microphone", ({ detail }) => detail.state === "lost");
asr.addEventListener("closed", ({ detail }) => detail.error?.code === "connection_lost");
asr.addEventListener("closed", { handleEvent: ({ detail }) => detail.error });
asr.addEventListener("final", null);
const onFinal = ({ detail }: CustomEvent<AsrEventMap["final"]>): void => void detail.text;
asr.addEventListener("final", onFinal);
asr.removeEventListener("final", onFinal);
const target: EventTarget = asr;
target.dispatchEvent(new Event("final"));

const error = new AsrError("not_open", "no recording", "open one", { cause: new Error() });
const name: "AsrError" = error.name;
export const facts = [name, error.hint, error.code === "closed", error.code === "of a newer server", VERSION.length];
export const numbers: number[] = [reconnectDelayMs(1), reconnectDelayMs(1, 500, () => 0.5)];
export const address: string = sessionUrl(".", "https://server/") + sessionUrl(new URL("https://server/"));
export const rate: Promise<number> = Microphone.open({
  onAudio: (samples: Int16Array, { peak }) => samples.length * peak,
  constraints: { deviceId: "usb" },
}).then((microphone) => microphone.close().then(() => microphone.sampleRate));

// ---------------------------------------------------------------- what must not

// @ts-expect-error no such event
asr.addEventListener("finals", () => {});
// @ts-expect-error no such event
asr.removeEventListener("finals", () => {});
// @ts-expect-error its round trip is the event: `rtt`
asr.addEventListener("pong", () => {});
// @ts-expect-error the field of a `final`
asr.addEventListener("partial", ({ detail }) => detail.text);
// @ts-expect-error misspelt
asr.addEventListener("final", ({ detail }) => detail.audioStartMs);
// @ts-expect-error a number
asr.addEventListener("final", ({ detail }) => detail.wait_ms.trim());
// @ts-expect-error no such endpoint
asr.addEventListener("accepted", ({ detail }) => detail.endpoint === "timeout");
// @ts-expect-error no such reason
asr.addEventListener("dropped", ({ detail }) => detail.reason === "lost");
// @ts-expect-error null where the session itself was refused
asr.addEventListener("busy", ({ detail }) => detail.utterance.trim());
// @ts-expect-error null after stop()
asr.addEventListener("closed", ({ detail }) => detail.error.code);
// @ts-expect-error without `words` there are none
asr.addEventListener("final", ({ detail }) => detail.words.length);
// @ts-expect-error the client says the format itself
new AsrClient("/", { start: { audio: { sample_rate: 8000 } } });
// @ts-expect-error an option of the client's
new AsrClient("/", { start: { token: "secret" } });
// @ts-expect-error misspelt
new AsrClient("/", { start: { endpointing: { silence: 500 } } });
// @ts-expect-error misspelt
new AsrClient("/", { ringSecond: 30 });
// @ts-expect-error bytes are not samples
void asr.send(new Uint8Array(320));
// @ts-expect-error read only
asr.isOpen = true;
// @ts-expect-error null before the server has said it
asr.ready.model;
// @ts-expect-error by Microphone.open()
new Microphone();
