/** The newest runs, kept up to date; the filters are in the address. */

import { ApiError } from "../sdk/client.mjs";
import { at, cut, el, moment, notice, span, state } from "./dom.mjs";
import { Door, told } from "./door.mjs";

const EVERY_MS = 3_000;
const PAGE = 50;
const MOST = 1_000; // what the API tells at once
const FILTERS = { session_id: "session", agent_id: "agent", status: "state" };

const door = new Door();
const asked = new URLSearchParams(location.search);
const filters = new URLSearchParams(
  Object.keys(FILTERS).filter((name) => asked.get(name)).map((name) => [name, asked.get(name)]),
);
const rows = new Map();
let wanted = PAGE;
let looking = null;

function newest(client) {
  const query = new URLSearchParams(filters);
  query.set("limit", wanted);
  return client.request("GET", `/v1/runs?${query}`);
}

/** Return the address of this page with one filter set or taken away. */
function filtered(name, value) {
  const query = new URLSearchParams(filters);
  if (value === null) query.delete(name);
  else query.set(name, value);
  return query.size ? `runs?${query}` : "runs";
}

function row(run) {
  const made = rows.get(run.run_id) ?? { cells: {}, line: null };
  if (!made.line) {
    made.state = el("span", {});
    made.took = el("td", { className: "number", "data-name": "took" });
    made.line = el("tr", {},
      el("th", { scope: "row" }, el("a", { href: `runs/${encodeURIComponent(run.run_id)}` }, run.run_id)),
      el("td", { "data-name": "state" }, made.state),
      el("td", { "data-name": "agent" }, el("a", { href: filtered("agent_id", run.agent_id) }, cut(run.agent_id, 60))),
      el("td", { "data-name": "session" }, el("a", { href: filtered("session_id", run.session_id), title: run.session_id }, cut(run.session_id, 60))),
      el("td", { "data-name": "created", className: "number" }, moment(run.created_at)),
      made.took);
    rows.set(run.run_id, made);
  }
  made.state.className = `state ${run.status.toLowerCase()}`;
  made.state.textContent = state(run.status);
  made.state.title = run.error ? `${run.error.code}: ${run.error.message}` : "";
  made.took.textContent = span((run.ended_at ?? Math.max(Date.now(), run.created_at)) - run.created_at);
  return made.line;
}

function show({ runs, has_more: more }) {
  const body = at("runs").tBodies[0];
  const kept = new Set(runs.map((run) => run.run_id));
  for (const [id, made] of rows) {
    if (kept.has(id)) continue;
    made.line.remove();
    rows.delete(id);
  }
  runs.forEach((run, n) => {
    const line = row(run);
    if (body.children[n] !== line) body.insertBefore(line, body.children[n] ?? null);
  });
  at("older").hidden = !more || wanted >= MOST;
  at("runs").hidden = !runs.length;
  at("empty").hidden = runs.length > 0 && !(more && wanted >= MOST);
  at("empty").textContent = runs.length ? `These are the newest ${MOST}; follow an agent or a session for older ones.`
    : filters.size ? "No such runs." : 'No runs yet: ./orchestrator invoke AGENT "Hello" begins one.';
}

/** Look for runs now, and again after a while. */
async function look() {
  clearTimeout(looking);
  try {
    if (!document.hidden || at("list").hidden) {
      const found = await door.pass(newest);
      at("list").hidden = false;
      show(found);
      notice();
    }
  } catch (problem) {
    if (problem instanceof ApiError && !problem.retryable) {
      notice(told(problem));
      return;
    }
    notice("The server does not answer; trying again. What is shown may be old.");
  }
  clearTimeout(looking);
  looking = setTimeout(look, EVERY_MS);
}

at("older").addEventListener("click", () => {
  wanted = Math.min(MOST, wanted + PAGE);
  look();
});
for (const [name, label] of Object.entries(FILTERS)) {
  if (!filters.get(name)) continue;
  const all = el("a", { href: filtered(name, null), "aria-label": `All, not only ${label} ${filters.get(name)}` }, "all");
  at("filters").append(el("li", {}, el("span", { className: "dim" }, label), " ", cut(filters.get(name), 80), " ", all));
}
look();
