/** A run's events as a table: filtered by type, the newest few hundred unless all are asked for. */

import { at, count, cut, el, keepingEnd, moment } from "./dom.mjs";

const NEWEST = 400; // rows that are shown unasked
const CHUNK = 100; // rows that come and go together
const SLICE = 5; // chunks that are added between two pictures
const QUIET = new Set(["agent_stream_delta"]); // the words are shown above
const SUMMARY = 240;
const WHOLE = 100_000; // characters of an event's JSON that are shown
const KINDS = [
  [/^(run_failed|run_cancelled)/, "bad"], [/^(llm_)/, "llm"], [/^(tool_)/, "tool"],
  [/^(approval_|policy_|run_paused|run_resumed)/, "wait"], [/(retrying)/, "bad"],
  [/^(agent_called_child)/, "child"], [/^(agent_)/, "agent"],
];

const kindOf = (type) => KINDS.find(([form]) => form.test(type))?.[1] ?? "run";

/** Return what a row says of an event. */
function summary({ type, payload }) {
  if (type === "agent_stream_delta") return cut(JSON.stringify(payload.text), SUMMARY);
  const told = [];
  let size = 0;
  for (const [name, value] of Object.entries(payload)) {
    if (value === null || size > SUMMARY) continue;
    const text = typeof value === "string" ? value : JSON.stringify(value);
    told.push(`${name}=${cut(text, SUMMARY).replaceAll(/\s+/g, " ")}`);
    size += told.at(-1).length;
  }
  return cut(told.join("   "), SUMMARY);
}

/** The table of a page; `flush` shows what has come since. */
export class Log {
  events = [];
  #rows = at("rows");
  #box = at("events");
  #types = new Map();
  #matching = [];
  #from = 0; // the first row that is in the page
  #to = 0; // and the one behind the last
  #all = false;

  constructor() {
    const names = ["seq", "time", "type", "says"];
    const heads = names.map((name) => el("span", { role: "columnheader", className: name }, name));
    this.#rows.append(el("div", { role: "row", className: "event headings" }, ...heads));
    this.#rows.addEventListener("click", (event) => this.#toggle(event.target));
    at("events-all").addEventListener("click", () => this.#showAll());
  }

  /** One more event. */
  add(event) {
    this.events.push(event);
    if (this.#type(event.type).box.checked) this.#matching.push(event);
  }

  /** What came after `seq` never was. */
  forget(seq) {
    this.events = this.events.filter((event) => event.seq <= seq);
    this.#again();
  }

  /** Show what is not shown yet. */
  flush() {
    keepingEnd(this.#box, () => this.#fill());
    for (const { chip, tally } of this.#types.values()) {
      const text = count(tally);
      if (chip.textContent !== text) chip.textContent = text;
    }
    const rest = this.#from;
    at("events-all").hidden = !rest;
    at("events-all").textContent = `${count(rest)} earlier · show all ${count(this.#matching.length)}`;
    const shown = this.#matching.length === this.events.length ? "" : `${count(this.#matching.length)} of `;
    at("events-count").textContent = `${shown}${count(this.events.length)}`;
    this.#rows.setAttribute("aria-rowcount", this.#matching.length + 1);
  }

  #type(type) {
    let known = this.#types.get(type);
    if (!known) {
      const box = el("input", { type: "checkbox", checked: !QUIET.has(type) });
      const chip = el("span", { className: "tally" }, "");
      box.addEventListener("change", () => this.#again());
      at("types").append(el("label", { className: `chip ${kindOf(type)}` }, box, type, chip));
      this.#types.set(type, (known = { box, chip, tally: 0 }));
    }
    known.tally += 1;
    return known;
  }

  /** Choose anew which events are shown. */
  #again() {
    for (const known of this.#types.values()) known.tally = 0;
    this.#matching = this.events.filter((event) => this.#type(event.type).box.checked);
    this.#clear(0);
    this.flush();
    this.#box.scrollTop = this.#box.scrollHeight;
  }

  #clear(from) {
    while (this.#rows.childElementCount > 1) this.#rows.lastChild.remove();
    this.#from = this.#to = from;
  }

  #fill() {
    const last = Math.max(0, this.#matching.length - NEWEST);
    const wanted = this.#all ? this.#from : Math.max(this.#from, last - (last % CHUNK));
    if (wanted >= this.#to) this.#clear(wanted);
    for (; this.#from < wanted; this.#from += CHUNK) this.#rows.children[1].remove();
    for (; this.#to < this.#matching.length; this.#to += 1) {
      if (this.#to === this.#from || this.#to % CHUNK === 0) this.#rows.append(chunk());
      this.#rows.lastChild.append(this.#row(this.#to));
    }
  }

  /** Bring in what is not in the page, latest first, without keeping anybody waiting. */
  #showAll() {
    this.#all = true;
    const step = () => {
      for (let n = 0; n < SLICE && this.#from > 0; n += 1) {
        const group = chunk();
        for (let row = this.#from - CHUNK; row < this.#from; row += 1) group.append(this.#row(row));
        this.#rows.children[0].after(group);
        this.#from -= CHUNK;
      }
      this.flush();
      if (this.#from > 0) requestAnimationFrame(step);
    };
    step();
  }

  #row(index) {
    const event = this.#matching[index];
    const since = (event.ts - this.events[0].ts) / 1000;
    const made = el("div", { role: "row", className: `event ${kindOf(event.type)}`, "aria-rowindex": index + 2 },
      el("span", { role: "cell", className: "seq" }, String(event.seq)),
      el("span", { role: "cell", className: "time", title: moment(event.ts) }, `+${since.toFixed(3)} s`),
      el("span", { role: "cell", className: "type" },
        el("button", { type: "button", "aria-expanded": "false" }, event.type)),
      el("span", { role: "cell", className: "says" }, summary(event)));
    made.event = event;
    return made;
  }

  #toggle(target) {
    const row = target.closest(".event");
    if (!row?.event || target.closest("pre")) return;
    const open = row.querySelector(".json");
    row.querySelector("button").setAttribute("aria-expanded", String(!open));
    if (open) open.remove();
    else {
      const json = cut(JSON.stringify(row.event, null, 2), WHOLE);
      row.append(el("div", { role: "cell", className: "json" }, el("pre", { tabIndex: 0 }, json)));
    }
  }
}

const chunk = () => el("div", { role: "rowgroup", className: "chunk" });
