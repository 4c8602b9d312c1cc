import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { AudioRing, Ranges } from "../../../clients/browser/audio-ring.js";
import { audio } from "./fakes.mjs";

function ranges(...added) {
  const made = new Ranges();
  for (const [start, end] of added) made.add(start, end);
  return made;
}

/** Numbers below `n` that are the same each time (mulberry32). */
function numbers(seed) {
  return (n) => {
    seed = (seed + 0x6d2b79f5) | 0;
    let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return Math.floor((((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32) * n);
  };
}

/** The runs of `false` within `[start, end)`. */
function gapsOf(booleans, start, end) {
  const gaps = [];
  for (let at = start; at < end; at++) {
    if (booleans[at]) continue;
    if (gaps.length && gaps.at(-1)[1] === at) gaps.at(-1)[1] = at + 1;
    else gaps.push([at, at + 1]);
  }
  return gaps;
}

describe("Ranges", () => {
  test("nothing added is one gap", () => {
    assert.deepEqual(new Ranges().gaps(3, 7), [[3, 7]]);
  });

  test("an empty question has no gaps", () => {
    assert.deepEqual(new Ranges().gaps(3, 3), []);
    assert.deepEqual(ranges([0, 5]).gaps(7, 7), []);
  });

  test("an empty or inverted range adds nothing", () => {
    assert.deepEqual(ranges([5, 5], [7, 6]).gaps(0, 10), [[0, 10]]);
  });

  test("gaps lie before, between and after", () => {
    assert.deepEqual(ranges([6, 8], [2, 4]).gaps(0, 10), [
      [0, 2],
      [4, 6],
      [8, 10],
    ]);
  });

  test("gaps are cut at the question's ends", () => {
    assert.deepEqual(ranges([2, 4], [6, 8]).gaps(3, 7), [[4, 6]]);
    assert.deepEqual(ranges([2, 4], [6, 8]).gaps(4, 6), [[4, 6]]);
  });

  test("a question within one range has no gap", () => {
    assert.deepEqual(ranges([2, 8]).gaps(2, 8), []);
    assert.deepEqual(ranges([2, 8]).gaps(4, 5), []);
  });

  test("ranges that overlap, touch or contain each other become one", () => {
    for (const added of [
      [
        [2, 5],
        [4, 8],
      ],
      [
        [2, 5],
        [5, 8],
      ],
      [
        [2, 8],
        [4, 5],
      ],
      [
        [4, 5],
        [2, 8],
      ],
      [
        [5, 8],
        [2, 5],
      ],
    ])
      assert.deepEqual(ranges(...added).gaps(0, 10), [
        [0, 2],
        [8, 10],
      ]);
  });

  test("one range bridges many", () => {
    assert.deepEqual(ranges([1, 2], [3, 4], [5, 6], [8, 9], [2, 6]).gaps(0, 10), [
      [0, 1],
      [6, 8],
      [9, 10],
    ]);
  });

  test("an open end swallows all that follows", () => {
    assert.deepEqual(ranges([8, 9], [4, Infinity]).gaps(0, 100), [[0, 4]]);
  });

  test("what is within a question is cut at its ends", () => {
    const made = ranges([2, 4], [6, 8], [20, Infinity]);
    assert.deepEqual(made.within(3, 7), [
      [3, 4],
      [6, 7],
    ]);
    assert.deepEqual(made.within(0, 30), [
      [2, 4],
      [6, 8],
      [20, 30],
    ]);
    assert.deepEqual([made.within(4, 6), made.within(3, 3), new Ranges().within(0, 9)], [[], [], []]);
  });

  test("any row of additions is what a row of booleans is", () => {
    const below = numbers(1);
    for (let round = 0; round < 200; round++) {
      const [made, model] = [new Ranges(), new Array(60).fill(false)];
      for (let step = 0; step < 12; step++) {
        const [start, end] = [below(60), below(61)];
        made.add(start, end);
        if (start < end) model.fill(true, start, end);
        const [from, to] = [below(60), below(61)];
        assert.deepEqual(made.gaps(from, to), gapsOf(model, from, to), `round ${round}, step ${step}`);
        assert.deepEqual(made.gaps(0, 60), gapsOf(model, 0, 60), `round ${round}, step ${step}`);
      }
    }
  });
});

describe("AudioRing", () => {
  test("scraps between what is settled are settled, what may go on is not", () => {
    const ring = new AudioRing(1000);
    ring.append(new Int16Array(500));
    ring.settle(0, 100);
    ring.settle(150, 300); // a scrap of 50 before it
    ring.settle(400, 460); // 100 before it, and 40 that may go on
    ring.settleScraps(100);
    assert.deepEqual(ring.unsettled(0, 500), [
      [300, 400],
      [460, 500],
    ]);
  });

  test("an empty one begins and ends at 0", () => {
    const ring = new AudioRing(10);
    assert.deepEqual([ring.start, ring.end, ring.read(0, 5)], [0, 0, new Int16Array()]);
  });

  test("what is appended moves its end and not its beginning", () => {
    const ring = new AudioRing(10);
    ring.append(audio(0, 4));
    ring.append(audio(4, 7));
    assert.deepEqual([ring.start, ring.end], [0, 7]);
  });

  test("nothing appended leaves no chunk", () => {
    const ring = new AudioRing(4);
    for (let i = 0; i < 3; i++) ring.append(new Int16Array());
    ring.append(audio(0, 2));
    assert.deepEqual([ring.start, ring.end, ring.read(0, 9)], [0, 2, audio(0, 2)]);
  });

  test("a chunk goes once those after it fill the capacity", () => {
    const ring = new AudioRing(10);
    ring.append(audio(0, 4));
    ring.append(audio(4, 13));
    assert.equal(ring.start, 0, "9 samples without the first chunk: too few");
    ring.append(audio(13, 14));
    assert.deepEqual([ring.start, ring.end], [4, 14]);
  });

  test("a chunk larger than the capacity is kept whole until the next ones fill it", () => {
    const ring = new AudioRing(10);
    ring.append(audio(0, 25));
    assert.deepEqual([ring.start, ring.end, ring.read(0, 25)], [0, 25, audio(0, 25)]);
    ring.append(audio(25, 34));
    assert.equal(ring.start, 0);
    ring.append(audio(34, 35));
    assert.equal(ring.start, 25);
  });

  test("a large chunk pushes out many small ones", () => {
    const ring = new AudioRing(10);
    for (let at = 0; at < 8; at++) ring.append(audio(at, at + 1));
    ring.append(audio(8, 18));
    assert.deepEqual([ring.start, ring.end], [8, 18]);
  });

  test("a read crosses chunks", () => {
    const ring = new AudioRing(100);
    for (const [from, to] of [
      [0, 3],
      [3, 4],
      [4, 9],
    ])
      ring.append(audio(from, to));
    assert.deepEqual(ring.read(2, 4), audio(2, 6));
    assert.deepEqual(ring.read(3, 1), audio(3, 4));
    assert.deepEqual(ring.read(4, 5), audio(4, 9));
  });

  test("a read past the end gives what there is", () => {
    const ring = new AudioRing(100);
    ring.append(audio(0, 5));
    assert.deepEqual(ring.read(3, 10), audio(3, 5));
    assert.deepEqual(ring.read(5, 10), new Int16Array());
  });

  test("a read of nothing is empty", () => {
    const ring = new AudioRing(100);
    ring.append(audio(0, 5));
    assert.deepEqual(ring.read(2, 0), new Int16Array());
  });

  test("a read is a copy", () => {
    const ring = new AudioRing(100);
    ring.append(audio(0, 5));
    ring.read(0, 5).fill(0);
    assert.deepEqual(ring.read(0, 5), audio(0, 5));
  });

  test("what is settled is not unsettled, also ahead of the audio", () => {
    const ring = new AudioRing(100);
    ring.append(audio(0, 10));
    ring.settle(2, 4);
    ring.settle(8, 12);
    assert.deepEqual(ring.unsettled(0, ring.end), [
      [0, 2],
      [4, 8],
    ]);
    ring.append(audio(10, 15));
    assert.deepEqual(ring.unsettled(0, ring.end), [
      [0, 2],
      [4, 8],
      [12, 15],
    ]);
  });

  test("what went out of the ring without an outcome is told as unsettled", () => {
    const ring = new AudioRing(4);
    for (const [from, to] of [
      [0, 4],
      [4, 8],
    ])
      ring.append(audio(from, to));
    ring.settle(0, 1);
    assert.equal(ring.start, 4);
    assert.deepEqual(ring.unsettled(0, ring.start), [[1, 4]]);
  });

  test("any row of calls is what an array of all samples and a row of booleans are", () => {
    const below = numbers(2);
    for (let round = 0; round < 100; round++) {
      const capacity = 1 + below(40);
      const [ring, settled] = [new AudioRing(capacity), new Array(1000).fill(false)];
      let end = 0;
      let starts = []; // of chunks
      for (let step = 0; step < 30; step++) {
        const said = `round ${round}, step ${step}`;
        const n = below(15);
        ring.append(audio(end, end + n));
        if (n) starts.push(end);
        end += n;
        const keeps = starts.findLastIndex((start) => end - start >= capacity);
        starts = starts.slice(Math.max(keeps, 0));
        assert.deepEqual([ring.start, ring.end], [starts[0] ?? 0, end], said);

        const [from, to] = [below(end + 1), below(end + 1)];
        ring.settle(from, to);
        if (from < to) settled.fill(true, from, to);
        assert.deepEqual(ring.unsettled(0, end), gapsOf(settled, 0, end), said);

        const start = ring.start + below(end - ring.start + 1);
        const wanted = below(50);
        assert.deepEqual(ring.read(start, wanted), audio(start, Math.min(start + wanted, end)), said);
      }
    }
  });
});
