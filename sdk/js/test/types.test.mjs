/** What a module exports is declared in its types, and the other way round. */

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

const MODULES = ["client", "agent", "ingress"];

/** Return the names of a class that its declaration has. */
function declaredMembers(body) {
  const members = body.matchAll(/^ {2}(?:readonly )?(\w+|\[Symbol\.asyncIterator\])\??[:(]/gm);
  return new Set(Array.from(members, (found) => found[1]));
}

/** Return the public names of a class: its methods, its accessors, and the fields it begins with. */
function ownMembers(source, kind) {
  const names = Reflect.ownKeys(kind.prototype)
    .map((key) => (typeof key === "symbol" ? `[${key.description}]` : key));
  const body = new RegExp(`^export class ${kind.name} [^]*?^}`, "m").exec(source)[0];
  const fields = Array.from(body.matchAll(/^ {2}(\w+)(?: = .*)?;$/gm), (found) => found[1]);
  const assigned = Array.from(body.matchAll(/^ {4}this\.(\w+) =/gm), (found) => found[1]);
  const objects = Array.from(body.matchAll(/Object\.assign\(this, \{(.*?)\}/gs), (found) =>
    Array.from(found[1].matchAll(/(\w+)(?=,|:| *$)/g), (name) => name[1])).flat();
  return { needed: new Set([...names, ...fields]), known: new Set([...assigned, ...objects]) };
}

for (const name of MODULES) {
  const source = readFileSync(new URL(`../${name}.mjs`, import.meta.url), "utf8");
  const types = readFileSync(new URL(`../${name}.d.mts`, import.meta.url), "utf8");
  const declared = Array.from(types.matchAll(/^export declare (class|function|const) (\w+)/gm));

  test(`${name}: every export is declared, and nothing else`, async () => {
    const exported = await import(`../${name}.mjs`);
    assert.deepEqual(declared.map((found) => found[2]).sort(), Object.keys(exported).sort());
  });

  test(`${name}: every class has the members that are declared, and no other`, async () => {
    const exported = await import(`../${name}.mjs`);
    for (const [, kind, title] of declared) {
      assert.equal(/^class /.test(String(exported[title])), kind === "class", title);
      if (kind !== "class") continue;
      const body = new RegExp(`^export declare class ${title} [^]*?(^}|{})`, "m").exec(types)[0];
      const told = declaredMembers(body);
      const { needed, known } = ownMembers(source, exported[title]);
      const hidden = ["name", "constructor"]; // every Error has them
      for (const member of needed) {
        assert.ok(told.has(member) || hidden.includes(member), `${title}.${member} is not declared`);
      }
      for (const member of told) {
        assert.ok(needed.has(member) || known.has(member), `${title}.${member} is not there`);
      }
    }
  });
}

test("the view's declaration has the fields of an empty one", async () => {
  const { emptyView } = await import("../client.mjs");
  const types = readFileSync(new URL("../client.d.mts", import.meta.url), "utf8");
  const body = /^export interface View [^]*?^}/m.exec(types)[0];
  const told = Array.from(body.matchAll(/^ {2}(\w+):/gm), (found) => found[1]);
  assert.deepEqual(told, Object.keys(emptyView()));
});

test("the package names files that are there", () => {
  const folder = new URL("../", import.meta.url);
  const about = JSON.parse(readFileSync(new URL("package.json", folder), "utf8"));
  assert.equal(about.dependencies, undefined);
  for (const { types, default: module } of Object.values(about.exports)) {
    assert.ok(readFileSync(new URL(types, folder)).length && readFileSync(new URL(module, folder)));
  }
});
