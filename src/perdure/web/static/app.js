// The chat page. What a model says is hostile text: it only ever becomes textContent.

import { Refused, follow, refusalOf } from "./stream.js";

const POLL_MS = 2000;
const byId = (id) => document.getElementById(id);
const conversation = byId("conversation");
const composer = byId("composer");
const field = byId("message");
const connection = byId("connection");

const named = new URLSearchParams(location.hash.slice(1)).get("session");
const sessionId = named || newSession();
const turns = new Map();
let live = null;

function newSession() {
  const id = crypto.randomUUID().slice(0, 13);
  history.replaceState(null, "", `#session=${id}`);
  return id;
}

const address = (rest = "") => `v1/sessions/${encodeURIComponent(sessionId)}${rest}`;

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

const say = (text) => {
  if (connection.textContent !== text) connection.textContent = text;
};

// One turn: the user's message, and the answer as it comes.
class TurnView {
  constructor(index, message) {
    this.index = index;
    this.message = message;
    this.attempt = 1;
    this.startedAt = performance.now();
    this.root = element("article", "turn");
    this.root.append(element("div", "user", message));
    this.notice = this.root.appendChild(element("p", "notice"));
    this.notice.hidden = true;
    this.answer = this.root.appendChild(element("div", "answer"));
    this.line = this.root.appendChild(element("p", "line"));
    this.parts = new Map();
    conversation.append(this.root);
    this.toEnd();
  }

  show(event) {
    const data = event.data ?? {};
    switch (event.type) {
      case "session.run.started":
        this.forget();
        break;
      case "session.run.restarted":
        this.forget();
        this.attempt = data.attempt;
        this.note(`The worker was lost. Attempt ${data.attempt} answers anew.`);
        break;
      case "message.part.updated":
        this.part(data);
        break;
      case "error":
        this.failed(data);
        break;
      case "result":
        this.part({ delta: data.finalText, part: { id: "result", type: "text" } });
        break;
    }
    this.toEnd();
  }

  part({ delta, part }) {
    const known = this.parts.get(part.id) ?? this.newPart(part);
    if (part.type === "tool") {
      if (part.name) known.title.textContent = `Tool: ${part.name}`;
      if (part.args !== undefined) known.args.textContent = JSON.stringify(part.args, null, 2);
      known.state.textContent = part.state;
      if (part.result !== undefined) known.result.textContent = JSON.stringify(part.result, null, 2);
      if (part.error !== undefined) known.result.textContent = part.error.message ?? "failed";
    } else if (delta !== undefined) {
      known.text.textContent += delta;
    } else if (part.text !== undefined) {
      known.text.textContent = part.text;
    }
  }

  newPart({ id, type, url, title }) {
    const made = {};
    if (type === "text") {
      made.text = this.answer.appendChild(element("div", "text"));
    } else if (type === "source") {
      this.answer.append(element("p", "source", title ? `${title} (${url})` : url));
    } else {
      const box = this.answer.appendChild(element("details", type));
      const summary = box.appendChild(element("summary"));
      made.title = summary.appendChild(element("span", "", type === "reasoning" ? "Reasoning" : "Tool"));
      made.state = summary.appendChild(element("span", "state"));
      made.text = made.args = box.appendChild(element("pre"));
      made.result = box.appendChild(element("pre"));
    }
    this.parts.set(id, made);
    return made;
  }

  forget() {
    this.answer.replaceChildren();
    this.parts.clear();
    this.root.classList.remove("failed");
    this.notice.hidden = true;
  }

  note(text) {
    this.notice.textContent = text;
    this.notice.hidden = false;
  }

  failed({ message, retryable }) {
    this.root.classList.add("failed");
    this.note(message);
    if (retryable) {
      const again = element("button", "again", "Try again");
      again.type = "button";
      again.addEventListener("click", () => submit(this, { retry: true }));
      this.notice.append(" ", again);
    }
  }

  working(isWorking) {
    this.root.classList.toggle("working", isWorking);
    this.answer.setAttribute("aria-busy", String(isWorking));
    if (isWorking) this.line.textContent = "";
  }

