/**
 * The orchestrator from JavaScript: run agents, follow their runs, and show what a run does.
 * One file without dependencies, for Node 18 and newer and for browsers; it knows only the wire.
 */

const env = (name) => { try { return globalThis.process?.env[name]; } catch {} }; // if Deno allows
const ENDS = { run_done: "DONE", run_failed: "FAILED", run_cancelled: "CANCELLED" };
const PASSING = [408, 425, 429, 502, 503, 504];
const STREAM = "text/event-stream";
const SILENCE_MS = 45_000; // three comments missed: the connection is dead
const [BACKOFF_MS, BACKOFF_MAX_MS] = [250, 15_000];
const path = (strings, ...ids) => String.raw({ raw: strings }, ...ids.map(encodeURIComponent));

/** The server said no: `status` of HTTP, stable `code`, and `details` where there are any. */
export class ApiError extends Error {
  constructor(status, body, retryAfterMs = 0) {
    super(body.error?.message ?? body.error ?? `the server answered ${status}`);
    Object.assign(this, { name: "ApiError", status, code: body.code ?? "unknown", retryAfterMs });
    this.details = body.details ?? null;
    this.retryable = body.retryable ?? (!body.code && PASSING.includes(status));
  }
}

/** A run that did not end well; `code` is the agent's own when it gave one, or `cancelled`. */
export class RunFailed extends Error {
  constructor(runId, code, message) {
    super(message);
    Object.assign(this, { name: "RunFailed", runId, code });
  }
}

/** Nobody answered for longer than the client's patience; `cause` is the last problem. */
export class ConnectionLost extends Error {
  name = "ConnectionLost";
}

/** Server-sent events from bytes, as the WHATWG standard says, however the bytes are split. */
export class SSEParser {
  lastEventId = "";
  retry = null;
  #decoder = new TextDecoder("utf-8", { ignoreBOM: true }); // Node's own handling of it errs
  #begun = false;
  #afterCR = false;
  #rest = ""; #event = ""; #data = ""; #id = "";

