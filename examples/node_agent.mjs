/**
 * An agent in JavaScript that takes its time: it counts, shows what it is at, and can be cancelled.
 *
 * Beside a running `./orchestrator`, in two terminals:
 *
 *     $ ORCHESTRATOR_URL=http://localhost:8080 node examples/node_agent.mjs
 *     $ ./orchestrator invoke countdown "from 5, please"
 *     5 4 3 2 1 lift-off
 *
 * Ask it to count from 1000, and end that with `./orchestrator runs cancel RUN`: the agent stops at
 * once and says so in its terminal.
 */

import { setTimeout as pause } from "node:timers/promises";
import { serve } from "../sdk/js/agent.mjs"; // in a project of yours: "@orchestrator/sdk/agent"

async function* countdown({ text, signal }) {
  const from = Number(/\d+/.exec(text)?.[0] ?? 3);
  signal.addEventListener("abort", () => console.log(`not counting on from ${from}: cancelled`));
  yield { state: "counting", detail: `from ${from}` };
  for (let number = from; number > 0; number--) {
    yield `${number} `;
    await pause(100, undefined, { signal }); // throws when the signal comes
  }
  yield "lift-off";
  return { usage: { numbers: from } };
}

const { url } = await serve(countdown, { agentId: "countdown", port: 8007 });
console.log(`countdown answers at ${url}`);
