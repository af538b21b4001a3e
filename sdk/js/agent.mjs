/**
 * An agent in JavaScript: a function that yields words, behind the agent protocol.
 * `agent` makes a fetch handler for any runtime; `serve` runs it with Node.
 */

import { Client, textOf } from "./client.mjs";

const env = globalThis.process?.env ?? {};
const COMMENT_MS = 15_000;
const HEARTBEAT_MS = 30_000;
const GOODBYE_MS = 5000;
const PIECES = /[^]{1,131072}/gu; // of characters: a line of the protocol has at most 1 MiB
const JSON_TYPE = { "content-type": "application/json" };
const SSE_TYPE = { "content-type": "text/event-stream", "cache-control": "no-store" };

/**
 * Return a fetch handler that answers `POST …/invoke` and `GET …/health`.
 *
 * The agent's function gets an invocation. What it yields is sent: a string is a piece of the
 * answer, `{state, detail?}` what it is doing, `{event, data}` an event of its own, and
 * `{wait_for, state?}` pauses the run. What it returns ends the run: the final message, or
 * `{final_message?, usage?}`. What it throws fails the run: with its `code` and message where it
 * has a code of its own, and otherwise only the log of this process says what it was.
 */
export function agent(answer, { version = "0", capabilities = [] } = {}) {
  return async (request) => {
    const asked = request.method + /\/[^/]*$/.exec(new URL(request.url).pathname)[0];
    if (asked === "GET/health") return json(200, { status: "healthy", version, capabilities });
    if (asked !== "POST/invoke") return json(404, { error: "POST /invoke, GET /health are here" });
    const body = await request.json().catch(() => null);
    if (!body?.input_message) return json(400, { error: "send input_message in a JSON object" });
    const hangUp = new AbortController();
    const frames = spoken(answer, invocation(request.headers, body, hangUp.signal));
    return new Response(streamed(frames, hangUp, request.signal), { headers: SSE_TYPE });
  };
}

function json(status, body) {
  return new Response(JSON.stringify(body), { status, headers: JSON_TYPE });
}

function invocation(headers, body, signal) {
  const { input_message: input, messages = [], context = {}, resume = null } = body;
  const { agent_id: agentId, session_id: sessionId, run_id: runId } = body;
  const attempt = Number(headers.get("x-attempt") ?? 1);
  const url = headers.get("x-platform-base-url") ?? undefined;
  const platform = new Client({ url, key: headers.get("x-run-token") ?? undefined });
  const asked = { text: textOf(input.content), input, messages, context, resume };
  return { ...asked, agentId, sessionId, runId, attempt, signal, platform };
}

/** Yield the frames of what the agent's function yields, returns and throws. */
async function* spoken(answer, asked) {
  let steps;
  let spoken = false;
  try {
    const made = await answer(asked);
    steps = stepsOf(made);
    for (;;) {
      const { value, done } = await steps.next();
      if (done) return yield* ended(value, spoken);
      if (value?.wait_for) return yield frame("pause", value);
      spoken ||= typeof value === "string";
      yield* piece(value);
    }
  } catch (problem) {
    if (!asked.signal.aborted) yield frame("error", failure(problem));
  } finally {
    try {
      await steps?.return?.();
    } catch (problem) {
      console.error(problem); // the answer is over: nobody else would hear of it
    }
  }
}

function failure(problem) {
  const { code, message, name = typeof problem } = problem ?? {};
  if (typeof code === "string") return { code, message: String(message ?? code) };
  console.error(problem);
  return { code: "agent_error", message: `the agent failed with ${name}; its own log says more` };
}

function stepsOf(made) {
  const iterable = typeof made === "object" && made !== null && !Array.isArray(made);
  const steps = iterable && (made[Symbol.asyncIterator] ?? made[Symbol.iterator])?.call(made);
  return steps || { next: () => ({ value: made, done: true }) };
}

function* piece(value) {
  if (typeof value === "string") {
    for (const text of value.match(PIECES) ?? [value]) yield frame("delta", { text });
  } else if (value?.event) yield frame(value.event, value.data ?? null);
  else if (value?.state) yield frame("state", value);
  else throw new TypeError("yield a string, {state}, {event, data} or {wait_for}");
}

/** Yield the end; a message that is too long for one frame is said in pieces, if it is not yet. */
function* ended(value, spoken) {
  const content = typeof value === "string" || Array.isArray(value);
  const { final_message: message, ...more } = content ? { final_message: value } : value ?? {};
  const long = typeof message === "string" && message.match(PIECES)?.length > 1;
  if (long && !spoken) yield* piece(message);
  yield frame("done", long ? more : { final_message: message, ...more });
}

function frame(event, data) {
  return `event: ${event}\ndata: ${JSON.stringify(data)}\n\n`;
}