  /** Return the events `{event, data, id}` that these bytes complete. */
  feed(bytes) {
    let text = this.#decoder.decode(bytes, { stream: true });
    if (!text) return [];
    if (!this.#begun && text[0] === "\uFEFF") text = text.slice(1);
    this.#begun = true;
    if (this.#afterCR && text[0] === "\n") text = text.slice(1);
    this.#afterCR = text.endsWith("\r");
    const lines = (this.#rest + text).split(/\r\n|\r|\n/);
    this.#rest = lines.pop();
    return lines.flatMap((line) => (line ? this.#field(line) : this.#dispatch()));
  }

  #field(line) {
    const [, name, value = ""] = /^([^:]*)(?:: ?([^]*))?$/.exec(line);
    if (name === "data") this.#data += `${value}\n`;
    else if (name === "event") this.#event = value;
    else if (name === "id" && !value.includes("\0")) this.#id = value;
    else if (name === "retry" && /^[0-9]+$/.test(value)) this.retry = Number(value);
    return [];
  }

  #dispatch() {
    this.lastEventId = this.#id;
    const [data, event] = [this.#data, this.#event || "message"];
    this.#data = this.#event = "";
    return data ? [{ event, data: data.slice(0, -1), id: this.#id }] : [];
  }
}

/** A server, and who calls it: by a `key`, or by the `token` of one session. */
export class Client {
  #headers = {};
  #token;

  constructor({ url, key, token, patienceMs = 30_000 } = {}) {
    const here = url ?? env("ORCHESTRATOR_URL") ?? globalThis.location?.origin;
    this.url = (here ?? "http://localhost:8080").replace(/\/+$/, "");
    this.patienceMs = patienceMs;
    this.#token = token;
    const credential = token ?? key ?? env("ORCHESTRATOR_KEY");
    if (credential) this.#headers.authorization = `Bearer ${credential}`;
  }

  /** Start a run; it is durable when this resolves. The same `requestId` again is the same run. */
  async run(agentId, content, options = {}) {
    const { sessionId, requestId, context, labels, onBusy, timeoutMs, signal } = options;
    const made = await this.request("POST", "/v1/runs", {
      agent_id: agentId,
      input_message: { role: "user", content },
      // Minted here, so that a repetition after a lost answer finds the run that it began.
      session_id: sessionId ?? (this.#token ? undefined : mint("sess_")),
      request_id: requestId ?? mint("req_"),
      context, labels, on_busy: onBusy, timeout_ms: timeoutMs,
    }, { signal });
    return new Run(this, made, signal);
  }

  /** Return a run that was begun elsewhere; nothing is asked until it is read. */
  attach(runId, { signal } = {}) {
    return new Run(this, { run_id: runId }, signal);
  }

  /** Yield a run's events, each once and in order, to its end, over as many connections. */
  async *tail(runId, { afterSeq = 0, signal } = {}) {
    let seq = afterSeq;
    const where = path`/v1/runs/${runId}/events/stream` + (seq ? `?after_seq=${seq}` : "");
    for await (const frame of this.#follow(where, signal)) {
      const event = JSON.parse(frame.data);
      const reset = frame.event === "log_reset";
      if (!reset && event.seq <= seq) continue;
      seq = reset ? Math.min(seq, event.after_seq) : event.seq;
      yield reset ? { type: "log_reset", run_id: runId, payload: event } : event;
      if (ENDS[event.type]) return;
    }
  }

  /** Yield the events of all runs of a session, each with the `cursor` behind it, without end. */
  async *tailSession(sessionId, { cursor, signal } = {}) {
    const query = cursor ? path`?cursor=${cursor}` : "";
    const frames = this.#follow(path`/v1/sessions/${sessionId}/events` + query, signal);
    for await (const { data, id } of frames) yield { ...JSON.parse(data), cursor: id };
  }

  /** Return a stream's address for an EventSource, which has no header: `?token=` goes with it. */
  eventsUrl({ runId, sessionId }) {
    const where = runId ? path`runs/${runId}/events/stream` : path`sessions/${sessionId}/events`;
    return `${this.url}/v1/${where}${this.#token ? path`?token=${this.#token}` : ""}`;
  }

  /** Return the newest messages of a session, oldest first. */
  async messages(sessionId, { limit = 50, before } = {}) {
    const query = path`?limit=${limit}` + (before ? path`&before=${before}` : "");
    return (await this.request("GET", path`/v1/sessions/${sessionId}/messages` + query)).messages;
  }

  /** Return the registered agents. */
  async agents() {
    return (await this.request("GET", "/v1/agents")).agents;
  }

  /** End a run; again is the same answer. */
  cancel(runId, reason) {
    return this.request("POST", path`/v1/runs/${runId}/cancel`, { reason });
  }

  /** Decide an approval: `approve` or `reject`. */
  decide(approvalId, decision, reason) {
    return this.request("POST", path`/v1/approvals/${approvalId}/decide`, { decision, reason });
  }

  /** Make tools known that this client runs; each is `{name, description?, schema?, …}`. */
  registerTools(tools, { clientId, sessionId } = {}) {
    const body = { client_id: clientId, session_id: sessionId, tools };
    return this.request("POST", "/v1/tools/register", body);
  }

  /** Hand in what a tool call brought: `{result}`, or `{error: {code, message}}`. */
  submitToolResult(toolCallId, { result, error } = {}) {
    const body = { ok: error === undefined, result, error };
    return this.request("POST", path`/v1/tool_calls/${toolCallId}/result`, body);
  }

  /** Make one request and return its JSON; what fails in passing is tried again. */
  async request(method, where, body, { signal } = {}) {
    const patience = new Patience(this, signal);
    const headers = { ...this.#headers, "content-type": "application/json" };
    const sent = { method, signal, headers, body: JSON.stringify(body) };
    for (;;) {
      try {
        return await (await opened(this.url + where, sent)).json();
      } catch (problem) {
        await patience.after(problem);
      }
    }
  }

  /** Yield the frames of a stream over as many connections as it takes; 204 is the end. */
  async *#follow(where, signal) {
    const patience = new Patience(this, signal);
    const headers = { ...this.#headers, accept: STREAM };
    for (;;) {
      const own = new AbortController();
      const end = () => own.abort();
      signal?.addEventListener("abort", end);
      try {
        const answer = await inTime(opened(this.url + where, { headers, signal: own.signal }), end);
        if (answer.status === 204) return;
        if (!answer.headers.get("content-type")?.startsWith(STREAM)) {
          throw new SyntaxError(`${this.url} sent no event stream; is it an orchestrator?`);
        }
        patience.since = null;
        const parser = new SSEParser();
        const reader = answer.body.getReader();
        for (let got; !(got = await inTime(reader.read(), end)).done; ) {
          for (const frame of parser.feed(got.value)) {
            patience.failures = 0;
            if (frame.id) headers["last-event-id"] = frame.id;
            yield frame;
          }
          patience.baseMs = parser.retry ?? patience.baseMs;
        }
        throw new TypeError("the stream ended before the run");
      } catch (problem) {
        await patience.after(problem);
      } finally {
        signal?.removeEventListener("abort", end);
        own.abort();
      }
    }
  }
}

/** How long and how often to try again: doubling, spread, and not before Retry-After. */
class Patience {
  baseMs = BACKOFF_MS;
  failures = 0; since = null;

  constructor({ url, patienceMs }, signal) {
    Object.assign(this, { url, patienceMs, signal });
  }

  /** Wait before another try; throws what is final, or when patience is over. */
  async after(problem) {
    this.signal?.throwIfAborted();
    const no = problem instanceof ApiError && !problem.retryable;
    if (no || problem instanceof SyntaxError) throw problem; // another page than ours
    this.since ??= Date.now();
    const full = Math.min(this.baseMs * 2 ** this.failures++, BACKOFF_MAX_MS);
    const wait = Math.max(full * (0.5 + Math.random() / 2), problem.retryAfterMs ?? 0);
    if (Date.now() + wait - this.since > this.patienceMs) {
      const lost = `${this.url} did not answer for ${this.patienceMs} ms; is it up?`;
      throw problem instanceof ApiError ? problem : new ConnectionLost(lost, { cause: problem });
    }
    await sleep(wait, this.signal);
    this.signal?.throwIfAborted();
  }
}

async function opened(url, init) {
  init.signal?.throwIfAborted();
  const response = await fetch(url, init);
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  const after = response.headers.get("retry-after") ?? "";
  const ms = /^[0-9]+$/.test(after) ? after * 1000 : Date.parse(after) - Date.now();
  throw new ApiError(response.status, body ?? {}, ms > 0 ? ms : 0);
}

/** Return what a promise brings; `cut` is called when that takes too long. */
function inTime(promise, cut) {
  const timer = setTimeout(cut, SILENCE_MS);
  return promise.finally(() => clearTimeout(timer));
}

async function sleep(ms, signal) {
  let timer, wake;
  await new Promise((resolve) => {
    [timer, wake] = [setTimeout(resolve, ms), resolve];
    signal?.addEventListener("abort", wake);
  });
  clearTimeout(timer);
  signal?.removeEventListener("abort", wake);
}

function mint(prefix) {
  const bytes = globalThis.crypto?.getRandomValues(new Uint8Array(12))
    ?? Array.from({ length: 12 }, () => Math.trunc(Math.random() * 256)); // Node 18 hides crypto
  return prefix + Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** A run: iterate over it for its events, over `text` for the words, or await `result()`. */
export class Run {
  #client;
  #signal;
  #view = emptyView();
  #own = new Set(); // lists that nobody has seen yet: they may grow as they are

  constructor(client, { run_id: id, session_id: sessionId = null }, signal) {
    Object.assign(this, { id, sessionId });
    this.#client = client;
    this.#signal = signal;
  }

  /** What is known of the run so far; see `reduce`. */
  get view() {
    this.#own.clear();
    return this.#view;
  }

  async *[Symbol.asyncIterator](afterSeq = 0) {
    for await (const event of this.#client.tail(this.id, { afterSeq, signal: this.#signal })) {
      this.#view = folded(this.#view, event, this.#own);
      this.sessionId ??= this.#view.session_id;
      yield event;
    }
  }

  /** The words of the answer as they come; throws RunFailed at a bad end. */
  get text() {
    return this.#words();
  }

  async *#words() {
    for await (const { type, seq, payload } of this) {
      if (type === "agent_stream_delta") yield payload.text;
      else if (this.#view.pieces.at(-1)?.seq === seq) yield this.#view.text; // said at the end only
    }
    await this.result();
  }

  /** Return `{runId, sessionId, finalMessage, text, usage}`; rejects with RunFailed. */
  async result() {
    while (!this.#view.ended_at) for await (const _ of this[Symbol.asyncIterator](this.#view.seq));
    const { error, final_message: finalMessage, usage } = this.#view;
    if (error) throw new RunFailed(this.id, error.code, error.message);
    const { id: runId, sessionId } = this;
    return { runId, sessionId, finalMessage, text: textOf(finalMessage), usage: usage ?? {} };
  }

  /** End the run; again is the same answer. */
  cancel(reason) {
    return this.#client.cancel(this.id, reason);
  }
}

/** Return what is known of a run before its first event. */
export function emptyView() {
  return {
    run_id: null, session_id: null, agent_id: null, parent_run_id: null, request_id: null,
    status: null, queued: false, seq: 0, durable_seq: 0, holes: [], input: null, text: "",
    pieces: [], states: [], agent_events: [], attempts: [], children: [], tool_calls: [],
    approvals: [], llm_calls: [], final_message: null, usage: null, error: null,
    created_at: null, started_at: null, ended_at: null,
  };
}

/** Return the view after one more event of the run; doubles and other runs change nothing. */
export const reduce = (view, event) => folded(view, event);

function folded(view, event, own) {
  const { type, seq, run_id, payload } = event;
  if (view.run_id && run_id !== view.run_id) return view;
  if (type === "log_reset") return rewound(view, payload.after_seq);
  if (seq <= view.seq) return view;
  const holes = seq > view.seq + 1 ? [...view.holes, [view.seq + 1, seq - 1]] : view.holes;
  const known = Object.hasOwn(FOLD, type);
  const more = known ? FOLD[type](view, payload, event, own) : {};
  const durable_seq = known && !DELTA.test(type) ? seq : view.durable_seq;
  return { ...view, run_id, holes, ...more, seq, durable_seq };
}

/** Return the text of a message's content, which is a string or a list of parts. */
export function textOf(content) {
  if (typeof content === "string") return content;
  return (content ?? []).map((part) => part.text ?? "").join("");
}

const DELTA = /^(agent_(stream_delta|state|event)|llm_call_\w+)$/; // a power loss may take it back
const TOKENS = ["prompt_tokens", "completion_tokens", "total_tokens"];
const MEASURED = ["latency_ms", ...TOKENS, "error", "ttft_ms", "cost", "upstream"];
const POLICY = { allow: "POLICY_CHECKED", require_approval: "WAITING_APPROVAL", block: "BLOCKED" };

const pick = (payload, ...names) =>
  Object.fromEntries(names.map((name) => [name, payload[name] ?? null]));

/** Return a fold that adds to a list: to a copy, unless the list is one of `own`. */
const adding = (name, ...names) => (view, payload, { seq, ts }, own) => {
  const list = own?.has(view[name]) ? view[name] : [...view[name]];
  list.push({ seq, ts, ...pick(payload, ...names) });
  own?.add(list);
  return { [name]: list };
};

/** Return what says more of one item of a list, whether that was known or not. */
const saying = (list, key, names) => (view, payload, told, fields) => {
  const id = payload[key];
  const known = view[list].some((item) => item[key] === id);
  const all = known ? view[list] : [...view[list], { [key]: id, ...pick({}, ...names) }];
  const more = { ...pick(payload, ...told), ...fields };
  return { [list]: all.map((item) => (item[key] === id ? { ...item, ...more } : item)) };
};
const tool = saying("tool_calls", "tool_call_id", [
  "tool_name", "kind", "args", "state", "decision", "reason", "rules", "deadline_ts", "status",
  "result", "error", "created_at", "ended_at",
]);
const approval = saying("approvals", "approval_id", [
  "tool_call_id", "tool_name", "args_summary", "args", "expires_at", "decision", "reason",
  "decided_by", "required_at", "decided_at",
]);
const llm = saying("llm_calls", "request_id", [
  "seq", "done_seq", "model", "stream", "started_at", "ended_at", ...MEASURED,
]);

/** Return the attempts, the last of which ends here if it is still open. */
function closed({ attempts }, ts, fields = {}) {
  return attempts.map((one) =>
    one === attempts.at(-1) && one.ended_at === null ? { ...one, ended_at: ts, ...fields } : one);
}

/** Return what the end of a run changes, however it ended. */
function ended(view, { type, ts }, fields) {
  return { status: ENDS[type], queued: false, ended_at: ts, attempts: closed(view, ts, fields) };
}

/** Return what the agent has said up to `seq`. */
function kept(view, seq) {
  const until = (list) => list.filter((item) => item.seq <= seq);
  const pieces = until(view.pieces);
  const text = pieces.map((piece) => piece.text).join("");
  return { pieces, text, states: until(view.states), agent_events: until(view.agent_events) };
}

/** Return the view as it was after `seq`: only what changes no state can have been taken back. */
function rewound(view, seq) {
  if (seq >= view.seq) return view;
  if (seq < view.durable_seq) {
    return { ...emptyView(), run_id: view.run_id, seq, holes: seq ? [[1, seq]] : [] };
  }
  const undone = pick({}, "done_seq", "ended_at", ...MEASURED);
  return {
    ...view, ...kept(view, seq), seq,
    holes: view.holes.flatMap(([from, to]) => (from > seq ? [] : [[from, Math.min(to, seq)]])),
    llm_calls: view.llm_calls.filter((call) => (call.seq ?? call.done_seq) <= seq)
      .map((call) => (call.done_seq > seq ? { ...call, ...undone } : call)),
  };
}

const FOLD = {
  run_started: (view, p, { ts }) => ({
    ...pick(p, "session_id", "agent_id", "parent_run_id", "request_id"),
    status: "CREATED", created_at: ts,
  }),
  user_input: (view, p) => ({ input: p.content, queued: p.queued ?? false }),
  agent_invoke_started: (view, p, { seq, ts }) => ({
    status: "RUNNING", queued: false, started_at: view.started_at ?? ts,
    attempts: [...view.attempts, {
      ...pick(p, "attempt", "agent_id", "endpoint", "instance_id"), seq, started_at: ts,
      ended_at: null, ...pick({}, "code", "message", "delay_ms"),
    }],
  }),
  agent_stream_delta: (view, p, event, own) => ({
    text: view.text + p.text, ...adding("pieces", "text")(view, p, event, own),
  }),
  agent_state: adding("states", "state", "detail"),
  agent_event: adding("agent_events", "name", "data"),
  agent_invoke_done: (view, p, { ts }) => ({
    ...pick(p, "final_message", "usage"), attempts: closed(view, ts),
  }),
  agent_invoke_retrying: (view, p, { ts }) => ({
    ...kept(view, p.discard_from_seq - 1),
    attempts: closed(view, ts, pick(p, "code", "message", "delay_ms")),
  }),
  run_done: (view, p, event, own) => {
    const final_message = p.final_message ?? view.final_message;
    const text = view.text ? "" : textOf(final_message); // of an agent that says it only here
    const said = text && FOLD.agent_stream_delta(view, { text }, event, own);
    return { final_message, usage: p.usage ?? view.usage, ...said, ...ended(view, event) };
  },
  run_failed: (view, p, event) => ({
    error: pick(p, "code", "message"), ...ended(view, event, pick(p, "code", "message")),
  }),
  run_cancelled: (view, p, event) => ({
    error: { code: "cancelled", message: p.reason ?? null }, ...ended(view, event),
  }),
  run_paused: (view, p) => ({ status: p.state }),
  run_resumed: () => ({ status: "RUNNING" }),
  agent_called_child: (view, { child_run_id: run_id, agent_id }, { seq, ts }) => ({
    children: [...view.children, { run_id, agent_id, seq, ts }],
  }),
  llm_call_started: (view, p, { seq, ts }) =>
    llm(view, p, ["model", "stream"], { seq, started_at: ts }),
  llm_call_done: (view, p, { seq, ts }) =>
    llm(view, p, ["model", "stream", ...MEASURED], { done_seq: seq, ended_at: ts }),
  tool_call_created: (view, p, { ts }) =>
    tool(view, p, ["tool_name", "kind", "args"], { state: "CREATED", created_at: ts }),
  policy_decision: (view, p) =>
    tool(view, p, ["decision", "reason", "rules"], { state: POLICY[p.decision] ?? POLICY.allow }),
  tool_dispatched: (view, p) => tool(view, p, ["state"]),
  tool_request: (view, p) => tool(view, p, ["state", "tool_name", "args", "deadline_ts"]),
  tool_result: (view, p, { ts }) =>
    tool(view, p, ["status", "state", "result", "error"], { ended_at: ts }),
  approval_required: (view, p, { ts }) => ({
    ...approval(view, p, ["tool_call_id", "tool_name", "args_summary", "args", "expires_at"],
      { decision: "PENDING", required_at: ts }),
    ...tool(view, p, [], { state: "WAITING_APPROVAL" }),
  }),
  approval_decision: (view, p, { ts }) => {
    const told = ["decision", "reason", "decided_by"];
    const { approvals } = approval(view, p, told, { decided_at: ts });
    const { tool_call_id } = approvals.find((one) => one.approval_id === p.approval_id);
    const state = p.decision === "EXPIRED" ? "TIMEOUT" : p.decision;
    return { approvals, ...(tool_call_id ? tool(view, { tool_call_id }, [], { state }) : {}) };
  },
};
