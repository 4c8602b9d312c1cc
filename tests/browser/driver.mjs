/**
 * asr-client.js under node, driven by lines of JSON: see tests/browser/driver.py. Each line in is a call of a method;
 * each line out is its result, an event, or a frame that went through the WebSocket.
 */
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { AsrClient } from "../../clients/browser/asr-client.js";

function say(line) {
  process.stdout.write(JSON.stringify(line) + "\n");
}

class Tapped extends WebSocket {
  send(data) {
    say({ sent: typeof data === "string" ? JSON.parse(data) : data.byteLength });
    super.send(data);
  }
}

class Told extends AsrClient {
  dispatchEvent(event) {
    const { type, detail } = event;
    say({ event: type, detail: type === "closed" ? { error: told(detail.error) } : detail });
    return super.dispatchEvent(event);
  }
}

let client;

const calls = {
  make(url, options) {
    client = new Told(url, { WebSocket: Tapped, ...options });
  },
  async feed(file, from, n, step) {
    const bytes = readFileSync(file);
    const samples = new Int16Array(bytes.buffer, bytes.byteOffset, bytes.length >> 1).subarray(from, from + n);
    for (let i = 0; i < samples.length; i += step) await client.send(samples.slice(i, i + step));
  },
  push(n) {
    void client.send(new Int16Array(n)).catch(() => {}); // as a microphone does, which waits for nobody
  },
};

function told(error) {
  return error && { code: error.code, message: error.message, hint: error.hint };
}

for await (const line of createInterface({ input: process.stdin })) {
  const { id, call, args } = JSON.parse(line);
  Promise.resolve()
    .then(() => (calls[call] ? calls[call](...args) : client[call](...args)))
    .then(
      (value) => say({ id, value: value ?? null }),
      (error) => say({ id, error: error.code ? told(error) : { code: "bug", message: error.stack } }),
    );
}
process.exit(0);
