/** Streams go on after whatever may happen to them: against a server that makes it happen. */

import assert from "node:assert/strict";
import { getEventListeners } from "node:events";
import { test } from "node:test";

import { ApiError, Client, ConnectionLost, emptyView, reduce } from "../client.mjs";
import { all, event, framed, json, serving, sse, write } from "./small_server.mjs";

const LOG = [
  event(1, "run_started", { session_id: "s", agent_id: "a" }),
  event(2, "agent_stream_delta", { text: "Hel" }),
  event(3, "agent_stream_delta", { text: "lo" }),
  event(4, "run_done", { final_message: "Hello" }),
];
const seqs = (events) => events.map(({ seq }) => seq);

/** Serve one behaviour per connection, the last one for all further ones. */
async function behaving(test, ...behaviours) {
  let count = 0;
  return serving((asked, res) => behaviours[Math.min(count++, behaviours.length - 1)](res, asked), test);
}

const cutAfter = (...events) => async (res) => {
  sse(res);
  await write(res, events.map((item) => framed(item)).join(""));
  res.destroy();
};
const endAfter = (...events) => (res) => {
  sse(res);
  res.end(events.map((item) => framed(item)).join(""));
};

test("a stream that is cut goes on behind the last event", async (t) => {
  const server = await behaving(t, cutAfter(LOG[0], LOG[1]), endAfter(LOG[2], LOG[3]));
  const events = await all(new Client({ url: server.url }).tail("run_1"));
  assert.deepEqual(seqs(events), [1, 2, 3, 4]);
  assert.equal(server.requests.length, 2);
  assert.equal(server.requests[0].path, "/v1/runs/run_1/events/stream");
  assert.equal(server.requests[0].headers["last-event-id"], undefined);
  assert.equal(server.requests[1].headers["last-event-id"], "2");
});

test("it goes on in the middle of a frame, and says nothing twice", async (t) => {
  const half = framed(LOG[1]).slice(0, 20);
  const cut = async (res) => {
    sse(res);
    await write(res, framed(LOG[0]) + half);
    res.destroy();
  };
  const server = await behaving(t, cut, endAfter(...LOG));
  assert.deepEqual(await all(new Client({ url: server.url }).tail("run_1")), LOG);
});

test("afterSeq goes into the first address", async (t) => {
  const server = await behaving(t, endAfter(LOG[3]));
  const tail = new Client({ url: server.url }).tail("run_1", { afterSeq: 3 });
  assert.deepEqual(await all(tail), [LOG[3]]);
  assert.deepEqual(server.requests[0].query, { after_seq: "3" });
});

test("204 is the end", async (t) => {
  const server = await behaving(t, endAfter(LOG[0]), (res) => res.writeHead(204).end());
  assert.deepEqual(await all(new Client({ url: server.url }).tail("run_1")), [LOG[0]]);
});

test("log_reset takes back what comes again, and the marked id goes back to the server", async (t) => {
  const again = { ...LOG[2], ts: 9 };
  const reset = (res) => {
    sse(res);
    res.write('event: log_reset\ndata: {"after_seq":2}\n\n');
    res.end(framed(again, "3.1") + framed(LOG[3], "4.1"));
  };
  const server = await behaving(t, cutAfter(LOG[0], LOG[1], LOG[2]), reset);
  const events = await all(new Client({ url: server.url }).tail("run_1"));
  const told = { type: "log_reset", run_id: "run_1", payload: { after_seq: 2 } };
  assert.deepEqual(events, [...LOG.slice(0, 3), told, again, LOG[3]]);
  assert.equal(server.requests[1].headers["last-event-id"], "3");
});

test("an id with a generation is handed back as it is", async (t) => {
  const cut = async (res) => {
    sse(res);
    await write(res, framed(LOG[0], "1.2"));
    res.destroy();
  };
  const server = await behaving(t, cut, endAfter(...LOG));
  await all(new Client({ url: server.url }).tail("run_1"));
  assert.equal(server.requests[1].headers["last-event-id"], "1.2");
});

test("Retry-After is waited for", async (t) => {
  const times = [];
  const busy = (res) => {
    times.push(Date.now());
    json(res, 503, { error: "not now", code: "draining", retryable: true }, { "retry-after": "1" });
  };
  const server = await behaving(t, busy, (res) => {
    times.push(Date.now());
    endAfter(...LOG)(res);
  });
  assert.equal((await all(new Client({ url: server.url }).tail("run_1"))).length, 4);
  assert.ok(times[1] - times[0] >= 990, `${times[1] - times[0]} ms`);
});

test("what is wrong for good is not asked again", async (t) => {
  const server = await behaving(t, (res) => json(res, 404, { error: "no", code: "run_not_found" }));
  await assert.rejects(all(new Client({ url: server.url }).tail("run_1")), (problem) => {
    assert.ok(problem instanceof ApiError);
    assert.deepEqual([problem.status, problem.code, problem.message], [404, "run_not_found", "no"]);
    return true;
  });
  assert.equal(server.requests.length, 1);
});

