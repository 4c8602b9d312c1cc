/** What the page tells while something is not as it should be: each under its name, the newest text of it. */

import { t } from "./texts.js";

const box = document.getElementById("notices");
const notices = new Map(); // by name: {words, message, element, due, timer}

/**
 * @param {string} name
 * @param {string} text the page's own of that name, with its hint if it has one
 * @param {object} [values] put in; `delay_ms` is counted down where it has `{countdown}`, and then it is the text `then`
 */
export function tell(name, text, { delay_ms = 0, then, ...values } = {}) {
  show(name, () => ({ text, message: t(text, values), hint: t(`${text}_hint`), then: t(then) }), delay_ms);
}

/** What the server or the browser says, for which the page has no words. */
export function tellAsIs(name, message, hint) {
  show(name, () => ({ message, hint }));
}

/** In the language that the page speaks now. */
export function retell() {
  for (const [name, { words, due }] of [...notices]) show(name, words, Math.max(0, due - performance.now()));
}

function show(name, words, delayMs = 0) {
  const { text = "", message, hint = "", then } = words();
  if (notices.get(name)?.message === message && !delayMs) return; // it is being told
  still(name);
  const element = document.createElement("p");
  element.className = hint ? "notice bad" : "notice";
  Object.assign(element.dataset, { name, text });
  const [before, after] = message.split("{countdown}");
  element.append(before);
  const due = performance.now() + delayMs;
  let timer;
  if (after !== undefined) {
    const seconds = document.createElement("span");
    const count = () => {
      const left = Math.max(0, (due - performance.now()) / 1000);
      seconds.textContent = left.toFixed(1);
      if (left) return;
      clearInterval(timer);
      if (then) element.textContent = then;
    };
    seconds.className = "countdown";
    seconds.ariaHidden = "true"; // a screen reader would read each tenth of a second
    timer = setInterval(count, 100);
    element.append(seconds, after);
    count();
  }
  if (hint) element.append(Object.assign(document.createElement("small"), { textContent: hint }));
  notices.set(name, { words, message, element, due, timer });
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
