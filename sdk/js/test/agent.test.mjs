/** What an agent's function does becomes the frames of the agent protocol. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { agent, serve } from "../agent.mjs";
import { SSEParser } from "../client.mjs";
import { json, serving } from "./small_server.mjs";

const BODY = {
  agent_id: "a", session_id: "s", run_id: "run_1", input_message: { role: "user", content: "Hi" },
};

function asked(body = BODY, headers = {}, path = "/invoke") {
  const said = typeof body === "string" ? body : JSON.stringify(body);
  return new Request(`http://agent${path}`, { method: "POST", body: said, headers });
}

async function frames(answer, request = asked()) {
  const response = await agent(answer)(request);
  assert.equal(response.status, 200);
  assert.equal(response.headers.get("content-type"), "text/event-stream");
  const bytes = new Uint8Array(await response.arrayBuffer());
  return new SSEParser().feed(bytes).map(({ event, data }) => [event, JSON.parse(data)]);
}

test("strings, states and own events are sent in order, then the end", async () => {
  const found = await frames(async function* () {
    yield { state: "thinking", detail: 1 };
    yield "Hel";
    yield "lo";
    yield { event: "weather", data: { degrees: 21.5 } };
    yield { event: "bare" };
  });
  assert.deepEqual(found, [
    ["state", { state: "thinking", detail: 1 }], ["delta", { text: "Hel" }], ["delta", { text: "lo" }],
    ["weather", { degrees: 21.5 }], ["bare", null], ["done", {}],
  ]);
});

test("what is returned is the final message", async () => {
  const done = (final) => [["done", final]];
  assert.deepEqual(await frames(() => "Hello"), done({ final_message: "Hello" }));
  assert.deepEqual(await frames(async () => "Hello"), done({ final_message: "Hello" }));
  const whole = { final_message: "Hello", usage: { tokens: 1 } };
  assert.deepEqual(await frames(() => whole), done(whole));
  assert.deepEqual(await frames(() => undefined), done({}));
  const found = await frames(function* () {
    yield "a";
    return { usage: { tokens: 1 } };
  });
  assert.deepEqual(found, [["delta", { text: "a" }], ["done", { usage: { tokens: 1 } }]]);
});

test("what is thrown fails the run with its code", async () => {
  const thrown = Object.assign(new Error("no model"), { code: "no_model" });
  const found = await frames(async function* () {
    yield "I am";
    throw thrown;
  });
  const error = { code: "no_model", message: "no model" };
  assert.deepEqual(found, [["delta", { text: "I am" }], ["error", error]]);
});

test("what has no code of its own is told to the log of the agent alone", async (t) => {
  const told = [];
  const { error } = console;
  console.error = (problem) => told.push(problem);
  t.after(() => (console.error = error));
  const said = (name) => `the agent failed with ${name}; its own log says more`;
  for (const [name, answer] of [
    ["Error", () => Promise.reject(new Error("hunter2"))],
    ["string", () => Promise.reject("hunter2")],
    ["undefined", () => Promise.reject()],
    ["TypeError", function* () { yield 7; }],
    ["TypeError", function* () { yield { event: "big", data: 7n }; }],
  ]) {
    const plain = { code: "agent_error", message: said(name) };
    assert.deepEqual(await frames(answer), [["error", plain]]);
  }
  assert.deepEqual(told.slice(0, 3).map((one) => one?.message ?? one), ["hunter2", "hunter2", undefined]);
  assert.match(told[3].message, /^yield a string, {state}, {event, data} or {wait_for}$/);
});

test("content that is a list of parts is a final message, too", async () => {
  const parts = [{ type: "text", text: "Hello" }];
  assert.deepEqual(await frames(() => parts), [["done", { final_message: parts }]]);
  const found = await frames(function* () {
    yield "Hel";
    return parts;
  });
  assert.deepEqual(found, [["delta", { text: "Hel" }], ["done", { final_message: parts }]]);
});

test("what is too long for one frame is said in pieces, none of which splits a character", async () => {
  const long = `x${"🌍".repeat(300_000)}`;
  for (const answer of [() => long, () => ({ final_message: long, usage: {} }), function* () { yield long; },
    function* () { yield long; return long; }]) {
    const found = await frames(answer);
    const words = found.filter(([event]) => event === "delta").map(([, { text }]) => text);
    assert.equal(words.join(""), long);
    assert.ok(words.every((text) => text.isWellFormed?.() ?? true));
    assert.ok(Math.max(...found.map((frame) => Buffer.byteLength(JSON.stringify(frame)))) < 1 << 20);
    assert.deepEqual(Object.keys(found.at(-1)[1]), "final_message" in Object(answer()) ? ["usage"] : []);
  }
});

test("an agent lives on when what cleans up after it throws", async (t) => {
  const told = [];
  const { error } = console;
  console.error = (problem) => told.push(problem.message);
  t.after(() => (console.error = error));
  const { url, close } = await serve(async function* ({ text }) {
    try {
      if (text === "Hi") yield { wait_for: ["tc_1"] };
      for (;;) yield "x".repeat(65_536);
    } finally {
      throw new Error(`not cleaned up: ${text}`);
    }
  }, { port: 0, signals: false, orchestratorUrl: "" });
  t.after(close);
  const ask = (content) => fetch(`${url}/invoke`, {
    method: "POST", body: JSON.stringify({ ...BODY, input_message: { role: "user", content } }),
  });
  assert.match(await (await ask("Hi")).text(), /^event: pause\n.*\n\n$/s);
  const response = await ask("flood"); // more than anybody reads, so that the agent has to wait
  await response.body.getReader().cancel();
  while (told.length < 2) await new Promise(setImmediate);
  assert.deepEqual(told, ["not cleaned up: Hi", "not cleaned up: flood"]);
  assert.equal((await fetch(`${url}/health`)).status, 200);
});

test("a pause ends the stream", async () => {
  let cleaned = false;
  const found = await frames(async function* () {
    try {
      yield { wait_for: ["tc_1"], state: { at: 2 } };
      yield "never";
    } finally {
      cleaned = true;
    }
  });
  assert.deepEqual(found, [["pause", { wait_for: ["tc_1"], state: { at: 2 } }]]);
  assert.ok(cleaned);
});

test("the function is told all that the request says", async () => {
  let told;
  const body = {
    ...BODY, input_message: { role: "user", content: [{ type: "text", text: "Hi" }] },
    messages: [{ role: "user", content: "before" }], context: { user_id: "u" },
    resume: { state: 1, results: [] },
  };
  const headers = { "x-attempt": "2", "x-platform-base-url": "http://here", "x-run-token": "rt" };
  await frames((invocation) => void (told = invocation), asked(body, headers));
  const { platform, signal, ...rest } = told;
  assert.deepEqual(rest, {
    text: "Hi", input: body.input_message, messages: body.messages, context: body.context,
    resume: body.resume, agentId: "a", sessionId: "s", runId: "run_1", attempt: 2,
  });
  assert.equal(platform.url, "http://here");
  assert.equal(signal.aborted, false);
});

test("hanging up aborts the signal and ends the generator", async () => {
  let told;
  let ended;
  const over = new Promise((resolve) => (ended = resolve));
  const response = await agent(async function* (invocation) {
    told = invocation.signal;
    try {
      for (;;) yield "tick";
    } finally {
      ended();
    }
  })(asked());
  const reader = response.body.getReader();
  await reader.read();
  await reader.cancel();
  await over;
  assert.ok(told.aborted);
});

test("a request's own signal is a hang-up until the answer is over", async () => {
  for (const early of [true, false]) {
    const caller = new AbortController();
    let told;
    const response = await agent(async function* ({ signal }) {
      told = signal;
      yield "Hello";
      while (early && !signal.aborted) await new Promise(setImmediate);
    })(new Request(asked(), { signal: caller.signal }));
    const reader = response.body.getReader();
    await reader.read();
    if (early) caller.abort();
    else while (!(await reader.read()).done);
    caller.abort();
    assert.equal(told.aborted, early);
    await reader.cancel().catch(() => undefined);
  }
});

test("other requests are refused", async () => {
  const handler = agent(() => "Hello", { version: "3", capabilities: ["x"] });
  const health = await handler(new Request("http://agent/some/where/health"));
  assert.deepEqual(await health.json(), { status: "healthy", version: "3", capabilities: ["x"] });
  assert.equal((await handler(asked(BODY, {}, "/deep/invoke"))).status, 200);
  assert.equal((await handler(asked("{"))).status, 400);
  assert.equal((await handler(asked({}))).status, 400);
  assert.equal((await handler(new Request("http://agent/invoke"))).status, 404);
  assert.equal((await handler(asked(BODY, {}, "/else"))).status, 404);
});

test("serve registers, says that it lives, and drains", async (t) => {
  const server = await serving((_, res) => json(res, 200, { ok: true }), t);
  const { url, close } = await serve(() => "Hello", {
    port: 0, agentId: "js", orchestratorUrl: server.url, key: "ok_1", version: "2", signals: false,
    registration: { timeouts: { idle_ms: 5000 } },
  });
  const answer = await fetch(`${url}/invoke`, { method: "POST", body: JSON.stringify(BODY) });
  assert.match(await answer.text(), /^event: done/);
  await close();
  await assert.rejects(fetch(`${url}/health`));
  const [registered, alive, drained] = server.requests;
  assert.equal(registered.path, "/v1/agents/register");
  assert.equal(registered.headers.authorization, "Bearer ok_1");
  const { instance_id, ...card } = registered.body;
  assert.deepEqual(card, {
    agent_id: "js", name: "js", endpoint: url, version: "2", timeouts: { idle_ms: 5000 },
  });
  assert.deepEqual([alive.path, alive.body], ["/v1/agents/js/heartbeat", { instance_id }]);
  assert.deepEqual([drained.path, drained.body], ["/v1/agents/js/drain", { instance_id }]);
});

test("draining lets an answer under way come to its end", async (t) => {
  let goOn;
  const wait = new Promise((resolve) => (goOn = resolve));
  const server = await serving((_, res) => json(res, 200, { ok: true }), t);
  const answer = async function* () {
    yield "Hel";
    await wait;
    yield "lo";
  };
  const options = { port: 0, agentId: "js", orchestratorUrl: server.url, signals: false };
  const { url, close } = await serve(answer, options);
  const response = await fetch(`${url}/invoke`, { method: "POST", body: JSON.stringify(BODY) });
  const closed = close();
  goOn();
  assert.match(await response.text(), /Hel[^]*lo[^]*event: done/);
  await closed;
});

test("a registration that is refused is an error, and nothing goes on listening", async (t) => {
  const server = await serving((_, res) => json(res, 401, { error: "no", code: "unauthorized" }), t);
  const options = { port: 0, agentId: "js", orchestratorUrl: server.url, signals: false };
  await assert.rejects(serve(() => "Hello", options), { code: "unauthorized" });
  await assert.rejects(serve(() => "Hello", { port: 0, orchestratorUrl: server.url }), /agentId/);
});
