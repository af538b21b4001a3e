/** Elements and texts of the pages: made by nodes alone, never from markup. */

/** Return the element of an id. */
export const at = (id) => document.getElementById(id);

/** Return a new element with properties, `data-…` and `aria-…` attributes, and children. */
export function el(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null) continue;
    if (name.includes("-") || name === "role") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Show a sentence above everything, or nothing. */
export function notice(text = "") {
  const shown = at("notice");
  if (shown.textContent !== text) shown.textContent = text;
  shown.hidden = !text;
}

/** Return a function that calls `act` once before the next picture, however often it is called. */
export function soon(act) {
  let wanted = false;
  return () => {
    if (wanted) return;
    wanted = true;
    requestAnimationFrame(() => {
      wanted = false;
      act();
    });
  };
}

/** Keep a scrolled element at its end while `change` makes it longer, if it was there. */
export function keepingEnd(element, change) {
  const atEnd = element.scrollHeight - element.scrollTop - element.clientHeight < 48;
  change();
  if (atEnd) element.scrollTop = element.scrollHeight;
}

const WHOLE = new Intl.NumberFormat("en");
const DAY = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

/** Return a number with its thousands set apart. */
export const count = (number) => WHOLE.format(number);

/** Return a moment, milliseconds UTC, as this browser's user writes it. */
export const moment = (ms) => DAY.format(ms);

/** Return a span as a person would say it. */
export function span(ms) {
  if (ms < 1000) return `${Math.max(0, Math.round(ms))} ms`;
  const seconds = ms / 1000;
  if (seconds < 90) return `${seconds.toFixed(1)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 90) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

/** Return a state as it is read: `CREATED` is “queued”, `PAUSED_WAITING_TOOL` “paused, waiting tool”. */
export const state = (status) =>
  status === "CREATED" ? "queued" : status.toLowerCase().replace("_", ", ").replaceAll("_", " ");

/** Return the start of a text, cut where it is long. */
export const cut = (text, length) => (text.length > length ? `${text.slice(0, length)}…` : text);
