// Runs a Python file under Pyodide, with Cloudflare's Python SDK and a real D1 binding.
//
// node pyodide.mjs FILE SOURCE WORKER SDK_WHEEL SETTING: the two folders are on the path. FILE's
// `main(setting, direct, raw, wrapped)` gets the binding as Miniflare hands it out, as a bare
// JavaScript object that is faster, and that one as the SDK wraps it; what it returns is printed,
// as JSON.
import { readFileSync } from "node:fs";
import { loadPyodide } from "pyodide";
import { Miniflare } from "miniflare";

const [file, source, worker, wheel, setting] = process.argv.slice(2);

const python = await loadPyodide();
// What the runtime of a Worker gives to the SDK.
const flags = { python_workflows_implicit_dependencies: true };
python.registerJsModule("_cloudflare_compat_flags", flags);
python.registerJsModule("_pyodide_entrypoint_helper", {
  cloudflareWorkersModule: { env: {} },
  cloudflareSocketsModule: {},
  patchWaitUntil() {},
  patch_env_helper() {},
  doAnImport: async () => ({ wrapWorkflowStep: (step) => step }),
});
python.unpackArchive(new Uint8Array(readFileSync(wheel)), "wheel");
python.mountNodeFS("/source", source);
python.mountNodeFS("/worker", worker);

const script = `export default {
  async fetch(request, env) {
    const statements = (await request.json()).map(({ sql, values }) =>
      values.length ? env.DB.prepare(sql).bind(...values) : env.DB.prepare(sql));
    try {
      return Response.json(await env.DB.batch(statements));
    } catch (error) {
      return new Response(error.message, { status: 500 });
    }
  },
}`;
const miniflare = new Miniflare({
  modules: true,
  script,
  compatibilityDate: "2026-04-01",
  d1Databases: { DB: "one" },
  host: "127.0.0.1",
  port: 0,
  cf: false,
});

// Miniflare's own stand-in for the binding blocks for each statement that is prepared. This one has
// the Worker do all of a batch. The SDK knows a binding by the name of its class.
class D1PreparedStatement {
  constructor(sql, values = []) {
    this.sql = sql;
    this.values = values;
  }
  bind(...values) {
    if (values.includes(undefined)) {
      throw new Error("D1_TYPE_ERROR: Type 'undefined' not supported");
    }
    return new D1PreparedStatement(this.sql, values);
  }
}

class D1Database {
  prepare(sql) {
    return new D1PreparedStatement(sql);
  }
  async batch(statements) {
    const answer = await miniflare.dispatchFetch("http://worker/", {
      method: "POST",
      body: JSON.stringify(statements.map(({ sql, values }) => ({ sql, values }))),
    });
    if (!answer.ok) throw new Error(await answer.text());
    return answer.json();
  }
}

let status = 0;
process.on("unhandledRejection", (error) => {
  console.error("nobody waited for", error?.message ?? error);
  status = 1;
});
try {
  python.globals.set("BINDING", new D1Database());
  // What the runtime hands to a Worker: its bindings, and what keeps it alive.
  const created = [];
  // The SDK knows this binding, too, by the name of its class.
  class WorkflowImpl {
    async create(asked) {
      created.push(asked);
      return { id: asked.id };
    }
  }
  const CHAT = new WorkflowImpl();
  python.globals.set("ENV", { DB: new D1Database(), CHAT });
  python.globals.set("CREATED", created);
  // The step of a workflow, as its engine gives it: what was done is not done again.
  const done = new Map();
  const once = async (name, act) => {
    if (!done.has(name)) done.set(name, await act());
    return done.get(name);
  };
  python.globals.set("STEP", {
    names: () => [...done.keys()],
    do: (name, config, body) => once(name, () => (body ?? config)({ attempt: 1 })),
    sleep: (name, duration) => once(name, async () => {}),
    waitForEvent: (name, asked) => once(name, async () => {
      if (asked.type === "never") throw new Error("Execution timed out after 1000ms");
      return { type: asked.type, payload: { by: "Ann", none: null }, timestamp: new Date() };
    }),
  });
  const kept = [];
  const waitUntil = (work) => kept.push(work);
  python.globals.set("CONTEXT", { waitUntil, settle: () => Promise.all(kept) });
  python.globals.set("DIRECT", await miniflare.getD1Database("DB"));
  python.globals.set("SETTING", setting);
  python.globals.set("SCRIPT", readFileSync(file, "utf8"));
  const told = await python.runPythonAsync(`
import json, sys
sys.path[:0] = ["/source", "/worker"]
from workers.rpc import _BindingWrapper
scope = {"__name__": "script"}
exec(compile(SCRIPT, "script.py", "exec"), scope)
told = await scope["main"](SETTING, DIRECT, BINDING, _BindingWrapper(BINDING))
told["worker"] = await scope["ask_a_worker"](CONTEXT, ENV)
told["workflow"] = await scope["run_a_workflow"](CONTEXT, ENV, STEP, CREATED)
json.dumps(told)
`);
  console.log(told);
} catch (error) {
  // Otherwise all of Pyodide's own code is printed.
  console.error(error.message);
  status = 1;
}
await miniflare.dispose();
process.exit(status);
