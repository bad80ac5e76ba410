// The canonical form as a TypeScript worker computes it: the judge of test_identity_node.py.
//
// Reads lines of tagged JSON and answers each with its canonical text. An object with the one
// key "\u0000" stands for a number that plain JSON does not carry exactly: ["double", the hex
// of its bits] or ["bigint", its decimal].
import { readFileSync } from "node:fs";

const [, , path] = process.argv;

function revive(value) {
  if (Array.isArray(value)) return value.map(revive);
  if (value === null || typeof value !== "object") return value;
  const tagged = value["\u0000"];
  if (tagged !== undefined) {
    const [kind, text] = tagged;
    return kind === "bigint" ? BigInt(text) : Buffer.from(text, "hex").readDoubleBE();
  }
  return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, revive(item)]));
}

function sorted(value) {
  if (typeof value === "bigint") return { __bigint: value.toString() };
  if (Array.isArray(value)) return value.map(sorted);
  if (value === null || typeof value !== "object") return value;
  const result = {};
  for (const key of Object.keys(value).sort()) result[key] = sorted(value[key]);
  return result;
}

const lines = readFileSync(path, "utf8").split("\n").filter((line) => line !== "");
const answers = lines.map((line) => JSON.stringify(sorted(revive(JSON.parse(line)))));
process.stdout.write(answers.join("\n") + "\n");
