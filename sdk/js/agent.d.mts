import type { Client, Content, Message, Usage } from "./client.mjs";

/** What one request asks of the agent. */
export interface Invocation {
  /** The text of the message. */
  text: string;
  input: { role: string; content: Content };
  /** The conversation before it. */
  messages: Array<Pick<Message, "role" | "content">>;
  context: { [name: string]: any };
  /** What was awaited, after a pause. */
  resume: { state: unknown; results: unknown[] } | null;
  agentId: string;
  sessionId: string;
  runId: string;
  attempt: number;
  /** Aborted when the caller hangs up: the run was cancelled. */
  signal: AbortSignal;
  /** The server that asks, with the token of this attempt. */
  platform: Client;
}

export type Piece =
  | string
  | { state: string; detail?: unknown }
  | { event: string; data?: unknown }
  | { wait_for: string[]; state?: unknown };
export type Ending = Content | { final_message?: Content; usage?: Usage } | void;
type Steps = AsyncGenerator<Piece, Ending> | Generator<Piece, Ending> | AsyncIterable<Piece>;
export type Answer = (asked: Invocation) => Steps | Promise<Steps | Ending> | Ending;

export interface AgentOptions {
  version?: string;
  capabilities?: string[];
}

export interface ServeOptions extends AgentOptions {
  /** Default 8000; 0 takes any free port. */
  port?: number;
  /** Default 127.0.0.1. */
  host?: string;
  /** The name to register by; needed where ORCHESTRATOR_URL is set. */
  agentId?: string;
  name?: string;
  /** Where the orchestrator reaches it; default: the address it listens on. */
  endpoint?: string;
  orchestratorUrl?: string;
  key?: string;
  /** More for the registration, such as `timeouts` or `retry`, by the names of the wire. */
  registration?: { [name: string]: unknown };
  /** How long runs under way may take to end; default 30000. */
  drainMs?: number;
  /** Whether SIGTERM and SIGINT drain it; default true. */
  signals?: boolean;
}

export declare function agent(
  answer: Answer,
  options?: AgentOptions,
): (request: Request) => Promise<Response>;
export declare function serve(
  answer: Answer,
  options?: ServeOptions,
): Promise<{ url: string; close(): Promise<void> }>;
