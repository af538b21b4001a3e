/**
 * The ingress from JavaScript: one WebSocket for a session, opened again when it breaks.
 * One file without dependencies, for browsers and for Node 22 and newer.
 */

const BACKOFF_MS = 250;
const BACKOFF_MAX_MS = 15_000;
const RUNS_MAX = 100;
const NOT_ALLOWED = 1008;

/** Connect to the ingress at `url` (`ws://…/ws`); the session is known when this resolves. */
export async function connect(url, options = {}) {
  const connection = new IngressConnection(url, options);
  await connection.ready;
  return connection;
}

/** A device of a session: iterate over it for what is pushed, each event once per run and seq. */
export class IngressConnection {
  sessionId;
  cursor;
  ready;
  #options;
  #url;
  #socket = null;
  #seqs = new Map();
  #inbox = [];
  #wake = () => undefined;
  #failures = 0;
  #closed = null;
  #waiting = [];
  #asked = new Map();
  #refused = null;
  #settle;

  /**
   * `apiKey` or `token` says who calls; `tools` maps names to `{description, schema, run(args)}`,
   * which answer what is requested of them.
   */
  constructor(url, options = {}) {
    this.#url = url;
    this.#options = { WebSocket: globalThis.WebSocket, tools: {}, ...options };
    if (!this.#options.WebSocket) {
      throw new TypeError("there is no WebSocket: take Node 22 or newer, or give one as an option");
    }
    this.sessionId = options.sessionId;
    this.cursor = options.cursor;
    this.ready = new Promise((resolve, reject) => (this.#settle = { resolve, reject }));
    this.ready.catch(() => undefined); // told to whoever iterates, too
    this.#open();
  }

  /** Ask an agent, once however often the connection breaks; what comes of it is pushed. */
  invoke(agentId, content, { requestId = randomId() } = {}) {
    const message = { role: "user", content };
    const asked = { type: "agent_invoke", request_id: requestId, agent_id: agentId, message };
    this.#asked.set(requestId, asked);
    if (this.#greeted()) this.send(asked);
  }

  /** Hand in what a tool brought: `{result}`, or `{error}`. */
  submitToolResult({ run_id, tool_call_id }, { result, error }) {
    const ok = error === undefined;
    this.send({ type: "tool_result", run_id, tool_call_id, ok, result, error });
  }

  /** Decide an approval: `approve` or `reject`. */
  decide({ run_id, approval_id }, decision, reason) {
    this.send({ type: "approval_decision", run_id, approval_id, decision, reason });
  }

  /** End a run. */
  cancel(runId) {
    this.send({ type: "cancel_run", run_id: runId });
  }

  /** Send a message, or keep it until the session is there again. */
  send(message) {
    const stamped = { ts: Date.now(), session_id: this.sessionId, ...message };
    if (this.#greeted()) this.#socket.send(JSON.stringify(stamped));
    else this.#waiting.push(stamped);
  }

  /** Leave; iterating ends. */
  close() {
    this.#end(new Error("the connection was closed"));
    this.#closed.quiet = true;
  }

  async *[Symbol.asyncIterator]() {
    for (;;) {
      while (this.#inbox.length) yield this.#inbox.shift();
      if (this.#closed?.quiet) return;
      if (this.#closed) throw this.#closed;
      await new Promise((resolve) => (this.#wake = resolve));
    }
  }

  #greeted() {
    return this.#socket?.readyState === 1 && this.#socket.greeted;
  }

  #open() {
    const socket = new this.#options.WebSocket(this.#url);
    this.#socket = socket;
    socket.onopen = () => socket.send(JSON.stringify(this.#hello()));
    socket.onmessage = ({ data }) => this.#take(JSON.parse(data));
    socket.onclose = (close) => this.#again(close);
    socket.onerror = () => undefined; // a close follows
  }

  #hello() {
    const { apiKey, token, userId, clientMeta } = this.#options;
    return {
      type: "hello", ts: Date.now(), session_id: this.sessionId, user_id: userId, api_key: apiKey,
      token, client_meta: clientMeta, cursor: this.cursor,
      last_seq: this.#seqs.size ? Object.fromEntries(this.#seqs) : undefined,
    };
  }

  #again({ code, reason }) {
    if (this.#closed) return;
    if (code === NOT_ALLOWED && reason === this.#refused?.code) return this.#end(this.#refused);
    const full = Math.min(BACKOFF_MS * 2 ** this.#failures++, BACKOFF_MAX_MS);
    setTimeout(() => this.#closed || this.#open(), full * (0.5 + Math.random() / 2));
  }

  #end(problem) {
    this.#closed ??= problem;
    this.#settle.reject(problem);
    this.#socket?.close();
    this.#wake();
  }

  #take(message) {
    if (message.type === "hello_ack") return this.#welcome(message);
    if (message.type === "error" && !message.seq) {
      this.#refused = Object.assign(new Error(message.message), { code: message.code });
      if (!this.#socket.greeted && !message.retryable) return this.#end(this.#refused);
    }
    if (message.type === "run_started" || message.type === "error") {
      this.#asked.delete(message.request_id);
    }
    if (message.type === "log_reset") this.#goBack(message);
    else if (this.#isDouble(message)) return;
    this.cursor = message.cursor ?? this.cursor;
    this.#inbox.push(message);
    this.#wake();
    const tool = message.type === "tool_request" && this.#options.tools[message.tool_name];
    if (tool) this.#use(tool, message);
  }

  #welcome({ session_id, cursor }) {
    this.sessionId = session_id;
    this.cursor ??= cursor; // a later one counts when what lies before it has come
    this.#socket.greeted = true;
    this.#failures = 0;
    const tools = Object.entries(this.#options.tools)
      .map(([name, { run: _, ...tool }]) => ({ name, ...tool }));
    if (tools.length) this.send({ type: "register_tools", tools });
    for (const message of this.#waiting.splice(0)) this.send({ ...message, session_id });
    for (const message of this.#asked.values()) this.send(message);
    this.#settle.resolve();
  }

  /** Note how far a run has come; what was pushed before is not passed on again. */
  #isDouble({ run_id, seq }) {
    if (!run_id || !seq) return false;
    const last = this.#seqs.get(run_id) ?? 0;
    if (seq <= last) return true;
    this.#seqs.delete(run_id); // the newest stands last
    this.#seqs.set(run_id, seq);
    if (this.#seqs.size > RUNS_MAX) this.#seqs.delete(this.#seqs.keys().next().value);
    return false;
  }

  /** Note that what came of a run after a seq is void; what comes again is no double. */
  #goBack({ run_id, after_seq }) {
    if (this.#seqs.get(run_id) > after_seq) this.#seqs.set(run_id, after_seq);
  }

  async #use(tool, request) {
    try {
      this.submitToolResult(request, { result: (await tool.run(request.args, request)) ?? null });
    } catch (problem) {
      const message = String(problem?.message ?? problem);
      this.submitToolResult(request, { error: { code: "tool_error", message } });
    }
  }
}

function randomId() {
  return crypto.getRandomValues(new Uint32Array(4)).join("-");
}
