/** What the page says (texts.en.js, texts.zh.js): `data-t` names an element's text, `data-t-label` its accessible name. */

import { recall } from "./memory.js";
import en from "./texts.en.js";
import zh from "./texts.zh.js";

const asked = new URLSearchParams(location.search).get("lang") ?? recall("lang") ?? navigator.language;
export let locale = asked.startsWith("zh") ? "zh" : "en";
let texts;
const isTouched = matchMedia("(pointer: coarse)").matches; // there is no space bar

/** The text of that name, with `{values}` put in; undefined: there is none. */
export function t(name, values = {}) {
  return (texts[isTouched && `${name}_touch`] ?? texts[name])?.replace(
    /\{(\w+)\}/g,
    (whole, key) => values[key] ?? whole,
  );
}

/** Speak that language. */
export function speak(language) {
  texts = { __proto__: null, ...{ en, zh }[language] };
  locale = language;
  document.documentElement.lang = { en: "en", zh: "zh-CN" }[language];
  for (const element of document.querySelectorAll("[data-t]")) element.textContent = t(element.dataset.t);
  for (const element of document.querySelectorAll("[data-t-label]")) element.ariaLabel = t(element.dataset.tLabel);
}
