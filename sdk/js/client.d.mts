/** What the server says of itself and of runs, by the names of the wire. */

export type Json = null | boolean | number | string | Json[] | { [name: string]: Json };
export type Content = string | Array<{ type: string; text?: string; [name: string]: unknown }>;
export type Status =
  | "CREATED" | "RUNNING" | "PAUSED_WAITING_TOOL" | "PAUSED_WAITING_APPROVAL"
  | "DONE" | "FAILED" | "CANCELLED";

export type EventType =
  | "run_started" | "user_input" | "agent_invoke_started" | "agent_stream_delta" | "agent_state"
  | "agent_event" | "agent_invoke_done" | "agent_invoke_retrying" | "run_done" | "run_failed"
  | "run_cancelled" | "run_paused" | "run_resumed" | "agent_called_child" | "llm_call_started"
  | "llm_call_done" | "tool_call_created" | "policy_decision" | "tool_dispatched" | "tool_request"
  | "tool_result" | "approval_required" | "approval_decision";

/** An event of a run's log; a newer server may send types that are not listed here. */
export interface RunEvent {
  event_id: string;
  run_id: string;
  seq: number;
  ts: number;
  type: EventType;
  payload: any;
}

/** Not of the log: forget what came after `after_seq`, it comes again. */
export interface LogReset {
  type: "log_reset";
  run_id: string;
  payload: { after_seq: number };
}

export type TailEvent = RunEvent | LogReset;

export interface Usage {
  tokens?: number;
  total_tokens?: number;
  prompt_tokens?: number;
  completion_tokens?: number;
  duration_ms?: number;
  [name: string]: unknown;
}

export interface Message {
  message_id: string;
  session_id: string;
  run_id?: string | null;
  role: string;
  content: Content;
  created_at: string;
}

export interface AgentSummary {
  agent_id: string;
  name: string;
  status: string;
  last_heartbeat_at?: number | null;
  capabilities: string[];
}

export interface Tool {
  name: string;
  description?: string;
  schema?: object;
  summary?: string;
  timeout_ms?: number;
  policy?: "allow" | "require_approval" | "block";
  idempotent?: boolean;
  [name: string]: unknown;
}

export interface ClientOptions {
  /** Default: ORCHESTRATOR_URL, the page's origin, or port 8080 of this machine. */
  url?: string;
  /** Default: ORCHESTRATOR_KEY. */
  key?: string;
  /** The token of one session, for a browser. */
  token?: string;
  /** How long nobody may answer; default 30000. */
  patienceMs?: number;
}

export interface RunOptions {
  sessionId?: string;
  requestId?: string;
  context?: { [name: string]: unknown };
  labels?: { [name: string]: string };
  onBusy?: string;
  timeoutMs?: number;
  /** Ends the reading, not the run. */
  signal?: AbortSignal;
}

export interface Result {
  runId: string;
  sessionId: string;
  finalMessage: Content;
  text: string;
  usage: Usage;
}

export declare class ApiError extends Error {
  constructor(
    status: number,
    body: { error?: string; code?: string; details?: unknown; retryable?: boolean },
    retryAfterMs?: number,
  );
  status: number;
  code: string;
  details: unknown;
  retryable: boolean;
  retryAfterMs: number;
}

export declare class RunFailed extends Error {
  constructor(runId: string, code: string, message: string);
  runId: string;
  code: string;
}

export declare class ConnectionLost extends Error {}

export declare class SSEParser {
  lastEventId: string;
  retry: number | null;
  feed(bytes: Uint8Array): Array<{ event: string; data: string; id: string }>;
}

