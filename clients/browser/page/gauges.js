/** What the page shows of the server: its state, its queue, how long text takes. */

import { t } from "./texts.js";

const POLL_MS = 2000;
const N_BARS = 20;

const $ = (id) => document.getElementById(id);

export class Gauges {
  #state = "connecting";
  #model = "";
  #queue = null; // what is known of it
  #latencies = [];
  token = ""; // for the server's numbers
  mayPoll = false; // whether they are to be had

  constructor() {
    setInterval(() => this.poll(), POLL_MS);
  }

  /** @type {() => void} the server, which was away, answers again */
  onBack = () => {};

  set state(state) {
    this.#state = state;
    if (["unreachable", "locked"].includes(state)) this.#queue = null;
    if (state === "locked") this.mayPoll = false;
    this.show();
  }

  ready({ state, model, limits }) {
    this.#model = model;
    this.mayPoll = true;
    this.state = state;
    this.queue({ capacity: limits.queue_capacity });
    void this.poll();
  }

  queue(change) {
    this.#queue = { depth: 0, running: 0, ...this.#queue, ...change };
    this.show();
  }

  latency(ms) {
    this.#latencies = [...this.#latencies, ms].slice(-N_BARS);
    this.show();
  }

  rtt(ms) {
    $("rtt").textContent = `${ms} ms`;
  }

  show() {
    $("server").dataset.state = this.#state;
    $("server").textContent = [t(`state_${this.#state}`), this.#model].filter(Boolean).join(" · ");
    const { depth, capacity, running } = this.#queue ?? {};
    const work = t(running ? "queue_running" : "queue_idle");
    const words = this.#queue ? t("queue_text", { depth, capacity, running: work }) : t("queue_unknown");
    const places = Array.from({ length: Math.min(capacity, 12) }, (_, n) => n < depth);
    draw($("queue"), this.#queue ? [running, ...places] : [], (slot, isFull) => {
      slot.className = isFull ? "full" : "";
    });
    $("queue-text").textContent = $("queue").ariaLabel = words;
    const [last, longest] = [this.#latencies.at(-1), Math.max(...this.#latencies)];
    const median = [...this.#latencies].sort((one, other) => one - other)[this.#latencies.length >> 1];
    const seconds = (ms) => `${(ms / 1000).toFixed(1)} s`;
    draw($("latency"), this.#latencies, (bar, ms) => (bar.style.height = `${(100 * ms) / longest}%`));
    const told =
      last === undefined ? t("latency_none") : t("latency_text", { last: seconds(last), median: seconds(median) });
    $("latency-text").textContent = $("latency").ariaLabel = told;
  }

  /** Ask the server for its numbers. */
  async poll() {
    if (!this.mayPoll || document.hidden) return;
    try {
      const isToken = /^[!-~]+$/.test(this.token); // a header takes no others, and there are none
      const headers = isToken ? { Authorization: `Bearer ${this.token}` } : {};
      const answer = await fetch("v1/stats", { headers, signal: AbortSignal.timeout(POLL_MS) });
      this.mayPoll = answer.status !== 401; // who has no token is not told, and need not ask
      if (!answer.ok) return;
      const { state, queue_depth, queue_capacity, in_flight_tasks } = await answer.json();
      if (this.#state === "unreachable") this.onBack();
      this.#state = state;
      this.queue({ depth: queue_depth, capacity: queue_capacity, running: in_flight_tasks });
    } catch {
      if (this.mayPoll) this.state = "unreachable";
    }
  }
}

/** As many children as there are values, each drawn by its own. */
function draw(element, values, one) {
  while (element.childElementCount > values.length) element.lastChild.remove();
  while (element.childElementCount < values.length) element.append(document.createElement("i"));
  values.forEach((value, n) => one(element.children[n], value));
}
