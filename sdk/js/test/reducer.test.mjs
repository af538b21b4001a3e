/** The reducer keeps to the vectors that all SDKs share, however a log is split. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { emptyView, reduce } from "../client.mjs";

const VECTORS = new URL("../../vectors/reducer.json", import.meta.url);
const { cases } = JSON.parse(readFileSync(VECTORS, "utf8"));
const fold = (events, view = emptyView()) => events.reduce((now, event) => reduce(now, event), view);
const kept = (view) => JSON.parse(JSON.stringify(view));

/** Freeze a value and all in it: whoever changes it now throws. */
function frozen(value) {
  if (value && typeof value === "object") Object.values(Object.freeze(value)).forEach(frozen);
  return value;
}

assert.ok(cases.length >= 25);

for (const { name, events, view } of cases) {
  test(name, () => {
    const whole = fold(events);
    assert.deepEqual(whole, { ...emptyView(), ...view });
    for (let at = 0; at <= events.length; at++) {
      const before = frozen(kept(fold(events.slice(0, at))));
      assert.deepEqual(fold(frozen(events.slice(at)), before), whole, `split at ${at}`);
    }
  });
}

test("what was seen before comes again without a change", () => {
  for (const { events } of cases.filter((one) => one.events.every(({ seq }) => seq))) {
    const whole = fold(events);
    assert.deepEqual(fold(events, whole), whole);
  }
});

test("a log_reset is the view as it was then", () => {
  let tried = 0;
  for (const { events } of cases.filter((one) => one.events.every(({ seq }, n) => seq === n + 1))) {
    for (let end = 1; end <= events.length; end++) {
      const view = fold(events.slice(0, end));
      for (let after = view.durable_seq; after < end; after++) {
        const { run_id } = view;
        const reset = reduce(view, { type: "log_reset", run_id, payload: { after_seq: after } });
        assert.deepEqual(reset, fold(events.slice(0, after)), `${after} of ${end}`);
        assert.deepEqual(fold(events.slice(after, end), reset), view);
        tried += 1;
      }
    }
  }
  assert.ok(tried > 200, `${tried}`);
});