/** Return a body that sends the frames as they are asked for, and a comment while there is none. */
function streamed(frames, hangUp, asked) {
  const encoder = new TextEncoder();
  let timer;
  const leave = () => hangUp.abort();
  const over = () => {
    clearInterval(timer);
    asked?.removeEventListener("abort", leave); // some runtimes abort it at a good end, too
    hangUp.signal.removeEventListener("abort", over);
  };
  return new ReadableStream({
    start(out) {
      timer = setInterval(() => out.enqueue(encoder.encode(":\n\n")), COMMENT_MS);
      timer.unref?.(); // a body that nobody reads keeps no process alive
      hangUp.signal.addEventListener("abort", over);
      asked?.addEventListener("abort", leave);
    },
    async pull(out) {
      const { value, done } = await frames.next();
      if (hangUp.signal.aborted) return;
      if (!done) return void out.enqueue(encoder.encode(value));
      over();
      out.close();
    },
    cancel() {
      hangUp.abort();
      return frames.return();
    },
  });
}

/**
 * Serve an agent with Node, and return `{url, close}`.
 *
 * Where ORCHESTRATOR_URL is set it is registered there as `agentId`, sends a heartbeat, and
 * `close()` or SIGTERM drains it: no new runs, and those under way have `drainMs` to end.
 */
export async function serve(answer, options = {}) {
  const { port = 8000, host = "127.0.0.1", drainMs = 30_000, signals = true } = options;
  const { createServer } = await import("node:http");
  const handler = agent(answer, options);
  const server = createServer((req, res) => relay(handler, req, res).catch(() => res.destroy()));
  await new Promise((resolve, reject) => {
    server.once("error", reject).listen(port, host, resolve);
  });
  const url = `http://${host.includes(":") ? `[${host}]` : host}:${server.address().port}`;
  let leave = async () => {};
  const close = async () => {
    await leave();
    const closed = new Promise((resolve) => server.close(resolve));
    server.closeIdleConnections();
    setTimeout(() => server.closeAllConnections(), drainMs).unref();
    await closed;
  };
  for (const name of signals ? ["SIGTERM", "SIGINT"] : []) {
    process.once(name, () => close().finally(() => process.exit(0)));
  }
  leave = await enlisted({ endpoint: url, ...options }).catch((problem) => {
    server.close();
    throw problem;
  });
  return { url, close };
}

/** Register an agent and keep it alive; return what drains it. */
async function enlisted({ orchestratorUrl = env.ORCHESTRATOR_URL, key, ...options }) {
  if (!orchestratorUrl) return () => undefined;
  const { agentId, name = agentId, endpoint, version, capabilities, registration } = options;
  if (!agentId) throw new TypeError("serve needs an agentId to register the agent by");
  const client = new Client({ url: orchestratorUrl, key, patienceMs: Infinity });
  const where = `/v1/agents/${encodeURIComponent(agentId)}`;
  const instance_id = `node-${process.pid}-${Date.now().toString(36)}`;
  const stop = new AbortController();
  const tell = (path, body, { signal } = stop) => client.request("POST", path, body, { signal });
  const register = () => tell("/v1/agents/register", {
    agent_id: agentId, name, endpoint, version, capabilities, instance_id, ...registration,
  });
  const beat = () => tell(`${where}/heartbeat`, { instance_id })
    .catch((problem) => (problem.code === "agent_not_found" ? register() : undefined))
    .catch(() => undefined); // the next one will tell
  await register();
  await beat();
  let beating = null; // one at a time, however long nobody answers
  const timer = setInterval(() => {
    beating ??= beat().finally(() => (beating = null));
  }, HEARTBEAT_MS);
  return async () => {
    clearInterval(timer);
    stop.abort();
    const soon = { signal: AbortSignal.timeout(GOODBYE_MS) };
    await tell(`${where}/drain`, { instance_id }, soon).catch(() => undefined);
  };
}

/** Answer one request of Node's server through a fetch handler. */
async function relay(handler, req, res) {
  const parts = [];
  for await (const part of req) parts.push(part);
  const body = parts.length ? Buffer.concat(parts) : undefined;
  const { method, headers, url } = req;
  const asked = new Request(new URL(url, "http://agent"), { method, headers, body });
  const response = await handler(asked);
  res.writeHead(response.status, Object.fromEntries(response.headers));
  const reader = response.body.getReader();
  let goOn = () => undefined;
  res.on("drain", () => goOn()).once("close", () => {
    goOn();
    reader.cancel();
  });
  for (let part; !(part = await reader.read()).done; ) {
    const full = !res.write(part.value) && !res.destroyed;
    if (full) await new Promise((drained) => (goOn = drained));
  }
  res.end();
}
