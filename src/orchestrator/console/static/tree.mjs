/** The runs below a run and what this one calls, on one axis of time. */

import { at, count, cut, el, span, state } from "./dom.mjs";

const ROWS = 120; // rows that are shown unasked
const TICKS = 4;
const OPEN = (run) => !run.ended_at;
const KINDS = {
  FAILED: "bad", CANCELLED: "bad", CREATED: "wait",
  PAUSED_WAITING_TOOL: "wait", PAUSED_WAITING_APPROVAL: "wait",
};

/** Return whether any run of a tree goes on. */
export const isOpen = (tree) => OPEN(tree.run) || tree.children.some(isOpen);

const isCut = (tree) => tree.has_more || tree.children.some(isCut);

/** Return what this run itself did, as rows. */
function calls(view, depth) {
  const attempts = view.attempts.length < 2 ? [] : view.attempts.map((one) => ({
    key: `attempt ${one.seq}`, kind: one.code ? "bad" : "run", depth, name: `attempt ${one.attempt}`,
    from: one.started_at, to: one.ended_at, note: one.code ?? "",
  }));
  const models = view.llm_calls.map((one) => ({
    key: one.request_id, kind: one.error ? "bad" : "llm", depth, name: one.model ?? "model",
    from: one.started_at ?? one.ended_at, to: one.ended_at,
    note: one.total_tokens ? `${count(one.total_tokens)} tokens` : "",
  }));
  const tools = view.tool_calls.map((one) => ({
    key: one.tool_call_id, kind: one.state?.startsWith("WAITING") ? "wait" : "tool", depth,
    name: one.tool_name ?? "tool", from: one.created_at ?? one.ended_at, to: one.ended_at,
    note: one.status === "succeeded" || !one.state ? "" : state(one.state),
  }));
  return [...attempts, ...models, ...tools];
}

/** Return the rows of a tree of runs; `view` is what is known of the run at its top. */
function rows(tree, view, depth = 0) {
  const { run, children } = tree;
  const own = {
    key: run.run_id, kind: KINDS[run.status] ?? (depth ? "child" : "run"), depth,
    name: run.agent_id, from: run.created_at, to: run.ended_at, status: run.status,
    note: run.error?.code ?? (OPEN(run) ? state(run.status) : ""),
    href: depth ? encodeURIComponent(run.run_id) : null,
  };
  const below = children.map((child) => ({ from: child.run.created_at, rows: rows(child, null, depth + 1) }));
  const done = (view ? calls(view, depth + 1) : []).map((row) => ({ from: row.from, rows: [row] }));
  const sorted = [...below, ...done].sort((one, other) => one.from - other.from);
  return [own, ...sorted.flatMap((group) => group.rows)];
}

/** The panel of a page; rows stay the same elements, so that nobody loses the focus. */
export class Timeline {
  #list = at("tree");
  #rows = new Map();
  #axis = el("li", { className: "axis", "aria-hidden": "true" }, el("span"), el("div"), el("span"));
  #more = el("button", { type: "button", className: "more", hidden: true });
  #all = false;

  constructor() {
    this.#list.append(this.#axis);
    this.#list.parentElement.after(this.#more);
    this.#more.addEventListener("click", () => { this.#all = true; });
  }

  /** Show a tree as it is at `now`. */
  show(tree, view, now) {
    const all = rows(tree, view);
    const shown = this.#all ? all : all.slice(0, ROWS);
    this.#more.hidden = shown.length === all.length;
    this.#more.textContent = `show all ${count(all.length)}`;
    const start = tree.run.created_at;
    const end = Math.max(start + 1, ...shown.map((row) => row.to ?? Math.max(now, row.from)));
    at("tree-span").textContent = span(end - start) + (isCut(tree) ? " · there are more runs than these" : "");
    this.#ticks(end - start);
    const kept = new Set(shown.map((row) => row.key));
    for (const [key, made] of this.#rows) {
      if (kept.has(key)) continue;
      made.item.remove();
      this.#rows.delete(key);
    }
    shown.forEach((row, n) => {
      const made = this.#rows.get(row.key) ?? this.#row(row);
      if (this.#list.children[n + 1] !== made.item) {
        this.#list.insertBefore(made.item, this.#list.children[n + 1] ?? null);
      }
      place(made, row, start, end, now);
    });
  }

  #row(row) {
    const tag = row.href ? "a" : "span";
    const name = el(tag, { className: "name", href: row.href, title: row.name }, cut(row.name, 200));
    const bar = el("i");
    const note = el("span", { className: "note" });
    const took = el("span", { className: "took" });
    const dot = el("b", { "aria-hidden": "true" });
    const item = el("li", {}, el("span", { className: "who" }, dot, name, note), el("div", { className: "bar", "aria-hidden": "true" }, bar), took);
    item.firstChild.style.paddingInlineStart = `${Math.min(row.depth, 8) * 0.9}rem`;
    const made = { item, bar, note, took };
    this.#rows.set(row.key, made);
    return made;
  }

  #ticks(length) {
    const step = nice(length / TICKS);
    const ticks = [];
    for (let tick = 0; tick <= length * 0.94; tick += step) {
      const mark = el("span", {}, tick ? span(tick).replace(".0 ", " ") : "0");
      mark.style.insetInlineStart = `${(100 * tick) / length}%`;
      ticks.push(mark);
    }
    this.#axis.children[1].replaceChildren(...ticks);
  }
}

/** Put a row's bar where its time is. */
function place({ item, bar, note, took }, row, start, end, now) {
  const to = row.to ?? Math.max(now, row.from);
  const part = (ms) => `${Math.min(100, Math.max(0, (100 * ms) / (end - start)))}%`;
  bar.style.insetInlineStart = part(row.from - start);
  bar.style.inlineSize = part(to - row.from);
  item.className = `${row.kind}${row.to ? "" : " open"}`;
  if (note.textContent !== row.note) note.textContent = row.note;
  took.textContent = span(to - row.from);
}

/** Return a round length that is at least as long. */
function nice(length) {
  const power = 10 ** Math.floor(Math.log10(Math.max(1, length)));
  return power * [1, 2, 5, 10].find((factor) => power * factor >= length);
}
