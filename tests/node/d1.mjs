// Cloudflare's own D1 (workerd), behind its HTTP query API and behind raw calls of its binding.
//
// Prints one line, {"port": …}. The database of an address is one of DATABASES. Faults are told by
// POST /faults with a list, one entry for each batch to come: "before" (lost, never ran), "after"
// (ran, the answer is lost), {"cut": n} (the first n statements ran alone), {"status", "body"}, or
// null.
import { Miniflare } from "miniflare";

const DATABASES = ["one", "two", "three"];

const script = `
let faults = [];
let batches = 0;

const failed = (status, code, message) => {
  const answer = { success: false, errors: [{ code, message }], messages: [], result: null };
  return Response.json(answer, { status });
};

async function run(db, asked) {
  const statements = asked.map(({ sql, params }) => {
    const statement = db.prepare(sql);
    return params && params.length ? statement.bind(...params) : statement;
  });
  batches += 1;
  const fault = faults.shift();
  if (fault === "before") throw new Error("D1_ERROR: Network connection lost.");
  if (fault && fault.cut !== undefined) {
    for (const statement of statements.slice(0, fault.cut)) await statement.run();
    throw new Error("D1_ERROR: Network connection lost.");
  }
  if (fault && fault.status) throw Object.assign(new Error(fault.body), { fault });
  const results = await db.batch(statements);
  if (fault === "after") throw new Error("D1_ERROR: Network connection lost.");
  return results;
}

async function query(db, body) {
  const asked = Array.isArray(body.batch) ? body.batch : [body];
  if (!asked.length || asked.some(({ sql }) => typeof sql !== "string")) {
    return failed(400, 7400, "The request is malformed: Required");
  }
  try {
    return Response.json({ success: true, errors: [], messages: [], result: await run(db, asked) });
  } catch (error) {
    if (error.fault) return new Response(error.fault.body, { status: error.fault.status });
    const message = error.message.replace(/^D1_ERROR: /, "");
    return failed(message.startsWith("Network") ? 500 : 400, 7500, message);
  }
}

// Calls of the binding as they are, for a stand-in of it in another language.
async function raw(db, { call, statements }) {
  const [{ sql, params }] = statements.length ? statements : [{ sql: "" }];
  try {
    if (call === "batch") return Response.json(await run(db, statements));
    const statement = params.length ? db.prepare(sql).bind(...params) : db.prepare(sql);
    return Response.json(await statement[call]());
  } catch (error) {
    return Response.json({ name: error.name, message: error.message }, { status: 500 });
  }
}

export default {
  async fetch(request, env) {
    const path = new URL(request.url).pathname;
    if (path === "/faults") {
      faults = await request.json();
      return Response.json({ batches });
    }
    const bound = path.match(/^\\/binding\\/(\\w+)$/);
    if (bound) return raw(env[bound[1]], await request.json());
    const found = path.match(
      /^\\/client\\/v4\\/accounts\\/[^/]+\\/d1\\/database\\/([^/]+)\\/query$/);
    if (!found || request.method !== "POST") return failed(404, 7003, "Could not route to " + path);
    if (request.headers.get("authorization") !== "Bearer " + env.TOKEN) {
      return failed(401, 10000, "Authentication error");
    }
    const db = env[found[1]];
    if (!db) return failed(404, 7404, "The database " + found[1] + " could not be found");
    let body;
    try {
      body = await request.json();
    } catch {
      return failed(400, 7400, "The request is malformed: no JSON");
    }
    return query(db, body);
  },
};`;

const miniflare = new Miniflare({
  modules: true,
  script,
  host: "127.0.0.1",
  port: 0,
  cf: false,
  compatibilityDate: "2026-04-01",
  d1Databases: Object.fromEntries(DATABASES.map((name) => [name, name])),
  d1Persist: process.env.D1_FOLDER || false,
  bindings: { TOKEN: process.env.D1_TOKEN || "secret" },
});
const url = await miniflare.ready;
console.log(JSON.stringify({ port: Number(url.port) }));

const end = async () => {
  await miniflare.dispose();
  process.exit(0);
};
process.on("SIGTERM", end);
process.on("SIGINT", end);
// Whoever started this holds the other end: it ends with them, even if they are killed.
process.stdin.on("end", end).resume();
