/**
 * The audio of one recording: what is still kept of it, and what of it has its outcome. Positions are samples from the
 * recording's first one, ranges are `[start, end)`. No clock, no socket: see asr-client.js for who uses it.
 */

/** Disjoint ranges in order. */
export class Ranges {
  #ranges = [];

  add(start, end) {
    if (start >= end) return;
    const apart = [];
    for (const [from, to] of this.#ranges) {
      if (to < start || from > end) apart.push([from, to]);
      else [start, end] = [Math.min(from, start), Math.max(to, end)];
    }
    this.#ranges = [...apart, [start, end]].sort(([one], [other]) => one - other);
  }

  /** What of `[start, end)` is in one of them. */
  within(start, end) {
    const parts = this.#ranges.map(([from, to]) => [Math.max(from, start), Math.min(to, end)]);
    return parts.filter(([from, to]) => from < to);
  }

  /** What of `[start, end)` is in none of them. */
  gaps(start, end) {
    const gaps = [];
    for (const [from, to] of this.#ranges) {
      if (from >= end) break;
      if (from > start) gaps.push([start, from]);
      start = Math.max(start, to);
    }
    if (start < end) gaps.push([start, end]);
    return gaps;
  }
}

export class AudioRing {
  #chunks = []; // {start, samples}, one after the other without holes
  #settled = new Ranges();
  end = 0; // of what was appended

  /** @param {number} capacity samples, of which older ones make room for newer ones */
  constructor(capacity) {
    this.capacity = capacity;
  }

  /** The oldest sample that is kept. */
  get start() {
    return this.#chunks[0]?.start ?? this.end;
  }

  /** @param {Int16Array} samples kept as they are, not copied */
  append(samples) {
    if (!samples.length) return;
    this.#chunks.push({ start: this.end, samples });
    this.end += samples.length;
    while (this.#chunks.length > 1 && this.end - this.#chunks[1].start >= this.capacity) this.#chunks.shift();
  }

  /** This has its outcome: it is not to be sent again. */
  settle(start, end) {
    this.#settled.add(start, end);
  }

  /**
   * What is left between outcomes, by rounding or by a detector that began anew, is no word.
   * @param {number} n fewer samples than that
   */
  settleScraps(n) {
    for (const [start, end] of this.unsettled(0, this.end))
      if (end < this.end && end - start < n) this.settle(start, end);
  }

  /** What of it has none. */
  unsettled(start, end) {
    return this.#settled.gaps(start, end);
  }

  /** A copy of what is kept, of at most `n` samples from `start`. */
  read(start, n) {
    const parts = [];
    for (const chunk of this.#chunks.slice(this.#chunkAt(start))) {
      if (n <= 0) break;
      const from = start - chunk.start;
      const part = chunk.samples.subarray(from, from + n);
      parts.push(part);
      start += part.length;
      n -= part.length;
    }
    const samples = new Int16Array(parts.reduce((sum, part) => sum + part.length, 0));
    let at = 0;
    for (const part of parts) {
      samples.set(part, at);
      at += part.length;
    }
    return samples;
  }

  /** Which chunk has this sample: by halves, since a minute is thousands of chunks. */
  #chunkAt(position) {
    let [low, high] = [0, this.#chunks.length];
    while (low < high) {
      const middle = (low + high) >> 1;
      const { start, samples } = this.#chunks[middle];
      if (start + samples.length <= position) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}
