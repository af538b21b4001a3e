/** The page of one run: follows its events and shows what they say. */

import { ApiError, emptyView, reduce, textOf } from "../sdk/client.mjs";
import { at, count, cut, el, moment, notice, soon, span, state } from "./dom.mjs";
import { Door, told } from "./door.mjs";
import { Log } from "./log.mjs";
import { isOpen, Timeline } from "./tree.mjs";
import { Words } from "./words.mjs";

const LOOK_MS = 2_000; // how often the runs below are looked at while any goes on
const TICK_MS = 250;
const TITLE = 90;
const WAITING = { state: "waiting for its turn" };
const LIGHT = new Set(["agent_stream_delta", "agent_state", "agent_event"]); // kept by us, not by the view

const id = decodeURIComponent(location.pathname.split("/").pop());
const where = `/v1/runs/${encodeURIComponent(id)}`;
const door = new Door();
const words = new Words(at("output"));
const log = new Log();
const timeline = new Timeline();
let view = emptyView();
let run = null; // as last committed when it was asked for
let tree = null;
let doing = null;
let ahead = 0; // how far the server's clock is before ours

const status = () => view.status ?? run.status;
const ended = () => view.ended_at ?? run.ended_at ?? null;
const now = () => Date.now() + ahead;

/** Take in one event. */
function take(event) {
  const { type, seq, payload } = event;
  if (type === "log_reset") return reset(payload.after_seq);
  log.add(event);
  ahead = Math.max(ahead, event.ts - Date.now());
  if (!LIGHT.has(type)) view = reduce(view, event);
  if (type === "agent_stream_delta") words.say(seq, payload.text);
  else if (type === "agent_state") doing = payload;
  else if (type === "agent_invoke_started") words.begin(seq, payload.attempt);
  else if (type === "agent_invoke_retrying") words.lose(payload.discard_from_seq, payload.code);
  if (type !== "agent_state" && type !== "agent_stream_delta") doing = null;
  if (type === "agent_called_child" || view.ended_at) look();
  if (view.ended_at) words.end(textOf(view.final_message));
  return paint();
}

/** Go back to what the log still holds after a power loss. */
function reset(seq) {
  log.forget(seq);
  words.forget(seq);
  doing = null;
  view = log.events.filter((event) => !LIGHT.has(event.type)).reduce(reduce, emptyView());
  paint();
}

const paint = soon(() => {
  if (!run) return;
  paintHead();
  paintFailure();
  words.flush();
  log.flush();
  if (tree) timeline.show(tree, view, now());
  const { size, lost } = words;
  at("lost-switch").hidden = !lost;
  at("output-size").textContent = size ? `${count(size)} characters` : "";
  at("output").classList.toggle("live", status() === "RUNNING");
  at("output").classList.toggle("over", Boolean(ended()));
  const shown = status() === "CREATED" ? WAITING : ended() ? null : doing;
  at("doing").hidden = !shown;
  at("doing").textContent = shown ? [shown.state, shown.detail].filter(Boolean).map(said).join(" · ") : "";
});

const FACTS = {
  run: () => el("code", {}, id),
  agent: () => run.agent_id,
  session: () => el("a", { href: `../runs?session_id=${encodeURIComponent(run.session_id)}` }, run.session_id),
  "called by": () => run.parent_run_id && el("a", { href: encodeURIComponent(run.parent_run_id) }, run.parent_run_id),
  created: () => moment(run.created_at),
};
const CHANGING = {
  elapsed: () => span((ended() ?? Math.max(now(), run.created_at)) - run.created_at),
  attempts: () => (view.attempts.length > 1 ? count(view.attempts.length) : ""),
  tokens: () => tokens(view.usage ?? run.usage),
};

const said = (detail) => (typeof detail === "string" ? detail : JSON.stringify(detail));

function tokens(usage) {
  const said = usage?.total_tokens ?? usage?.tokens;
  return Number.isFinite(said) ? count(said) : "";
}

/** Fill in what never changes; the rest has its place. */
function frame() {
  const fact = (name, value) => el("li", {}, el("span", { className: "dim" }, name), " ", value);
  const fixed = Object.entries(FACTS).map(([name, make]) => [name, make()]).filter(([, made]) => made);
  at("facts").append(...fixed.map(([name, made]) => fact(name, made)));
  for (const name of Object.keys(CHANGING)) {
    const item = fact(name, el("strong", { id: `fact-${name}` }));
    item.hidden = true;
    at("facts").append(item);
  }
}

function paintHead() {
  const text = textOf(view.input ?? "");
  const title = cut(text.trim().split("\n")[0] || run.agent_id, TITLE);
  if (at("title").textContent !== title) at("title").textContent = title;
  const shown = state(status());
  if (at("state").textContent !== shown) at("state").textContent = shown;
  at("state").className = `state ${status().toLowerCase()}`;
  document.title = `${shown} · ${title}`;
  for (const [name, say] of Object.entries(CHANGING)) {
    const value = say();
    at(`fact-${name}`).textContent = value;
    at(`fact-${name}`).parentElement.hidden = !value;
  }
  if (at("asked").hidden && text && text.trim() !== title) {
    at("asked").hidden = false;
    at("asked").firstChild.textContent = cut(text.trim().replaceAll("\n", " "), 400);
    at("asked").lastChild.textContent = text;
  }
}

function paintFailure() {
  const error = view.error ?? run.error;
  at("failure").hidden = !error;
  if (!error) return;
  const cancelled = status() === "CANCELLED";
  at("failure").classList.toggle("mild", cancelled);
  at("failure-title").textContent = cancelled ? "Cancelled" : `Failed: ${error.code}`;
  at("failure-text").textContent = error.message ?? "";
  if (!at("failure-next").firstChild) {
    at("failure-next").append("Start it again: ", el("code", {}, `./orchestrator runs rerun ${id}`));
  }
}

let looking = null;

/** Look at the runs below, and whether the server is there, for as long as any goes on. */
async function look() {
  clearTimeout(looking);
  try {
    if (!document.hidden) tree = await door.client.request("GET", `${where}/tree`);
    notice();
    paint();
  } catch (problem) {
    if (!(problem instanceof ApiError)) notice("The server does not answer; trying again. What is shown may be old.");
    else if (problem.status !== 401) notice(told(problem)); // the stream asks for a key
  }
  clearTimeout(looking);
  if (!tree || isOpen(tree)) looking = setTimeout(look, LOOK_MS);
}

async function main() {
  try {
    run = await door.pass((client) => client.request("GET", where));
    frame();
    at("run").hidden = false;
    if (run.trimmed) notice("Retention has removed a part of this run's log.");
    else look();
    const ticking = setInterval(paint, TICK_MS);
    await door.pass(async () => {
      for await (const event of door.stream.tail(id, { afterSeq: log.events.at(-1)?.seq ?? 0 })) take(event);
    });
    clearInterval(ticking);
    if (!ended()) run = await door.pass((client) => client.request("GET", where));
    paint();
  } catch (problem) {
    notice(told(problem));
  }
}

at("lost-switch").addEventListener("change", (event) => {
  at("output").classList.toggle("without", !event.target.checked);
});
document.addEventListener("visibilitychange", () => tree && isOpen(tree) && look());
main();
