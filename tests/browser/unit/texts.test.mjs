/** The page's texts: both languages have the same ones, and none is missing. */

import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import { test } from "node:test";

const FOLDER = new URL("../../../clients/browser/", import.meta.url);
const [en, zh] = await Promise.all(
  ["en", "zh"].map(async (name) => (await import(`${FOLDER}page/texts.${name}.js`)).default),
);

/** What stands in `{braces}` there. */
function placeholders(texts) {
  const found = (text) => [...text.matchAll(/\{(\w+)\}/g)].map(([, name]) => name).sort();
  return Object.fromEntries(Object.entries(texts).map(([name, text]) => [name, found(text)]));
}

/** The first group of each match in that file. */
function found(file, pattern) {
  return [...readFileSync(new URL(file, FOLDER), "utf8").matchAll(pattern)].map(([, name]) => name);
}

function assertThere(names) {
  assert.notDeepEqual(names, [], "there are some");
  assert.deepEqual(
    names.filter((name) => !(name in en)),
    [],
  );
}

test("both languages have the same texts, with the same values in them", () => {
  assert.deepEqual(placeholders(zh), placeholders(en));
});

test("no text is empty", () => {
  for (const texts of [en, zh])
    assert.deepEqual(
      Object.entries(texts).filter(([, text]) => !text.trim()),
      [],
    );
});

test("each text that the page's elements name is there", () => {
  assertThere(found("index.html", /\bdata-t(?:-label)?="([^"]*)"/g));
});

const scripts = readdirSync(new URL("page/", FOLDER)).filter((name) => name.endsWith(".js"));

test("each text that the page's scripts name is there", () => {
  const asked = scripts.flatMap((name) => found(`page/${name}`, /(?<![\w.])t\("(\w+)"/g));
  const told = scripts.flatMap((name) => found(`page/${name}`, /(?<![\w.])tell\([^,()]+, "(\w+)"/g));
  const toldThen = scripts.flatMap((name) => found(`page/${name}`, /\bthen: "(\w+)"/g));
  for (const names of [asked, told, toldThen]) assertThere(names);
});