  // Attempt, tokens and time, as the service has recorded them.
  async account() {
    const response = await fetch(address(`/turns/${this.index}`));
    if (!response.ok) return;
    const turn = await response.json();
    const known = turn.usage.filter((usage) => usage.tokensOut !== null);
    const out = known.reduce((sum, usage) => sum + usage.tokensOut, 0);
    const words = [turn.state, `attempt ${turn.attempt}`];
    if (known.length) words.push(`${out} tokens`);
    if (known.length < turn.usage.length) words.push("a call of unknown cost");
    if (turn.completedAt) {
      const seconds = (Date.parse(turn.completedAt) - Date.parse(turn.createdAt)) / 1000;
      words.push(`${seconds.toFixed(1)} s`);
    }
    this.line.textContent = words.join(" · ");
  }

  toEnd() {
    const gap = document.documentElement.scrollHeight - innerHeight - scrollY;
    if (gap < 160) scrollTo({ top: document.documentElement.scrollHeight });
  }
}

const open = (index) => (cursor, signal) =>
  fetch(address(`/turns/${index}/stream?envelope=1${cursor ? `&after=${cursor}` : ""}`), { signal });

// Watches a turn to its end, wherever it runs; `first` is a response that streams it already.
async function watch(view, first = null) {
  const controller = new AbortController();
  live = view;
  composer.classList.add("busy");
  byId("stop").hidden = false;
  byId("send").hidden = true;
  view.working(true);
  try {
    const later = open(view.index);
    await follow({
      open: (cursor, signal) => {
        const response = first;
        first = null;
        return response ?? later(cursor, signal);
      },
      show: (event) => view.show(event),
      connection: say,
      signal: controller.signal,
    });
  } catch (error) {
    view.failed({ message: error.message, retryable: !(error instanceof Refused) });
  }
  view.working(false);
  live = null;
  composer.classList.remove("busy");
  byId("stop").hidden = true;
  byId("send").hidden = false;
  say("");
  await view.account().catch(() => {});
}

async function submit(view, { retry = false } = {}) {
  const body = JSON.stringify({ turnIndex: view.index, message: view.message, retry });
  const headers = { "Content-Type": "application/json" };
  let response;
  for (let pause = 500; ; pause = Math.min(2 * pause, 8000)) {
    try {
      response = await fetch(address("/turns?envelope=1"), { method: "POST", headers, body });
      break; // The same submit twice is one turn, so trying again is safe.
    } catch {
      say("Reconnecting…");
      await new Promise((resolve) => setTimeout(resolve, pause));
    }
  }
  if (!response.ok) {
    const refusal = await refusalOf(response);
    view.failed({ message: `${refusal.message} ${refusal.hint ?? ""}`, retryable: true });
    return;
  }
  await watch(view, response);
}

const nextIndex = () => Math.max(-1, ...turns.keys()) + 1;

function place(index, message) {
  const view = new TurnView(index, message);
  turns.set(index, view);
  return view;
}

// Shows what the service knows of this session and this page does not.
async function refresh() {
  const isUnknown = !named && turns.size === 0;
  if (live || isUnknown) return;
  const response = await fetch(address());
  if (!response.ok) return;
  const session = await response.json();
  for (const turn of session.turns) {
    if (turns.has(turn.turnIndex)) continue;
    await watchKnown(turn);
  }
}

async function watchKnown(turn) {
  const view = place(turn.turnIndex, turn.message);
  await watch(view);
}

composer.addEventListener("submit", async (event) => {
  event.preventDefault();
  const message = field.value.trim();
  if (!message || live) return;
  field.value = "";
  resize();
  await submit(place(nextIndex(), message));
  field.focus();
});

field.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    composer.requestSubmit();
  }
});

function resize() {
  field.rows = Math.min(8, field.value.split("\n").length);
}
field.addEventListener("input", resize);

byId("stop").addEventListener("click", async () => {
  if (live) await fetch(address(`/turns/${live.index}/stop`), { method: "POST" });
});

byId("new").addEventListener("click", () => {
  location.hash = "";
  location.reload();
});

// Another tab may begin a turn of this session.
refresh()
  .catch(() => say("The service does not answer."))
  .finally(() => setInterval(() => refresh().catch(() => {}), POLL_MS));
