/** What an agent says: its attempts and their words, shown while they grow, lost ones struck out. */

import { el, keepingEnd } from "./dom.mjs";

const BLOCK = 2_000; // characters; from here on a block ends at the next new line
const BLOCK_MAX = 32_000; // and here at a space: one endless line would be laid out again each time

/** Return where in `text` a block that has `length` characters ends; -1 where it goes on. */
function ending(length, text) {
  if (length + text.length <= BLOCK) return -1;
  const line = text.indexOf("\n", Math.max(0, BLOCK - length - 1));
  if (line >= 0 && length + line < BLOCK_MAX) return line + 1;
  if (length + text.length <= BLOCK_MAX) return -1;
  const space = text.lastIndexOf(" ", BLOCK_MAX - length - 1);
  if (space >= 0) return space + 1;
  const end = Math.max(1, BLOCK_MAX - length);
  return /[\uD800-\uDBFF]/.test(text[end - 1]) ? end + 1 : end; // never through a character
}

/** The words of a run in an element; `flush` shows what has come since. */
export class Words {
  #box;
  #attempts = [];
  #final = null;
  #stale = false;

  constructor(box) {
    this.#box = box;
  }

  /** Return how many characters count: those of lost attempts do not. */
  get size() {
    return this.#sum((piece) => !piece.lost);
  }

  /** Return whether any words were lost. */
  get lost() {
    return this.#attempts.some(({ pieces }) => pieces.some((piece) => piece.lost));
  }

  /** An attempt begins. */
  begin(seq, number) {
    this.#attempts.push({ seq, number, why: "", pieces: [], shown: 0, section: null, block: null });
  }

  /** The agent says more. */
  say(seq, text) {
    if (!this.#attempts.length) this.begin(seq, 1);
    this.#attempts.at(-1).pieces.push({ seq, text, lost: false });
  }

  /** What came from `seq` on is void. */
  lose(seq, why) {
    for (const attempt of this.#attempts) {
      const gone = attempt.pieces.filter((piece) => piece.seq >= seq && !piece.lost);
      for (const piece of gone) piece.lost = true;
      if (gone.length || attempt.seq >= seq - 1) attempt.why ||= why;
    }
    this.#stale = true;
  }

  /** What came after `seq` never was. */
  forget(seq) {
    this.#attempts = this.#attempts.filter((attempt) => attempt.seq <= seq);
    for (const attempt of this.#attempts) {
      attempt.pieces = attempt.pieces.filter((piece) => piece.seq <= seq);
    }
    this.#stale = true;
  }

  /** The run's last word, shown where it is not what was said already. */
  end(message) {
    if (!message) return;
    const said = this.#attempts.flatMap(({ pieces }) => pieces.filter((piece) => !piece.lost));
    if (message.trim() === said.map((piece) => piece.text).join("").trim()) return;
    const shown = { pieces: [{ text: message, lost: false }], shown: 0, section: null, block: null };
    this.#final = { ...shown, title: said.length ? "final message" : "" };
    this.#stale = true;
  }

  /** Show what is not shown yet. */
  flush() {
    keepingEnd(this.#box, () => {
      if (this.#stale) {
        this.#box.replaceChildren();
        const all = [...this.#attempts, this.#final ?? { pieces: [] }];
        for (const one of all) Object.assign(one, { shown: 0, section: null, block: null });
      }
      this.#stale = false;
      const all = this.#final ? [...this.#attempts, this.#final] : this.#attempts;
      for (const attempt of all) this.#grow(attempt);
      this.#name();
    });
  }

  #sum(wanted) {
    let size = 0;
    for (const { pieces } of this.#attempts) {
      for (const piece of pieces) if (wanted(piece)) size += piece.text.length;
    }
    return size;
  }

  #grow(attempt) {
    attempt.section ??= this.#box.appendChild(el("section", {}, el("p", { className: "attempt", hidden: true })));
    while (attempt.shown < attempt.pieces.length) {
      const { lost } = attempt.pieces[attempt.shown];
      const from = attempt.shown;
      while (attempt.pieces[attempt.shown]?.lost === lost) attempt.shown += 1;
      const text = attempt.pieces.slice(from, attempt.shown).map((piece) => piece.text).join("");
      this.#append(attempt, text, lost);
    }
  }

  #append(attempt, text, lost) {
    if (attempt.block?.lost !== lost) attempt.block = null;
    let rest = text;
    while (rest) {
      attempt.block ??= this.#block(attempt, lost);
      const { block } = attempt;
      const end = ending(block.size, rest);
      const part = end < 0 ? rest : rest.slice(0, end);
      block.node.appendData(part);
      block.size += part.length;
      rest = rest.slice(part.length);
      if (end >= 0) attempt.block = null;
    }
  }

  #block(attempt, lost) {
    const node = document.createTextNode("");
    attempt.section.append(el(lost ? "del" : "div", { className: "block", dir: "auto" }, node));
    return { node, size: 0, lost };
  }

  /** Say which attempt each is, where there are several. */
  #name() {
    const several = this.#attempts.length > 1;
    for (const attempt of [...this.#attempts, ...(this.#final ? [this.#final] : [])]) {
      const title = attempt.section.firstChild;
      const lost = attempt.why ? ` · lost: ${attempt.why}` : "";
      const text = attempt.title ?? (several ? `attempt ${attempt.number}${lost}` : "");
      if (title.textContent !== text) title.textContent = text;
      title.hidden = !text;
      attempt.section.className = attempt.why ? "lost" : "";
    }
  }
}
