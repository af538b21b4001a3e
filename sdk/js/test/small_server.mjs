/** A small real server for tests: answers what it is told to, and remembers what it was asked. */

import { createServer } from "node:http";

/** Serve with `answer(asked, response)`; `asked` is `{method, path, query, headers, body}`. */
export async function serving(answer, test) {
  const requests = [];
  const server = createServer(async (req, res) => {
    const parts = [];
    for await (const part of req) parts.push(part);
    const text = Buffer.concat(parts).toString();
    const { pathname: path, searchParams } = new URL(req.url, "http://here");
    const body = text ? JSON.parse(text) : undefined;
    const asked = {
      method: req.method, path, query: Object.fromEntries(searchParams), headers: req.headers, body,
    };
    requests.push(asked);
    await answer(asked, res);
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  const close = () => {
    server.closeAllConnections();
    return new Promise((resolve) => server.close(resolve));
  };
  test.after(close);
  return { url: `http://127.0.0.1:${server.address().port}`, requests, server, close };
}

/** Answer with JSON. */
export function json(res, status, body, headers = {}) {
  res.writeHead(status, { "content-type": "application/json", ...headers });
  res.end(JSON.stringify(body));
}

/** Begin an answer of server-sent events. */
export function sse(res) {
  res.writeHead(200, { "content-type": "text/event-stream" });
  res.flushHeaders();
}

/** Return an event of a run as the server stores it. */
export function event(seq, type, payload = {}, run_id = "run_1") {
  return { event_id: `evt_${seq}`, run_id, seq, ts: 1000 + seq, type, payload };
}

/** Return the frame of an event. */
export function framed(item, id = item.seq) {
  return `id: ${id}\nevent: ${item.type}\ndata: ${JSON.stringify(item)}\n\n`;
}

/** Write, and wait until it is on its way. */
export function write(res, text) {
  return new Promise((resolve) => res.write(text, resolve));
}

/** Return all that an iterator brings. */
export async function all(iterable) {
  const found = [];
  for await (const item of iterable) found.push(item);
  return found;
}
