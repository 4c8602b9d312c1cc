/** What the page remembers of its user's choices. A browser may forbid that: then it forgets. */

export function recall(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return null;
  }
}

export function remember(name, value) {
  try {
    localStorage.setItem(name, value);
  } catch {
    // the choice holds as long as the page
  }
}