export declare class Client {
  constructor(options?: ClientOptions);
  url: string;
  patienceMs: number;
  run(agentId: string, content: Content, options?: RunOptions): Promise<Run>;
  attach(runId: string, options?: { signal?: AbortSignal }): Run;
  tail(
    runId: string,
    options?: { afterSeq?: number; signal?: AbortSignal },
  ): AsyncGenerator<TailEvent, void>;
  tailSession(
    sessionId: string,
    options?: { cursor?: string; signal?: AbortSignal },
  ): AsyncGenerator<RunEvent & { cursor: string }, void>;
  eventsUrl(of: { runId?: string; sessionId?: string }): string;
  messages(sessionId: string, options?: { limit?: number; before?: string }): Promise<Message[]>;
  agents(): Promise<AgentSummary[]>;
  cancel(
    runId: string,
    reason?: string,
  ): Promise<{ run_id: string; status: Status; message: string }>;
  decide(approvalId: string, decision: "approve" | "reject", reason?: string): Promise<any>;
  registerTools(
    tools: Tool[],
    owner?: { clientId?: string; sessionId?: string },
  ): Promise<{ ok: boolean; registered_count: number }>;
  submitToolResult(
    toolCallId: string,
    outcome: { result?: unknown; error?: { code: string; message: string } },
  ): Promise<any>;
  request(
    method: string,
    where: string,
    body?: unknown,
    options?: { signal?: AbortSignal },
  ): Promise<any>;
}

export declare class Run implements AsyncIterable<TailEvent> {
  constructor(
    client: Client,
    run: { run_id: string; session_id?: string | null },
    signal?: AbortSignal,
  );
  readonly id: string;
  sessionId: string | null;
  readonly view: View;
  readonly text: AsyncGenerator<string, void>;
  [Symbol.asyncIterator](afterSeq?: number): AsyncGenerator<TailEvent, void>;
  result(): Promise<Result>;
  cancel(reason?: string): Promise<{ run_id: string; status: Status; message: string }>;
}

/** What is known of a run: plain JSON, so it may be kept and gone on with. */
export interface View {
  run_id: string | null;
  session_id: string | null;
  agent_id: string | null;
  parent_run_id: string | null;
  request_id: string | null;
  status: Status | null;
  queued: boolean;
  seq: number;
  /** The last seq that no power loss can take back. */
  durable_seq: number;
  /** First and last seq of what was never seen. */
  holes: Array<[number, number]>;
  input: Content | null;
  text: string;
  pieces: Array<{ seq: number; ts: number; text: string }>;
  states: Array<{ seq: number; ts: number; state: string; detail: Json }>;
  agent_events: Array<{ seq: number; ts: number; name: string; data: Json }>;
  attempts: Attempt[];
  children: Array<{ run_id: string; agent_id: string; seq: number; ts: number }>;
  tool_calls: ToolCall[];
  approvals: Approval[];
  llm_calls: LLMCall[];
  final_message: Content | null;
  usage: Usage | null;
  error: { code: string; message: string } | null;
  created_at: number | null;
  started_at: number | null;
  ended_at: number | null;
}

export interface Attempt {
  attempt: number | null;
  agent_id: string | null;
  endpoint: string | null;
  instance_id: string | null;
  seq: number;
  started_at: number;
  ended_at: number | null;
  code: string | null;
  message: string | null;
  delay_ms: number | null;
}

export interface ToolCall {
  tool_call_id: string;
  tool_name: string | null;
  kind: string | null;
  args: Json;
  state: string | null;
  decision: string | null;
  reason: string | null;
  rules: string[] | null;
  deadline_ts: number | null;
  status: string | null;
  result: Json;
  error: { [name: string]: Json } | null;
  created_at: number | null;
  ended_at: number | null;
}

export interface Approval {
  approval_id: string;
  tool_call_id: string | null;
  tool_name: string | null;
  args_summary: string | null;
  args: Json;
  expires_at: number | null;
  decision: string | null;
  reason: string | null;
  decided_by: string | null;
  required_at: number | null;
  decided_at: number | null;
}

export interface LLMCall {
  request_id: string;
  seq: number | null;
  done_seq: number | null;
  model: string | null;
  stream: boolean | null;
  started_at: number | null;
  ended_at: number | null;
  latency_ms: number | null;
  prompt_tokens: number | null;
  completion_tokens: number | null;
  total_tokens: number | null;
  error: string | null;
  ttft_ms: number | null;
  cost: number | null;
  upstream: string | null;
}

export declare function emptyView(): View;
export declare function reduce(view: View, event: TailEvent): View;
export declare function textOf(content: Content | null): string;
