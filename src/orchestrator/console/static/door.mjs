/** Who looks: asks for a key when the server does, and keeps it in this tab alone. */

import { ApiError, Client } from "../sdk/client.mjs";
import { at, notice } from "./dom.mjs";

const KEPT = "orchestrator.key";
/** The server's address, whatever stands in front: this module is at `<server>/console/`. */
const SERVER = new URL("..", import.meta.url).href;
const PATIENCE_MS = 4_000;

/** The API as whoever has come in sees it. */
export class Door {
  constructor() {
    this.#enter();
    at("forget").addEventListener("click", () => {
      sessionStorage.removeItem(KEPT);
      location.reload();
    });
  }

  /** Return what `act(client)` resolves to, asking for a key as often as the server does. */
  async pass(act) {
    for (;;) {
      try {
        return await act(this.client);
      } catch (problem) {
        if (!(problem instanceof ApiError) || problem.status !== 401) throw problem;
        sessionStorage.removeItem(KEPT);
        await this.#asked(problem.message);
      }
    }
  }

  #enter() {
    const key = sessionStorage.getItem(KEPT) ?? undefined;
    this.client = new Client({ url: SERVER, key, patienceMs: PATIENCE_MS });
    this.stream = new Client({ url: SERVER, key, patienceMs: Infinity }); // it knows where to go on
    at("forget").hidden = !key;
  }

  /** Resolve once somebody has typed a key. */
  #asked(why) {
    const form = at("door");
    at("door-why").textContent = why;
    at("forget").hidden = true;
    notice();
    form.hidden = false;
    at("door-key").focus();
    return new Promise((resolve) => {
      form.addEventListener("submit", (event) => {
        event.preventDefault();
        sessionStorage.setItem(KEPT, at("door-key").value.trim());
        at("door-key").value = "";
        form.hidden = true;
        this.#enter();
        resolve();
      }, { once: true });
    });
  }
}

/** Return a sentence about a problem: what, and what to do about it. */
export function told(problem) {
  if (problem instanceof ApiError) {
    const after = problem.status === 403 ? " Another key may be allowed to: forget this one." : "";
    return `${problem.message}.${after}`;
  }
  return String(problem.message ?? problem);
}