test("a proxy's bad gateway passes", async (t) => {
  const server = await behaving(t, (res) => res.writeHead(502).end("<html>"), endAfter(...LOG));
  assert.equal((await all(new Client({ url: server.url }).tail("run_1"))).length, 4);
});

test("a server that is away is given up after patienceMs", async (t) => {
  const server = await behaving(t, endAfter());
  await server.close();
  const client = new Client({ url: server.url, patienceMs: 300 });
  await assert.rejects(all(client.tail("run_1")), ConnectionLost);
  await assert.rejects(client.agents(), (problem) => {
    assert.ok(problem instanceof ConnectionLost && problem.cause instanceof Error);
    return true;
  });
});

test("another page than ours is no stream, and said at once", async (t) => {
  const page = (res) => res.writeHead(200, { "content-type": "text/html" }).end("<html>");
  const client = new Client({ url: (await behaving(t, page)).url });
  await assert.rejects(all(client.tail("run_1")), /sent no event stream; is it an orchestrator/);
  await assert.rejects(client.agents(), SyntaxError);
});

test("a signal that outlives many connections is left as it was", async (t) => {
  const server = await behaving(t, ...LOG.slice(0, 3).map((one) => cutAfter(one)), endAfter(LOG[3]));
  const { signal } = new AbortController();
  await all(new Client({ url: server.url }).tail("run_1", { signal }));
  assert.equal(server.requests.length, 4);
  assert.deepEqual(getEventListeners(signal, "abort"), []);
});

test("a view that was looked at does not change any more", async (t) => {
  const server = await behaving(t, endAfter(...LOG));
  const run = new Client({ url: server.url }).attach("run_1");
  const views = [];
  for await (const { seq } of run) if (seq !== 2) views.push([seq, run.view, JSON.stringify(run.view)]);
  assert.deepEqual(views.map(([seq, { pieces }]) => [seq, pieces.length]), [[1, 0], [3, 2], [4, 2]]);
  for (const [, view, before] of views) assert.equal(JSON.stringify(view), before);
  assert.deepEqual(run.view, LOG.reduce(reduce, emptyView()));
});

test("a signal ends the reading, also while nothing comes", async (t) => {
  const silent = async (res) => {
    sse(res);
    await write(res, framed(LOG[0]));
  };
  const server = await behaving(t, silent);
  const stop = new AbortController();
  const tail = new Client({ url: server.url }).tail("run_1", { signal: stop.signal });
  assert.equal((await tail.next()).value.seq, 1);
  const next = tail.next();
  stop.abort(new Error("enough"));
  await assert.rejects(next, /enough/);
});

test("who stops iterating hangs up", async (t) => {
  let hungUp;
  const gone = new Promise((resolve) => (hungUp = resolve));
  const server = await behaving(t, async (res) => {
    res.once("close", hungUp);
    sse(res);
    await write(res, framed(LOG[0]));
  });
  for await (const { seq } of new Client({ url: server.url }).tail("run_1")) {
    assert.equal(seq, 1);
    break;
  }
  await gone;
});

test("a session is followed by its cursors", async (t) => {
  const cut = async (res) => {
    sse(res);
    await write(res, framed(LOG[0], "cA") + framed(event(1, "run_started", {}, "run_2"), "cB"));
    res.destroy();
  };
  const server = await behaving(t, cut, endAfter(LOG[1]));
  const found = [];
  const client = new Client({ url: server.url });
  for await (const item of client.tailSession("s 1", { cursor: "c0" })) {
    found.push(item);
    if (found.length === 3) break;
  }
  assert.deepEqual(found.map(({ run_id, seq }) => [run_id, seq]), [["run_1", 1], ["run_2", 1], ["run_1", 2]]);
  assert.deepEqual(found.slice(0, 2).map(({ cursor }) => cursor), ["cA", "cB"]);
  assert.equal(server.requests[0].path, "/v1/sessions/s%201/events");
  assert.equal(server.requests[0].query.cursor, "c0");
  assert.equal(server.requests[1].headers["last-event-id"], "cB");
});

test("an answer that was lost is asked for again, for the same run", async (t) => {
  const lost = (res) => res.destroy();
  const server = await behaving(t, lost, (res) => json(res, 201, { run_id: "run_1", session_id: "s" }));
  const run = await new Client({ url: server.url, key: "k" }).run("a", "Hi", { labels: { x: "y" } });
  assert.equal(run.id, "run_1");
  const [first, second] = server.requests;
  assert.deepEqual(first.body, second.body);
  assert.match(first.body.request_id, /^req_[0-9a-f]{24}$/);
  assert.match(first.body.session_id, /^sess_[0-9a-f]{24}$/);
  assert.deepEqual(first.body.labels, { x: "y" });
});
