/** The parser makes the same of a stream however its bytes are split. */

import assert from "node:assert/strict";
import { test } from "node:test";

import { SSEParser } from "../client.mjs";

const message = (data, id = "", event = "message") => ({ event, data, id });
const CASES = {
  "one event": ["data: a\n\n", [message("a")]],
  "named, with an id": ["event: e\nid: 7\ndata: a\n\n", [message("a", "7", "e")]],
  "CR": ["data: a\rdata: b\r\rdata: c\r\r", [message("a\nb"), message("c")]],
  "CRLF": ["data: a\r\ndata: b\r\n\r\ndata: c\r\n\r\n", [message("a\nb"), message("c")]],
  "line ends mixed": ["data: a\r\ndata: b\rdata: c\n\r\n", [message("a\nb\nc")]],
  "a LF after CRLF is an empty line": ["data: a\r\n\n", [message("a")]],
  "several lines of data": ["data: a\ndata:\ndata: b\n\n", [message("a\n\nb")]],
  "empty data is an event when it has a line break": ["data\ndata\n\n", [message("\n")]],
  "no data is no event": ["event: e\nid: 3\n\ndata: a\n\n", [message("a", "3")]],
  "a single empty data line": ["data:\n\n", [message("")]],
  "comments": [": hello\n\ndata: a\n:\n:x\ndata: b\n\n", [message("a\nb")]],
  "one space goes, the second stays": ["data:  a\ndata:\tb\n\n", [message(" a\n\tb")]],
  "a value may hold colons": ["data: a: b:c\n\n", [message("a: b:c")]],
  "an id stays until there is another": ["id: 1\ndata: a\n\ndata: b\n\nid\ndata: c\n\n",
    [message("a", "1"), message("b", "1"), message("c")]],
  "an id with NUL is none": ["id: 1\ndata: a\n\nid: 2\0\ndata: b\n\n",
    [message("a", "1"), message("b", "1")]],
  "a BOM goes once": ["\uFEFFdata: a\n\n\uFEFFdata: b\n\ndata: c\n\n", [message("a"), message("c")]],
  "two BOMs": ["\uFEFF\uFEFFdata: a\n\ndata: b\n\n", [message("b")]],
  "several bytes a character": ["data: 🌍 € é\n\n", [message("🌍 € é")]],
  "other line breaks of Unicode are none": ["data: a\u2028b\u0085c\n\n", [message("a\u2028b\u0085c")]],
  "unknown fields": ["foo: 1\nDATA: x\n data: y\ndata: a\n\n", [message("a")]],
  "an unfinished event is not told": ["data: a\n\ndata: b\n", [message("a")]],
};

function parsed(pieces) {
  const parser = new SSEParser();
  return { events: pieces.flatMap((piece) => parser.feed(piece)), parser };
}

for (const [name, [text, wanted]] of Object.entries(CASES)) {
  test(name, () => {
    const bytes = new TextEncoder().encode(text);
    assert.deepEqual(parsed([bytes]).events, wanted);
    for (let at = 0; at <= bytes.length; at++) {
      const { events } = parsed([bytes.subarray(0, at), bytes.subarray(at)]);
      assert.deepEqual(events, wanted, `split at ${at}`);
    }
    assert.deepEqual(parsed(Array.from(bytes, (byte) => Uint8Array.of(byte))).events, wanted);
  });
}

test("bytes that are no UTF-8 become U+FFFD", () => {
  const bytes = Uint8Array.of(...new TextEncoder().encode("data: a"), 0xff, 10, 10);
  assert.deepEqual(parsed([bytes]).events, [message("a\uFFFD")]);
});

test("retry takes digits only", () => {
  const retry = (text) => parsed([new TextEncoder().encode(text)]).parser.retry;
  assert.equal(retry("retry: 1500\nretry: 2s\nretry:\nretry: -1\n"), 1500);
  assert.equal(retry("retry: 0x10\n"), null);
});

test("the last id counts from the blank line on", () => {
  const parser = new SSEParser();
  parser.feed(new TextEncoder().encode("id: 1\ndata: a\n\nid: 2\n"));
  assert.equal(parser.lastEventId, "1");
  parser.feed(new TextEncoder().encode("\n"));
  assert.equal(parser.lastEventId, "2");
});
