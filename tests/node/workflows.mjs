// Cloudflare's own Workflows engine (workerd), whose workflow has a Python process say what to do.
//
// Prints one line, {"port": …}. The workflow asks PYTHON (an address of this machine) for commands,
// carries each out by the engine's own step, and tells what came of it. Instances are kept in
// WORKFLOWS_FOLDER.
import { Miniflare } from "miniflare";

const script = `
import { WorkflowEntrypoint } from "cloudflare:workers";

const told = (error) => ({ name: error.name, message: error.message });
const raised = ({ name, message }) => Object.assign(new Error(message), { name });

export class Hosted extends WorkflowEntrypoint {
  async run(event, step) {
    const attempt = crypto.randomUUID();
    const ask = async (asked) => {
      const body = JSON.stringify({ instance: event.instanceId, attempt, ...asked });
      const answer = await this.env.PYTHON.fetch("http://python/", { method: "POST", body });
      return answer.json();
    };
    const calls = {
      do({ id, name, config }) {
        const body = async () => {
          const answer = await ask({ call: "body", id });
          if (answer.error) throw raised(answer.error);
          return answer.value;
        };
        return config ? step.do(name, config, body) : step.do(name, body);
      },
      sleep: ({ name, duration }) => step.sleep(name, duration),
      wait_for_event: ({ name, options }) => step.waitForEvent(name, options),
    };
    await ask({ call: "begin", payload: event.payload });
    for (;;) {
      for (const command of await ask({ call: "next" })) {
        if (command.call === "return") return command.value;
        if (command.call === "raise") throw raised(command.error);
        calls[command.call](command).then(
          (value) => ask({ call: "answer", id: command.id, value: value ?? null }),
          (error) => ask({ call: "answer", id: command.id, error: told(error) }),
        ).catch(() => {});
      }
    }
  }
}

export default {
  async fetch(request, env) {
    const { call, id, ...rest } = await request.json();
    try {
      if (call === "create") {
        await env.HOSTED.create({ id, params: rest.payload });
        return Response.json(null);
      }
      const instance = await env.HOSTED.get(id);
      if (call === "send") await instance.sendEvent({ type: rest.type, payload: rest.payload });
      else if (call === "terminate") await instance.terminate();
      else if (call === "restart") await instance.restart();
      else return Response.json(await instance.status());
      return Response.json(null);
    } catch (error) {
      return Response.json(told(error), { status: 500 });
    }
  },
};`;

const miniflare = new Miniflare({
  name: "hosted",
  modules: true,
  script,
  host: "127.0.0.1",
  port: 0,
  cf: false,
  compatibilityDate: "2026-04-01",
  workflows: { HOSTED: { name: "hosted", className: "Hosted" } },
  workflowsPersist: process.env.WORKFLOWS_FOLDER,
  serviceBindings: { PYTHON: { external: { address: process.env.PYTHON, http: {} } } },
});
const url = await miniflare.ready;
console.log(JSON.stringify({ port: Number(url.port) }));

const end = async () => {
  await miniflare.dispose();
  process.exit(0);
};
process.on("SIGTERM", end);
// Whoever started this holds the other end: it ends with them, even if they are killed.
process.stdin.on("end", end).resume();
