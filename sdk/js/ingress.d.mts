import type { Content, Tool } from "./client.mjs";

/**
 * A message of the ingress; `type` is a live name: `delta`, `state`, `done`, `error`, …, or
 * `log_reset`: forget what came of the run after `after_seq`, it comes again.
 */
export interface Pushed {
  type: string;
  ts?: number;
  run_id?: string;
  seq?: number;
  after_seq?: number;
  session_id?: string;
  [name: string]: any;
}

export interface ClientTool extends Omit<Tool, "name"> {
  run(args: any, request: Pushed): unknown;
}

export interface IngressOptions {
  sessionId?: string;
  apiKey?: string;
  /** The token of a session. */
  token?: string;
  userId?: string;
  cursor?: string;
  clientMeta?: object;
  tools?: { [name: string]: ClientTool };
  WebSocket?: typeof WebSocket;
}

export declare class IngressConnection implements AsyncIterable<Pushed> {
  constructor(url: string, options?: IngressOptions);
  sessionId: string | undefined;
  cursor: string | undefined;
  readonly ready: Promise<void>;
  invoke(agentId: string, content: Content, options?: { requestId?: string }): void;
  submitToolResult(
    request: { run_id: string; tool_call_id: string },
    outcome: { result?: unknown; error?: { code: string; message: string } },
  ): void;
  decide(
    approval: { run_id: string; approval_id: string },
    decision: "approve" | "reject",
    reason?: string,
  ): void;
  cancel(runId: string): void;
  send(message: { type: string; [name: string]: unknown }): void;
  close(): void;
  [Symbol.asyncIterator](): AsyncGenerator<Pushed, void>;
}

export declare function connect(url: string, options?: IngressOptions): Promise<IngressConnection>;
