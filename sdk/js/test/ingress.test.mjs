/** A device of a session: greets, goes on where it was, and runs tools; against a small ingress. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { connect, IngressConnection } from "../ingress.mjs";
import { ingress } from "./small_ingress.mjs";

const ack = { type: "hello_ack", session_id: "s", cursor: "c1" };
const delta = (seq, text, run_id = "run_1") => ({ type: "delta", run_id, seq, text });
const without = ({ ts: _, ...message }) => message;

async function taken(connection, count) {
  const found = [];
  for await (const message of connection) if (found.push(message) === count) break;
  return found;
}

test("it says hello, learns its session, and asks an agent", async (t) => {
  let heard;
  const asked = new Promise((resolve) => (heard = resolve));
  const url = await ingress(async (socket, hello) => {
    socket.send(ack);
    const invoke = await socket.next();
    socket.send(delta(4, "Hi"));
    socket.send({ type: "done", run_id: "run_1", seq: 6, usage: {} });
    heard([hello, invoke]);
  }, t);
  const connection = await connect(url, { token: "t", userId: "u", clientMeta: { a: 1 } });
  assert.deepEqual([connection.sessionId, connection.cursor], ["s", "c1"]);
  connection.invoke("a", "Hello", { requestId: "r" });
  const [hello, invoke] = (await asked).map(without);
  assert.deepEqual(hello, { type: "hello", user_id: "u", token: "t", client_meta: { a: 1 } });
  assert.deepEqual(invoke, {
    type: "agent_invoke", session_id: "s", request_id: "r", agent_id: "a",
    message: { role: "user", content: "Hello" },
  });
  assert.deepEqual((await taken(connection, 2)).map(({ type }) => type), ["delta", "done"]);
  connection.close();
});

test("after a break it says how far it has come, and passes on nothing twice", async (t) => {
  let heard;
  const again = new Promise((resolve) => (heard = resolve));
  const url = await ingress(async (socket, hello, count) => {
    socket.send(ack);
    socket.send(delta(1, "a"));
    socket.send({ ...delta(2, "b"), cursor: "c2" });
    if (count === 1) return void setTimeout(() => socket.cut(), 50);
    socket.send(delta(3, "c"));
    heard([hello, await socket.next()]);
  }, t);
  const connection = await connect(url, { apiKey: "k", sessionId: "s", cursor: "c0" });
  assert.deepEqual((await taken(connection, 2)).map(({ text }) => text), ["a", "b"]);
  const third = await taken(connection, 1);
  assert.equal(third[0].text, "c");
  connection.cancel("run_1");
  const [hello, cancel] = (await again).map(without);
  assert.deepEqual(hello, {
    type: "hello", session_id: "s", api_key: "k", cursor: "c2", last_seq: { run_1: 2 },
  });
  assert.deepEqual(cancel, { type: "cancel_run", session_id: "s", run_id: "run_1" });
  connection.close();
});

test("log_reset is passed on, and what comes again is no double", async (t) => {
  let heard;
  const again = new Promise((resolve) => (heard = resolve));
  const reset = { type: "log_reset", run_id: "run_1", after_seq: 1, cursor: "c2" };
  const url = await ingress((socket, hello, count) => {
    socket.send(ack);
    if (count === 2) return heard(hello);
    for (const message of [delta(1, "a"), delta(2, "b"), reset, delta(2, "new")]) socket.send(message);
    setTimeout(() => socket.cut(), 50);
  }, t);
  const connection = await connect(url, {});
  const [, , told, fresh] = await taken(connection, 4);
  assert.deepEqual([told, fresh.text], [reset, "new"]);
  const { cursor, last_seq } = await again;
  assert.deepEqual([cursor, last_seq], ["c2", { run_1: 2 }]);
  connection.close();
});

test("what is said before the session is there is kept", async (t) => {
  const url = await ingress(async (socket) => {
    socket.send(ack);
    const decision = await socket.next();
    socket.send({ type: "state", run_id: "run_1", seq: 1, heard: decision });
  }, t);
  const connection = new IngressConnection(url, { token: "t" });
  connection.decide({ run_id: "run_1", approval_id: "ap_1" }, "reject", "no");
  const [{ heard }] = await taken(connection, 1);
  assert.deepEqual(without(heard), {
    type: "approval_decision", session_id: "s", run_id: "run_1", approval_id: "ap_1",
    decision: "reject", reason: "no",
  });
  connection.close();
});

test("its tools are registered and run when they are asked for", async (t) => {
  let heard;
  const results = new Promise((resolve) => (heard = resolve));
  const url = await ingress(async (socket) => {
    socket.send(ack);
    const registered = await socket.next();
    const ask = (seq, tool_name, args) => socket.send({
      type: "tool_request", run_id: "run_1", seq, tool_call_id: `tc_${seq}`, tool_name, args,
    });
    ask(1, "double", { n: 4 });
    const doubled = await socket.next();
    ask(1, "double", { n: 4 }); // pushed at least once
    ask(2, "fail", {});
    heard([registered, doubled, await socket.next()]);
  }, t);
  const tools = {
    double: { description: "Doubles", schema: { type: "object" }, run: ({ n }) => 2 * n },
    fail: { run: () => Promise.reject(new Error("no hands")) },
  };
  const connection = await connect(url, { token: "t", tools });
  const [registered, doubled, failed] = (await results).map(without);
  assert.deepEqual(registered.tools, [
    { name: "double", description: "Doubles", schema: { type: "object" } }, { name: "fail" },
  ]);
  const told = { type: "tool_result", session_id: "s", run_id: "run_1" };
  assert.deepEqual(doubled, { ...told, tool_call_id: "tc_1", ok: true, result: 8 });
  assert.deepEqual(failed, {
    ...told, tool_call_id: "tc_2", ok: false, error: { code: "tool_error", message: "no hands" },
  });
  connection.close();
});

test("who may not come in learns why, and nothing is tried again", async (t) => {
  let count = 0;
  const url = await ingress((socket) => {
    count += 1;
    socket.send({ type: "error", code: "unauthorized", message: "who are you?" });
  }, t);
  const connection = new IngressConnection(url, { token: "wrong" });
  await assert.rejects(connection.ready, { code: "unauthorized", message: "who are you?" });
  await assert.rejects(taken(connection, 1), /who are you/);
  assert.equal(count, 1);
});

test("what a message may not do is told, and the connection stays until it may not", async (t) => {
  const refused = { type: "error", code: "unauthorized", message: "the token may only read" };
  let count = 0;
  const url = await ingress(async (socket) => {
    count += 1;
    socket.send(ack);
    const { request_id } = await socket.next();
    socket.send({ ...refused, request_id });
    socket.send(delta(1, "a"));
    await socket.next();
    socket.send({ ...refused, message: "the token has expired" });
    socket.close(1008, "unauthorized");
  }, t);
  const connection = await connect(url, { token: "t" });
  connection.invoke("a", "Hello");
  const told = await taken(connection, 2);
  assert.deepEqual(told.map(({ type }) => type), ["error", "delta"]);
  connection.cancel("run_1");
  await assert.rejects(taken(connection, 9), { code: "unauthorized", message: "the token has expired" });
  assert.equal(count, 1);
});

test("a hello that cannot be done ends it; one that may succeed later does not", async (t) => {
  const url = await ingress((socket) => {
    socket.send({ type: "error", code: "orchestrator_fail", message: "away", retryable: true });
    socket.send({ type: "error", code: "invalid_request", message: "no such cursor" });
  }, t);
  const connection = new IngressConnection(url, { sessionId: "s", cursor: "old" });
  await assert.rejects(connection.ready, { code: "invalid_request", message: "no such cursor" });
  assert.equal((await connection[Symbol.asyncIterator]().next()).value.code, "orchestrator_fail");
});

test("an invocation that broke off is asked again, with the same id, until it is answered", async (t) => {
  const asked = [];
  let heard;
  const third = new Promise((resolve) => (heard = resolve));
  const url = await ingress(async (socket, _, count) => {
    socket.send(ack);
    if (count === 3) socket.send(delta(2, "a"));
    asked.push(await socket.next());
    if (count === 1) return socket.cut();
    const { request_id } = asked.at(-1);
    socket.send({ type: "run_started", run_id: "run_1", seq: 1, request_id });
    if (count === 2) return void setTimeout(() => socket.cut(), 50);
    heard();
  }, t);
  const connection = await connect(url, { token: "t" });
  connection.invoke("a", "Hello");
  assert.equal((await taken(connection, 2))[0].request_id, asked[0].request_id);
  connection.cancel("run_1");
  await third;
  assert.deepEqual(asked.map(({ type }) => type), ["agent_invoke", "agent_invoke", "cancel_run"]);
  assert.equal(asked[0].request_id, asked[1].request_id);
  connection.close();
});

test("closing ends the iteration", async (t) => {
  const url = await ingress((socket) => socket.send(ack), t);
  const connection = await connect(url, { token: "t" });
  const rest = taken(connection, 1);
  connection.close();
  assert.deepEqual(await rest, []);
});
