// One turn on the page. What a model says is hostile text: it only ever becomes text nodes, and
// the elements that markdown.js knows.

import { Approvals, EVENTS } from "./approvals.js";
import { button, element } from "./elements.js";
import { MarkdownView } from "./markdown.js";

const WORDS = {
  queued: "waiting its turn",
  running: "answering",
  sleeping: "asleep",
  waiting: "waiting",
  parked: "given up",
};

const asText = (value) => (typeof value === "string" ? value : JSON.stringify(value, null, 2));

// Why a model's answer is not a whole one.
const CUTS = new Map([
  ["length", "cut off at the length limit"],
  ["content_filter", "cut off by the content filter"],
]);

const REASONS = {
  lease_expired: "The worker was lost",
  released: "The worker was replaced",
  retry: "Tried again",
};

export class TurnView {
  constructor(turn, { retry, grown, edit, regenerate, sibling, address }) {
    this.index = turn.turnIndex;
    this.revision = turn.revision;
    this.message = turn.message;
    this.turn = turn;
    this.attempt = 1;
    // State and attempt that are on the page: what differs from them has to be shown anew.
    this.shown = "";
    this.isWorking = false;
    this.tick = () => {};
    this.retry = retry;
    this.grown = grown;
    this.parts = new Map();
    this.acting = { edit, regenerate, sibling };
    this.root = element("article", "turn");
    this.user = this.root.appendChild(element("div", "user", turn.message ?? ""));
    this.userTools = this.root.appendChild(element("div", "tools"));
    this.notice = this.root.appendChild(element("p", "notice"));
    this.notice.hidden = true;
    this.answer = this.root.appendChild(element("div", "answer"));
    this.approvals = new Approvals(this.answer, () => address(this, "/approvals"));
    const foot = this.root.appendChild(element("div", "foot"));
    this.line = foot.appendChild(element("p", "line"));
    this.line.setAttribute("aria-live", "off");
    this.again = foot.appendChild(button("Regenerate", () => regenerate(this)));
    this.again.hidden = true;
    this.offerEdit();
  }

  // Below the message: the revisions that stand beside this one, and the way to make another.
  offerEdit(position = 0, count = 1) {
    // What is there stays: somebody may have its focus while the page looks for news.
    if (this.offered === `${position}/${count}`) return;
    this.offered = `${position}/${count}`;
    const tools = [];
    if (count > 1) {
      const { sibling } = this.acting;
      const back = button("‹", () => sibling(this, -1), "Previous version");
      const on = button("›", () => sibling(this, 1), "Next version");
      back.disabled = position === 0;
      on.disabled = position === count - 1;
      tools.push(back, element("span", "place", `${position + 1} / ${count}`), on);
    }
    tools.push(button("Edit", () => this.edit(), "Edit the message"));
    this.userTools.replaceChildren(...tools);
  }

