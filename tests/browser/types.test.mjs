/** What asr-client.d.ts declares is what asr-client.js has, as far as that is seen from outside: see test_types.py. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import ts from "typescript";
import * as client from "../../clients/browser/asr-client.js";

const FOLDER = new URL("../../clients/browser/", import.meta.url);
const file = fileURLToPath(new URL("asr-client.d.ts", FOLDER));
const source = ts.createSourceFile(file, readFileSync(file, "utf8"), ts.ScriptTarget.Latest, true);
const interfaces = new Map(source.statements.filter(ts.isInterfaceDeclaration).map((node) => [node.name.text, node]));
const exported = source.statements.filter((node) => has(node, "ExportKeyword"));
const classes = new Map(exported.filter(ts.isClassDeclaration).map((node) => [node.name.text, node]));

function names(node) {
  return (ts.isVariableStatement(node) ? node.declarationList.declarations : [node]).map(({ name }) => name.text);
}

/** Its names, each once: overloads are one. */
function declared(name, isStatic) {
  const members = classes.get(name).members.filter((member) => isStatic === has(member, "StaticKeyword"));
  return [...new Set(members.filter(({ name }) => name).map(({ name }) => name.text))].sort();
}

function has(node, keyword) {
  return Boolean(ts.getModifiers(node)?.some(({ kind }) => kind === ts.SyntaxKind[keyword]));
}

/** Those that a class has by itself. */
function own(holder) {
  const always = ["constructor", "length", "name", "prototype"];
  return Object.getOwnPropertyNames(holder).filter((name) => !always.includes(name));
}

test("the module exports what is declared", () => {
  const isType = (node) => ts.isInterfaceDeclaration(node) || ts.isTypeAliasDeclaration(node);
  const values = exported.filter((node) => !isType(node)).flatMap(names);
  assert.deepEqual(Object.keys(client).sort(), values.sort());
});

test("AsrClient has the members that are declared", () => {
  const narrowed = ["addEventListener", "removeEventListener"]; // EventTarget's
  assert.deepEqual([...own(client.AsrClient.prototype), ...narrowed].sort(), declared("AsrClient", false));
  assert.deepEqual(own(client.AsrClient).sort(), declared("AsrClient", true));
});

test("Microphone has the members that are declared", () => {
  assert.deepEqual(own(client.Microphone.prototype).sort(), declared("Microphone", false));
  assert.deepEqual(own(client.Microphone).sort(), declared("Microphone", true));
});

test("AsrError has the members that are declared", () => {
  const error = new client.AsrError("not_open", "no recording");
  const fields = Object.keys(error).sort();
  assert.deepEqual(fields, declared("AsrError", false));
});

/** Strings that stand for one type. */
function union(name) {
  const alias = source.statements.find((node) => ts.isTypeAliasDeclaration(node) && node.name.text === name);
  return alias.type.types.filter(ts.isLiteralTypeNode).map(({ literal }) => literal.text);
}

test("each code that the client's source gives to an AsrError is declared", () => {
  const given = ["asr-client.js", "microphone.js"].flatMap((name) => {
    const text = readFileSync(new URL(name, FOLDER), "utf8");
    const thrown = text.matchAll(/new AsrError\(\s*"(\w+)"/g);
    const refused = text.matchAll(/(?:Error: |\?\? )\[\s*"(\w+)"/g);
    return [...thrown, ...refused].map(([, code]) => code);
  });
  assert.deepEqual([...new Set(given)].sort(), union("AsrClientErrorCode").sort());
});

/** Its fields, those of what it extends included. */
function fields(name) {
  const { members, heritageClauses = [] } = interfaces.get(name);
  const bases = heritageClauses.flatMap(({ types }) => types.map(({ expression }) => expression.text));
  return [...bases.flatMap(fields), ...members.map(({ name }) => name.text)];
}

test("each event that the client's source tells is declared", () => {
  const told = ["asr-client.js", "asr-session.js"].flatMap((name) =>
    [...readFileSync(new URL(name, FOLDER), "utf8").matchAll(/#emit\("(\w+)"/g)].map(([, type]) => type),
  );
  assert.deepEqual(
    told.filter((type) => !fields("AsrEventMap").includes(type)),
    [],
  );
});

// ---------------------------------------------------------------- the protocol's

const { $defs } = JSON.parse(
  readFileSync(new URL("../../asr_ws/assets/asr-ws.v1.schema.json", import.meta.url), "utf8"),
);
const EVENTS = $defs.ServerEvent.oneOf.map(({ $ref }) => $ref.split("/").at(-1)).filter((name) => name !== "Pong"); // see `rtt`
const PARTS = ["Limits", "AudioInForce", "EndpointingInForce", "FinalSegment", "FinalWord", "Start", "Endpointing"];
const RENAMED = {
  Partial: "PartialText", // TypeScript has a type of this name
  Error: "ServerError",
  AudioInForce: "AudioFormat",
  EndpointingInForce: "Endpointing",
  FinalSegment: "Segment",
  FinalWord: "Word",
  Start: "StartFields",
};
const OWN = { Final: ["latency_ms"] };
const UNSAID = { Start: ["type", "token", "audio"] }; // which the client says itself

for (const name of [...EVENTS, ...PARTS])
  test(`each field of the protocol's ${name} is declared`, () => {
    const said = Object.keys($defs[name].properties).filter((field) => !UNSAID[name]?.includes(field));
    assert.deepEqual(fields(RENAMED[name] ?? name).sort(), [...said, ...(OWN[name] ?? [])].sort());
  });

test("each event of the protocol is declared, by its type", () => {
  const { members } = interfaces.get("AsrEventMap");
  const declaredAs = Object.fromEntries(members.map(({ name, type }) => [name.text, type.typeName?.text]));
  for (const name of EVENTS) assert.equal(declaredAs[$defs[name].properties.type.enum[0]], RENAMED[name] ?? name);
});
