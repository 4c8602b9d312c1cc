/**
 * A microphone as frames of PCM, at 16 kHz where the browser resamples by itself (Chromium, Safari), else at its own
 * rate (Firefox gives a microphone to no context of another rate).
 */

import { AsrError } from "./asr-error.js";

const RATE = 16_000; // Hz: what the recognizer takes
const FRAME_MS = 40;
const LAST_FRAME_MS = 500; // for what the audio thread still has

/** By the name of the exception that getUserMedia throws. */
const REFUSALS = {
  NotAllowedError: [
    "microphone_refused",
    "the browser does not let this page use the microphone",
    "allow it in the site's settings, at the left of the address, and in the system's privacy settings",
  ],
  NotFoundError: ["microphone_missing", "there is no microphone", "plug one in, or choose a file instead"],
  OverconstrainedError: ["microphone_missing", "this microphone is not there any more", "choose another one"],
  WorkletError: [
    "worklet_failed",
    "recorder-worklet.js cannot be loaded",
    "is the server running? It belongs beside asr-client.js, or where `workletUrl` says",
  ],
  NotReadableError: ["microphone_busy", "the microphone cannot be read", "another program may have it: close that one"],
};

export class Microphone {
  #stream;
  #context;
  #node;
  #onEnded;
  #drained;

  /**
   * @param {object} options
   * @param {(samples: Int16Array, level: {peak: number, rms: number}) => void} options.onAudio
   * @param {() => void} [options.onEnded] it was unplugged, or taken away by the browser or the system
   * @param {MediaTrackConstraints} [options.constraints]
   * @param {string | URL} [options.workletUrl] where recorder-worklet.js is, if it is not beside this file
   * @returns {Promise<Microphone>}
   * @throws {AsrError} microphone_insecure, microphone_refused, microphone_missing, microphone_busy, microphone_failed, worklet_failed
   */
  static async open({ onAudio, onEnded, constraints, workletUrl }) {
    if (!globalThis.document)
      throw new AsrError("microphone_missing", "there is no microphone here", "open() and send()");
    if (!globalThis.isSecureContext || !navigator.mediaDevices)
      throw new AsrError(
        "microphone_insecure",
        "browsers give the microphone to secure pages only",
        "open the page by https://, or on the server's own machine as http://localhost",
      );
    const microphone = new Microphone();
    microphone.#onEnded = onEnded;
    try {
      await microphone.#open(onAudio, constraints, workletUrl ?? new URL("./recorder-worklet.js", import.meta.url));
    } catch (error) {
      microphone.#release();
      const [code, message, hint] = REFUSALS[error.name] ?? ["microphone_failed", error.message, ""];
      throw new AsrError(code, message, hint, { cause: error });
    }
    return microphone;
  }

  /** Hz, of what it gives. */
  get sampleRate() {
    return this.#context.sampleRate;
  }

  async #open(onAudio, constraints, workletUrl) {
    this.#context = new AudioContext({ sampleRate: RATE }); // at once: a click's permission to do so does not last
    // Not noise suppression, which is made for ears: it takes words from a recognizer (docs/howto/browser.md).
    this.#stream = await navigator.mediaDevices.getUserMedia({
      audio: {
        channelCount: 1,
        echoCancellation: true,
        autoGainControl: true,
        noiseSuppression: false,
        ...constraints,
      },
    });
    let source;
    try {
      source = this.#context.createMediaStreamSource(this.#stream);
    } catch (error) {
      if (error.name !== "NotSupportedError") throw error;
      await this.#context.close();
      this.#context = new AudioContext();
      source = this.#context.createMediaStreamSource(this.#stream);
    }
    await this.#context.audioWorklet.addModule(workletUrl).catch((cause) => {
      throw Object.assign(new Error(cause.message, { cause }), { name: "WorkletError" });
    });
    this.#node = new AudioWorkletNode(this.#context, "asr-recorder", {
      numberOfOutputs: 0,
      channelCount: 1, // mixed down by the browser
      channelCountMode: "explicit",
      processorOptions: { frameSamples: Math.round((this.sampleRate * FRAME_MS) / 1000) },
    });
    this.#node.port.onmessage = ({ data }) => (data ? onAudio(data.samples, data.level) : this.#drained?.());
    source.connect(this.#node);
    this.#context.onstatechange = () => this.#listen();
    this.#listen();
    for (const track of this.#stream.getTracks()) {
      track.onended = () => this.#onEnded?.();
      if (track.readyState === "ended") throw new DOMException("it is gone again", "NotFoundError");
    }
  }

  /** A telephone call takes the sound away, and gives it back. */
  #listen() {
    const { state } = this.#context;
    if (["suspended", "interrupted"].includes(state)) this.#context.resume().catch(() => {}); // the next state will tell
    if (state === "closed") this.#onEnded?.();
  }

  /** Give it back, once the last of its audio has come. */
  async close() {
    await new Promise((resolve) => {
      this.#drained = resolve;
      setTimeout(resolve, LAST_FRAME_MS);
      this.#node.port.postMessage("drain");
    });
    this.#release();
  }

  #release() {
    for (const track of this.#stream?.getTracks() ?? []) {
      track.onended = null;
      track.stop();
    }
    if (!this.#context || this.#context.state === "closed") return;
    this.#context.onstatechange = null;
    void this.#context.close();
  }
}