  edit() {
    const form = element("form", "edit");
    const field = form.appendChild(element("textarea"));
    field.value = this.message ?? "";
    field.setAttribute("aria-label", "Edited message");
    field.rows = Math.min(8, field.value.split("\n").length + 1);
    const send = form.appendChild(element("button", "", "Send"));
    send.type = "submit";
    const close = () => {
      form.replaceWith(this.user);
      this.userTools.hidden = false;
    };
    form.append(button("Cancel", close));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const message = field.value.trim();
      // What was written stays until somebody has taken it.
      if (!message || this.acting.edit(this, message)) close();
    });
    field.addEventListener("keydown", (event) => {
      if (event.key === "Escape") close();
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        form.requestSubmit();
      }
    });
    this.user.replaceWith(form);
    this.userTools.hidden = true;
    field.focus();
  }

  // Takes in one event of the stream.
  show(event) {
    const { type } = event;
    const data = event.data ?? {};
    switch (type) {
      case "session.run.started":
        this.forget();
        break;
      case "session.run.restarted":
        this.forget();
        this.attempt = data.attempt;
        this.tick();
        this.note(`${REASONS[data.reason] ?? "Again"}: attempt ${data.attempt} answers anew.`);
        break;
      case "session.run.recovering":
        this.note("The worker was lost; another one takes over.");
        break;
      case "message.part.updated":
        this.update(data);
        break;
      case "result":
        this.forget();
        this.update({ delta: data.finalText, part: { id: "result", type: "text" } });
        break;
      case "error":
        this.failed(data);
        break;
      default:
        if (EVENTS.has(type)) {
          this.approvals.show(event);
          this.tick();
        }
    }
    this.grown();
  }

  // Shows a turn as the service keeps it.
  showWhole(turn) {
    this.forget();
    this.attempt = turn.attempt;
    for (const part of turn.parts) this.updateStored(part);
    if (!turn.parts.length && turn.text) {
      this.update({ part: { id: "result", type: "text", text: turn.text } });
    }
    if (turn.error) this.failed(turn.error);
    this.account(turn);
    this.grown();
  }

  updateStored({ type, id, ...rest }) {
    if (type === "tool_call") {
      this.update({ part: { id, type: "tool", state: "running", ...rest } });
    } else if (type === "tool_result") {
      const state = rest.error === undefined ? "completed" : "error";
      this.update({ part: { id, type: "tool", state, ...rest } });
    } else if (type === "event") {
      this.show(rest.event);
    } else if (type === "data") {
      if (EVENTS.has(rest.name)) this.approvals.show({ type: rest.name, data: rest.value });
    } else {
      this.update({ part: { id: id ?? `${type}${this.parts.size}`, type, ...rest } });
    }
  }

  update({ delta, part }) {
    if (part === null || typeof part !== "object") return;
    const known = this.parts.get(part.id) ?? this.newPart(part);
    if (part.type === "tool") {
      if (part.name) known.title.data = part.name;
      if (part.args !== undefined) known.text.data = asText(part.args);
      if (part.state) known.state.data = part.state;
      if (part.result !== undefined) known.result.data = asText(part.result);
      if (part.error) known.result.data = part.error.message ?? asText(part.error);
      known.box?.classList.toggle("wrong", part.state === "error");
    } else if (known.markdown) {
      if (typeof delta === "string") known.markdown.append(delta);
      else if (typeof part.text === "string") known.markdown.set(part.text);
    } else if (typeof delta === "string") {
      // Empty lines at the end are shown once something follows them.
      const text = known.held + delta;
      const end = text.trimEnd().length;
      known.text.appendData(text.slice(0, end));
      known.held = text.slice(end);
    } else if (typeof part.text === "string") {
      known.text.data = part.text.trimEnd();
      known.held = "";
    }
  }

  newPart({ id, type, url, title }) {
    const made = { text: new Text(), title: new Text(), state: new Text(), result: new Text() };
    made.held = "";
    this.parts.set(id, made);
    if (type === "source") {
      made.text.data = title ? `${title} (${url})` : url;
      this.answer.appendChild(element("p", "source")).append(made.text);
    } else if (type === "reasoning" || type === "tool") {
      made.box = this.answer.appendChild(element("details", type));
      made.title.data = type === "tool" ? "tool" : "Reasoning";
      const summary = made.box.appendChild(element("summary"));
      summary.appendChild(element("span", "title")).append(made.title);
      summary.appendChild(element("span", "state")).append(made.state);
      made.box.appendChild(element("pre")).append(made.text);
      made.box.appendChild(element("pre", "result")).append(made.result);
    } else {
      made.markdown = new MarkdownView(this.answer.appendChild(element("div", "text")), this.grown);
    }
    return made;
  }

  forget() {
    this.answer.replaceChildren();
    this.parts.clear();
    this.approvals.forget();
    this.clearNotice();
  }

  note(text) {
    this.notice.textContent = text;
    this.notice.hidden = false;
  }

  clearNotice() {
    this.root.classList.remove("failed");
    this.notice.hidden = true;
  }

  failed({ message }) {
    this.root.classList.add("failed");
    this.line.textContent = "";
    this.note(message);
    const again = element("button", "again", "Try again");
    again.type = "button";
    // The stream tells of the failure before it ends, and only then may another try begin.
    again.disabled = this.isWorking;
    again.addEventListener("click", () => this.retry(this));
    this.notice.append(" ", again);
  }

  working(isWorking) {
    this.isWorking = isWorking;
    for (const again of this.notice.querySelectorAll("button")) again.disabled = isWorking;
    this.root.classList.toggle("working", isWorking);
    this.answer.setAttribute("aria-busy", String(isWorking));
    if (isWorking) this.again.hidden = true;
    clearInterval(this.ticking);
    this.tick = () => {};
    if (!isWorking) {
      for (const { markdown } of this.parts.values()) markdown?.finish();
      return;
    }
    const begun = this.begun ?? Date.now();
    this.tick = () => {
      const seconds = Math.round((Date.now() - begun) / 1000);
      const doing = this.approvals.isOpen ? "waiting for a decision" : WORDS.running;
      this.line.textContent = `${doing} · attempt ${this.attempt} · ${seconds} s`;
    };
    this.tick();
    this.ticking = setInterval(this.tick, 1000);
  }

  // Writes the line below the answer: state, attempt, tokens and time, as they are recorded.
  account(turn) {
    this.shown = `${turn.state}/${turn.attempt}`;
    this.again.hidden = turn.state !== "completed" && turn.state !== "stopped";
    const words = [WORDS[turn.state] ?? turn.state, `attempt ${turn.attempt}`];
    const cut = CUTS.get(turn.finishReason);
    if (cut) words.splice(1, 0, cut);
    this.root.classList.toggle("cut", Boolean(cut));
    const known = turn.usage.filter((usage) => usage.tokensOut !== null);
    const unknown = turn.usage.length - known.length;
    const [tokensIn, tokensOut] = ["tokensIn", "tokensOut"].map((name) =>
      known.reduce((total, usage) => total + (usage[name] ?? 0), 0),
    );
    // Where calls are unknown, a zero is that of a turn whose steps alone ask models.
    if (tokensIn + tokensOut || (known.length && !unknown)) {
      words.push(`${tokensIn} → ${tokensOut} tokens`);
    }
    if (unknown === 1) words.push("a call of unknown cost");
    if (unknown > 1) words.push(`${unknown} calls of unknown cost`);
    if (turn.completedAt) {
      const seconds = (Date.parse(turn.completedAt) - Date.parse(turn.createdAt)) / 1000;
      words.push(`${seconds.toFixed(1)} s`);
    }
    this.line.textContent = words.join(" · ");
  }
}
