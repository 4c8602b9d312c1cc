/** The text on the page: one paragraph for each utterance, in the order of the audio, and what can be made of it. */

export class Transcript {
  #element;
  #spoken; // where a screen reader hears of what is settled, and only of that
  #utterances = new Map(); // by id, of all recordings: {start, end, text, segments, element}
  #recording = 0;
  #latest = 0; // beginning of an utterance
  #base = 0; // milliseconds of the recordings before
  #origin = 0; // of the subtitles: a file has its own
  name = ""; // of the subtitles' file

  constructor(element, spoken) {
    this.#element = element;
    this.#spoken = spoken;
  }

  /** @type {(hasText: boolean) => void} */
  onChange = () => {};

  /** A new recording begins, whose times and ids begin again. `file`: of that name; else what the microphone hears. */
  begin(file = undefined) {
    this.#recording += 1;
    this.#base = Math.max(0, ...[...this.#utterances.values()].map(({ end }) => end ?? 0));
    const name = file?.replace(/\.\w+$/, "") ?? "transcript";
    if (file || name !== this.name || !this.#base) this.#origin = this.#base;
    this.name = name;
  }

  partial({ utterance, stable, unstable, audio_end_ms }) {
    const entry = this.#at(utterance, audio_end_ms);
    const { element } = entry;
    entry.heard = this.#base + audio_end_ms;
    this.#renew(entry.start, entry.heard);
    const parts = [
      [stable, "stable"],
      [unstable, "unstable"],
    ].map(([text, name]) => {
      const span = document.createElement("span");
      span.className = name;
      span.textContent = text; // never markup: it is what somebody said
      return span;
    });
    this.#change(() => element.replaceChildren(...parts));
  }

  final({ utterance, text, segments, audio_start_ms, audio_end_ms }) {
    this.#renew(-Infinity, this.#base + audio_end_ms);
    if (!text) return this.forget(utterance);
    const entry = this.#at(utterance, audio_start_ms);
    const at = (ms) => this.#base + ms;
    segments = segments.map(({ text, start_ms, end_ms }) => ({
      text: text.trim(),
      start: at(start_ms),
      end: at(end_ms),
    }));
    Object.assign(entry, { start: at(audio_start_ms), end: at(audio_end_ms), text, segments });
    this.#change(() => {
      entry.element.className = "final";
      entry.element.textContent = text;
      this.#place(entry);
    });
    this.#spoken.textContent = text;
    this.onChange(true);
  }

  /** It will be heard again under another name: its words stay, grey, until there are others for them. */
  age(utterance) {
    const entry = this.#utterances.get(`${this.#recording}/${utterance}`);
    if (entry) entry.element.className = "aged";
  }

  /** There are words for what was said then. */
  #renew(from, until) {
    for (const [key, { element, start, heard = start }] of this.#utterances)
      if (element.className === "aged" && start < until && heard >= from) this.#remove(key);
  }

  /** It is being heard, or waits. */
  speech({ utterance, audio_start_ms }) {
    this.#at(utterance, audio_start_ms).element.textContent ||= "…";
  }

  forget(utterance) {
    this.#remove(`${this.#recording}/${utterance}`);
  }

  #remove(key) {
    this.#utterances.get(key)?.element.remove();
    this.#utterances.delete(key);
  }

  /** What has no text will have none under that name. */
  forgetUnfinished() {
    for (const [key, { text }] of this.#utterances) if (text === undefined) this.#remove(key);
  }

  clear() {
    this.#utterances.clear();
    this.#element.replaceChildren();
    this.#latest = 0;
    this.#spoken.textContent = "";
    this.onChange(false);
  }

  get text() {
    return this.#settled()
      .map(({ text }) => text)
      .join("\n");
  }

  get srt() {
    return this.#cues()
      .map(([start, end, text], n) => `${n + 1}\n${clock(start, ",")} --> ${clock(end, ",")}\n${text}\n`)
      .join("\n");
  }

  get vtt() {
    const safe = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
    const cues = this.#cues().map(
      ([start, end, text]) => `${clock(start, ".")} --> ${clock(end, ".")}\n${safe(text)}\n`,
    );
    return ["WEBVTT\n", ...cues].join("\n");
  }

  #settled() {
    return [...this.#utterances.values()].filter(({ text }) => text).sort(byStart);
  }

  #cues() {
    const cues = this.#settled().flatMap((whole) => (whole.segments.length ? whole.segments : [whole]));
    return cues
      .filter(({ start, text }) => text && start >= this.#origin)
      .map(({ start, end, text }) => [
        start - this.#origin,
        end - this.#origin,
        text.trim().replace(/\s*\n\s*/g, "\n"), // an empty line would end the subtitle
      ]);
  }

  #at(utterance, ms) {
    const key = `${this.#recording}/${utterance}`;
    if (!this.#utterances.has(key)) {
      const entry = { start: this.#base + ms, element: document.createElement("p") };
      entry.element.className = "live";
      this.#utterances.set(key, entry);
      this.#change(() => this.#place(entry));
    }
    return this.#utterances.get(key);
  }

  #place(entry) {
    if (!(entry.start < this.#latest)) {
      this.#latest = entry.start;
      if (this.#element.lastChild !== entry.element) this.#element.append(entry.element);
      return;
    }
    const later = [...this.#utterances.values()].filter(({ start }) => start > entry.start);
    this.#element.insertBefore(entry.element, later.sort(byStart)[0]?.element ?? null);
  }

  /** Who reads at the end stays there. */
  #change(change) {
    const box = this.#element;
    const isAtEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
    change();
    if (isAtEnd) box.scrollTop = box.scrollHeight;
  }
}

function byStart(one, other) {
  return one.start - other.start;
}

function clock(ms, decimal) {
  const whole = Math.round(ms);
  const digits = (value, n = 2) => String(Math.floor(value)).padStart(n, "0");
  const time = [whole / 3600000, (whole / 60000) % 60, (whole / 1000) % 60].map((value) => digits(value)).join(":");
  return time + decimal + digits(whole % 1000, 3);
}
