/** What the page tells while something is not as it should be: each under its name, the newest text of it. */

import { t } from "./texts.js";

const box = document.getElementById("notices");
const notices = new Map(); // by name: its element, and the timer of its countdown

/** A text of the page's, with its hint if it has one. */
export function tell(name, text, values = {}) {
  tellAsIs(name, t(text, values), t(`${text}_hint`), values.delay_ms, t(values.then));
}

/**
 * @param {number} [delayMs] counted down where the message has `{countdown}`
 * @param {string} [then] the message after that
 */
export function tellAsIs(name, message, hint = "", delayMs = 0, then = undefined) {
  if (notices.get(name)?.message === message && !delayMs) return; // it is being told
  still(name);
  const element = document.createElement("p");
  element.className = hint ? "notice bad" : "notice";
  element.dataset.name = name;
  const [before, after] = message.split("{countdown}");
  element.append(before);
  let timer;
  if (after !== undefined) {
    const seconds = document.createElement("span");
    const due = performance.now() + delayMs;
    const count = () => {
      const left = Math.max(0, (due - performance.now()) / 1000);
      seconds.textContent = left.toFixed(1);
      if (!left && then) element.textContent = then;
    };
    seconds.className = "countdown";
    seconds.ariaHidden = "true"; // a screen reader would read each tenth of a second
    timer = setInterval(count, 100);
    count();
    element.append(seconds, after);
  }
  if (hint) element.append(Object.assign(document.createElement("small"), { textContent: hint }));
  notices.set(name, { element, timer, message });
  box.append(element);
}

/** It is over; all of them are, without a name. */
export function still(name) {
  for (const [each, { element, timer }] of notices) {
    if (name !== undefined && each !== name) continue;
    clearInterval(timer);
    element.remove();
    notices.delete(each);
  }
}
