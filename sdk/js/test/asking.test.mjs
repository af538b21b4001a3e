/** What the client sends, field by field: against a small server that remembers it. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { ApiError, Client } from "../client.mjs";
import { json, serving } from "./small_server.mjs";

const answering = (t, body = {}, status = 200) =>
  serving((asked, res) => json(res, status, body), t);

test("tools are registered for a client or a session", async (t) => {
  const server = await answering(t, { ok: true, registered_count: 1 });
  const client = new Client({ url: server.url });
  const tools = [{ name: "pick_file", description: "Asks for a file", schema: { type: "object" } }];
  const answer = await client.registerTools(tools, { clientId: "c1", sessionId: "s" });
  assert.equal(answer.registered_count, 1);
  const [{ method, path, body }] = server.requests;
  assert.deepEqual([method, path], ["POST", "/v1/tools/register"]);
  assert.deepEqual(body, { client_id: "c1", session_id: "s", tools });
});

test("a tool's result or its error is handed in", async (t) => {
  const server = await answering(t);
  const client = new Client({ url: server.url });
  await client.submitToolResult("tc_1", { result: { a: 1 } });
  await client.submitToolResult("tc/2", { error: { code: "tool_error", message: "no" } });
  const [good, bad] = server.requests;
  assert.deepEqual([good.path, good.body], ["/v1/tool_calls/tc_1/result", { ok: true, result: { a: 1 } }]);
  assert.equal(bad.path, "/v1/tool_calls/tc%2F2/result");
  assert.deepEqual(bad.body, { ok: false, error: { code: "tool_error", message: "no" } });
});

test("a decision is told with its reason; another person was first", async (t) => {
  const said = { error: "already decided", code: "already_decided", details: { by: "ann" } };
  const server = await serving((asked, res) =>
    (asked.body.decision === "approve" ? json(res, 200, { status: "APPROVED" }) : json(res, 409, said)), t);
  const client = new Client({ url: server.url });
  assert.equal((await client.decide("ap_1", "approve", "fine")).status, "APPROVED");
  assert.equal(server.requests[0].path, "/v1/approvals/ap_1/decide");
  assert.deepEqual(server.requests[0].body, { decision: "approve", reason: "fine" });
  await assert.rejects(client.decide("ap_1", "reject"), (problem) => {
    assert.ok(problem instanceof ApiError && !problem.retryable);
    assert.deepEqual([problem.code, problem.details], ["already_decided", { by: "ann" }]);
    return true;
  });
  assert.equal(server.requests.length, 2);
});

test("keys and tokens go into a header; only a token into the address of a stream", async (t) => {
  const server = await answering(t, { agents: [] });
  await new Client({ url: server.url, key: "ok_1" }).agents();
  await new Client({ url: `${server.url}/`, token: "t&1" }).agents();
  const sent = server.requests.map(({ headers, query }) => [headers.authorization, query]);
  assert.deepEqual(sent, [["Bearer ok_1", {}], ["Bearer t&1", {}]]);
  const url = (options, of) => new Client({ url: "http://x", ...options }).eventsUrl(of);
  assert.equal(url({ token: "t&1" }, { runId: "r" }), "http://x/v1/runs/r/events/stream?token=t%261");
  assert.equal(url({ key: "ok_1" }, { sessionId: "s" }), "http://x/v1/sessions/s/events");
});

test("a run is asked for with all that may be said of it", async (t) => {
  const server = await answering(t, { run_id: "run_1", session_id: "s" }, 201);
  const options = {
    sessionId: "s", requestId: "r", context: { user_id: "u" }, labels: { a: "b" },
    onBusy: "enqueue", timeoutMs: 5,
  };
  const run = await new Client({ url: server.url }).run("a", "Hi", options);
  assert.deepEqual([run.id, run.sessionId], ["run_1", "s"]);
  assert.deepEqual(server.requests[0].body, {
    agent_id: "a", input_message: { role: "user", content: "Hi" }, session_id: "s", request_id: "r",
    context: { user_id: "u" }, labels: { a: "b" }, on_busy: "enqueue", timeout_ms: 5,
  });
});

test("the token of a session names the session itself", async (t) => {
  const server = await answering(t, { run_id: "run_1", session_id: "s" }, 201);
  await new Client({ url: server.url, token: "t" }).run("a", "Hi");
  assert.equal("session_id" in server.requests[0].body, false);
});

test("messages are asked for by page", async (t) => {
  const server = await answering(t, { messages: [{ content: "Hi" }], has_more: false });
  const found = await new Client({ url: server.url }).messages("s", { limit: 2, before: "msg_1" });
  assert.deepEqual(found, [{ content: "Hi" }]);
  assert.deepEqual(server.requests[0].query, { limit: "2", before: "msg_1" });
});

test("a queue that is full is tried again, an overdrawn patience is not", async (t) => {
  const full = { error: "full", code: "queue_full", retryable: true };
  let count = 0;
  const server = await serving((asked, res) =>
    (count++ ? json(res, 200, { agents: [1] }) : json(res, 429, full, { "retry-after": "0" })), t);
  assert.deepEqual(await new Client({ url: server.url }).agents(), [1]);
  const always = await serving((asked, res) => json(res, 429, full, { "retry-after": "60" }), t);
  const client = new Client({ url: always.url });
  await assert.rejects(client.agents(), (problem) => problem.code === "queue_full");
  assert.equal(always.requests.length, 1);
});
