/** Where the page looks for sessions, by its own address and what the server says of its ports. */

import assert from "node:assert/strict";
import { test } from "node:test";
import { sessionsAddress } from "../../../clients/browser/page/address.js";

for (const [page, ports, address] of [
  ["http://localhost:8765/", undefined, "http://localhost:8765/"],
  ["http://localhost:8765/?lang=zh#x", undefined, "http://localhost:8765/"],
  ["https://server/speech/", undefined, "https://server/speech/"],
  ["http://localhost:9000/?lang=zh", "9000 9001", "http://localhost:9001/"],
  ["http://[::1]:9000/", "9000 9001", "http://[::1]:9001/"],
  ["https://server/", "443 9001", "https://server:9001/"],
  ["http://server/", "80 9001", "http://server:9001/"],
  ["http://server:9000/", "9000 80", "http://server/"],
  ["https://server/speech/", "9000 9001", "https://server/speech/"], // a proxy's
  ["http://server:8080/", "9000 9001", "http://server:8080/"], // a container's
])
  test(`${page} with ports ${ports} has sessions at ${address}`, () => {
    assert.equal(sessionsAddress(page, ports), address);
  });
