/** The SDK against the real server and the demo agent, whose addresses are in the environment. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { serve } from "../agent.mjs";
import { Client, emptyView, reduce, RunFailed } from "../client.mjs";
import { all } from "./small_server.mjs";

const client = new Client(); // ORCHESTRATOR_URL
const own = (name) => `${name}-${process.pid}-${Date.now()}`;

test.before(async () => {
  await client.request("POST", "/v1/agents/register", {
    agent_id: "demo", name: "Demo", endpoint: process.env.DEMO_AGENT,
    retry: { max_attempts: 2, backoff_ms: 20 },
  });
});

test("a run is asked for, read, and has a result", async () => {
  const run = await client.run("demo", "count 5", { labels: { from: "js" } });
  assert.match(run.id, /^run_/);
  assert.equal((await all(run.text)).join(""), "1 2 3 4 5 ");
  const result = await run.result();
  assert.equal(result.text, "1 2 3 4 5");
  assert.equal(result.finalMessage, "1 2 3 4 5");
  assert.deepEqual([result.runId, result.sessionId], [run.id, run.sessionId]);
  assert.equal(result.usage.tokens, 5);
  const said = (await client.messages(run.sessionId)).map(({ role, content }) => [role, content]);
  assert.deepEqual(said, [["user", "count 5"], ["assistant", "1 2 3 4 5"]]);
});

test("result alone is enough, also for a run of somebody else", async () => {
  const { id } = await client.run("demo", "Hi");
  const { text, sessionId } = await client.attach(id).result();
  assert.match(text, /You said: “Hi”/);
  assert.match(sessionId, /^sess_/);
});

test("events come once and in order, and the tail goes on anywhere", async () => {
  const run = await client.run("demo", "count 40");
  const events = await all(run);
  assert.deepEqual(events.map(({ seq }) => seq), events.map((_, n) => n + 1));
  assert.equal(events.at(-1).type, "run_done");
  for (const afterSeq of [1, 17, events.length - 1]) {
    assert.deepEqual(await all(client.tail(run.id, { afterSeq })), events.slice(afterSeq));
  }
  assert.deepEqual(await all(client.tail(run.id, { afterSeq: events.length })), []);
  assert.deepEqual(run.view, events.reduce((view, event) => reduce(view, event), emptyView()));
});

test("a failed run rejects with the agent's code", async () => {
  const run = await client.run("demo", "fail");
  await assert.rejects(run.result(), (problem) => {
    assert.ok(problem instanceof RunFailed);
    assert.deepEqual([problem.code, problem.runId], ["demo_failure", run.id]);
    return true;
  });
  await assert.rejects(all(run.text), RunFailed);
});

test("a run is cancelled, twice with the same answer", async () => {
  const run = await client.run("demo", "slow 60");
  for await (const { type } of run) if (type === "agent_stream_delta") break;
  assert.equal((await run.cancel("enough")).status, "CANCELLED");
  assert.equal((await client.cancel(run.id)).status, "CANCELLED");
  await assert.rejects(run.result(), { name: "RunFailed", code: "cancelled", message: "enough" });
  assert.equal(run.view.status, "CANCELLED");
});

test("an attempt that was lost leaves no words in the view", async () => {
  const run = await client.run("demo", "flaky");
  const { text } = await run.result();
  assert.equal(text, "Here I am, at last.");
  assert.equal(run.view.text.trim(), text);
  assert.deepEqual(run.view.attempts.map(({ code }) => code), ["agent_eof", null]);
});

test("the same request is the same run", async () => {
  const again = { sessionId: own("s"), requestId: "r" };
  const one = await client.run("demo", "count 2", again);
  const two = await client.run("demo", "count 2", again);
  assert.equal(one.id, two.id);
  const other = client.run("demo", "count 3", again);
  await assert.rejects(other, { status: 409, code: "idempotency_key_reused" });
});

test("a session is followed over several runs and goes on by its cursor", async () => {
  const sessionId = own("s");
  const first = await client.run("demo", "count 3", { sessionId });
  const second = await client.run("demo", "count 3", { sessionId });
  const found = [];
  for await (const event of client.tailSession(sessionId)) {
    found.push(event);
    if (event.type === "run_done" && event.run_id === second.id) break;
  }
  for (const { id } of [first, second]) {
    const mine = found.filter(({ run_id }) => run_id === id).map(({ seq }) => seq);
    assert.deepEqual(mine, mine.map((_, n) => n + 1));
  }
  const { cursor } = found[4];
  const rest = [];
  for await (const event of client.tailSession(sessionId, { cursor })) {
    rest.push(event.event_id);
    if (event.event_id === found.at(-1).event_id) break;
  }
  assert.deepEqual(new Set(rest), new Set(found.slice(5).map(({ event_id }) => event_id)));
});

test("an agent of ours is registered, asked, hung up on, and drained", async () => {
  let hungUp;
  const cancelled = new Promise((resolve) => (hungUp = resolve));
  const answer = async function* ({ text, signal, attempt }) {
    if (text === "brief") return "In one word.";
    if (text === "wait") {
      signal.addEventListener("abort", hungUp);
      yield "waiting";
      await cancelled;
      return;
    }
    yield { state: "thinking", detail: { attempt } };
    yield `You said ${text}`;
    return { usage: { tokens: 3 } };
  };
  const agentId = own("js");
  const served = await serve(answer, { port: 0, agentId, capabilities: ["echo"], signals: false });
  const listed = (await client.agents()).find((one) => one.agent_id === agentId);
  assert.deepEqual([listed.status, listed.capabilities], ["healthy", ["echo"]]);
  const run = await client.run(agentId, "Hi 🌍");
  const { text, usage } = await run.result();
  assert.deepEqual([text, usage.tokens], ["You said Hi 🌍", 3]);
  assert.deepEqual(run.view.states[0].detail, { attempt: 1 });
  const brief = await client.run(agentId, "brief");
  assert.deepEqual(await all(brief.text), ["In one word."]);
  assert.equal(brief.view.text, "In one word.");
  const long = await client.run(agentId, "wait");
  for await (const { type } of long) if (type === "agent_stream_delta") break;
  await long.cancel();
  await cancelled;
  await served.close();
  const drained = (await client.agents()).find((one) => one.agent_id === agentId);
  assert.equal(drained.status, "draining");
});
