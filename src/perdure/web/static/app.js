// The chat page: one session, its turns, and whoever else writes to it.

import { forgetChat, rememberChat, showChats } from "./chats.js";
import { Lines, isLive, keyOf } from "./lines.js";
import { Refused, ask, follow, pauseFor, refusalOf } from "./stream.js";
import { TurnView } from "./turn.js";

const UNANSWERED_TRIES = 20;
const POLL_MS = 2000;
const NEAR_END_PX = 96;
const CONFLICTS = new Set(["manifest_mismatch", "session_busy"]);

const byId = (id) => document.getElementById(id);
const conversation = byId("conversation");
const composer = byId("composer");
const field = byId("message");
const connection = byId("connection");
const stopButton = byId("stop");
const sendButton = byId("send");

const named = new URLSearchParams(location.hash.slice(1)).get("session");
const sessionId = named || newSession();
const otherTabs = new BroadcastChannel("perdure");
const lines = new Lines();
// The turns on the page, by index and revision.
const views = new Map();
// What this page waits for: {view, controller, accepted}.
let live = null;
let loading = false;
// A chat that was only just made up is not known to the service: asking for it is of no use.
let isUnknown = !named;

function newSession() {
  // Outside of https and loopback there is no randomUUID.
  const digits = [...crypto.getRandomValues(new Uint8Array(8))];
  const id = digits.map((digit) => digit.toString(16).padStart(2, "0")).join("");
  history.replaceState(null, "", `#session=${id}`);
  return id;
}

const address = (rest = "") => `v1/sessions/${encodeURIComponent(sessionId)}${rest}`;
const turnAddress = ({ index, revision }, rest = "", query = "") =>
  address(`/turns/${index}${rest}?revision=${revision}${query}`);

function say(text) {
  if (connection.textContent !== text) connection.textContent = text;
}

// Scrolling: the end stays in sight for whoever looks at it.

let isAtEnd = true;
let willScroll = false;

addEventListener(
  "scroll",
  () => {
    const gap = document.documentElement.scrollHeight - innerHeight - scrollY;
    isAtEnd = gap < NEAR_END_PX;
  },
  { passive: true },
);

function keepEndInSight() {
  if (!isAtEnd || willScroll) return;
  willScroll = true;
  requestAnimationFrame(() => {
    willScroll = false;
    scrollTo({ top: document.documentElement.scrollHeight, behavior: "instant" });
  });
}

// Turns.

// Brings the shown line onto the page: what is there already stays as it is.
function draw() {
  const line = lines.shown();
  const wanted = new Set(line.map(keyOf));
  const places = lines.byPlace();
  for (const [key, view] of views) {
    if (wanted.has(key)) continue;
    view.root.remove();
    // What is being answered goes on out of sight.
    if (live?.view !== view) views.delete(key);
  }
  for (const [position, turn] of line.entries()) {
    let view = views.get(keyOf(turn));
    if (!view) {
      view = newView(turn);
      views.set(keyOf(turn), view);
    }
    if (conversation.children[position] !== view.root) {
      conversation.insertBefore(view.root, conversation.children[position] ?? null);
    }
    const siblings = places.get(lines.placeOf(turn));
    view.turn = turn;
    view.offerEdit(siblings.indexOf(turn), siblings.length);
  }
  byId("starters").hidden = line.length > 0 || Boolean(named);
  byId("older").hidden = lines.isNewest();
  composer.hidden = !byId("older").hidden;
  keepEndInSight();
}

function newView(turn) {
  return new TurnView(turn, {
    retry: (failed) => submit(failed, { retry: true }),
    grown: keepEndInSight,
    address: turnAddress,
    edit: (view, message) => revise(view, message),
    regenerate: (view) => revise(view, view.message),
    sibling: (view, step) => {
      const siblings = lines.siblings(view.turn);
      const other = siblings[siblings.indexOf(view.turn) + step];
      if (!other) return;
      isAtEnd = false;
      lines.choose(other);
      draw();
      fill().catch(complain);
    },
  });
}

// Shows of the turns on the page what is recorded, as far as it is not on the page already.
async function fill() {
  const stale = [...views.values()].filter(({ turn, shown }) => {
    return turn.state !== "sending" && !isLive(turn) && shown !== `${turn.state}/${turn.attempt}`;
  });
  await Promise.all(stale.map(async (view) => view.showWhole(await readTurn(view))));
}

// Puts a message onto the page, at a place that is free.
function place(turnIndex, message, parent) {
  const turn = { ...lines.place(turnIndex), message, parent, state: "sending", attempt: 1 };
  lines.add(turn);
  draw();
  return views.get(keyOf(turn));
}

function take(view) {
  lines.remove(view.turn);
  draw();
}

// The last turn that has an answer, and so is what the next message follows.
function lastAnswered() {
  const answered = ({ state }) => state === "completed" || state === "stopped";
  return lines.shown().filter(answered).at(-1) ?? null;
}

function nextIndex() {
  return Math.max(-1, ...lines.shown().map((turn) => turn.turnIndex)) + 1;
}

// Asks for another answer to the same message, or to another one in its place; says whether it
// did.
function revise(view, message) {
  if (message === null || message === undefined || !mayBegin()) return false;
  submit(place(view.index, message, view.turn.parent));
  return true;
}

async function readTurn(view) {
  const response = await fetch(turnAddress(view));
  if (!response.ok) throw await refusalOf(response);
  const turn = await response.json();
  // What is recorded is what the line is drawn from.
  Object.assign(view.turn, { state: turn.state, attempt: turn.attempt });
  return turn;
}

function begin(view) {
  live = { view, controller: new AbortController(), accepted: false };
  stopButton.hidden = false;
  stopButton.disabled = false;
  sendButton.hidden = true;
  view.working(true);
  return live;
}

function finish(working) {
  working.view.working(false);
  if (live !== working) return;
  live = null;
  stopButton.hidden = true;
  sendButton.hidden = false;
  say("");
}

// Watches a turn to its end, wherever it runs; `first` is a response that streams it already.
async function watch(working, first = null) {
  const { view, controller } = working;
  const signal = controller.signal;
  working.accepted = true;
  try {
    await follow({
      open: (cursor) => {
        const response = first;
        first = null;
        const after = cursor ? `&after=${cursor}` : "";
        const stream = turnAddress(view, "/stream", `&envelope=1${after}`);
        return response ?? fetch(stream, { signal });
      },
      show: (event) => view.show(event),
      connection: say,
      signal,
    });
    view.account(await readTurn(view));
  } catch (error) {
    if (error instanceof Refused) view.failed({ message: error.message });
  } finally {
    finish(working);
    // Which line the conversation goes on from, the service decides.
    look();
  }
}

// One turn at a time: says so to whoever asks for another one.
function mayBegin() {
  if (live) say("Wait for this answer, or stop it, before you ask for another one.");
  return !live;
}

async function submit(view, { retry = false } = {}) {
  if (!mayBegin()) return;
  const working = begin(view);
  view.clearNotice();
  let response;
  try {
    const { index: turnIndex, revision, message } = view;
    response = await ask({
      url: address("/turns?envelope=1"),
      body: { turnIndex, revision, message, retry },
      connection: say,
      signal: working.controller.signal,
    });
  } catch {
    // It may have arrived all the same: then the service is asked to stop it, and what it knows
    // of the turn replaces this notice.
    view.failed({ message: "It was stopped before the service had answered." });
    finish(working);
    isUnknown = false;
    await stopUnanswered(view);
    return;
  }
  isUnknown = false;
  otherTabs.postMessage(sessionId);
  if (response.ok) {
    await watch(working, response);
    return;
  }
  const refusal = await refusalOf(response);
  finish(working);
  if (CONFLICTS.has(refusal.code) && !retry) {
    await giveWay(view);
  } else {
    view.failed({ message: refusal.message });
  }
}

// Another tab was faster: its turn comes first, and the message goes back to be sent again.
async function giveWay(view) {
  take(view);
  if (!field.value) field.value = view.message;
  resize();
  await refresh().catch(() => {});
}

// Somebody has deleted this chat, in another tab or elsewhere: nothing of it stays in sight.
function dropDeleted() {
  if (!lines.forget()) return;
  forgetChat(sessionId);
  draw();
  say("This chat was deleted.");
}

// Shows what the service knows of this session and this page does not.
async function refresh() {
  if (live || loading || isUnknown) return;
  loading = true;
  let inFlight = null;
  try {
    const response = await fetch(address());
    if (response.status === 404) {
      dropDeleted();
      return;
    }
    if (!response.ok) throw await refusalOf(response);
    const session = await response.json();
    if (live) return;
    lines.learn(session.turns);
    draw();
    for (const turn of lines.shown().filter(isLive)) {
      inFlight = views.get(keyOf(turn));
      inFlight.attempt = turn.attempt;
      inFlight.begun = Date.parse(turn.createdAt);
    }
    const [first] = lines.shown();
    if (first) rememberChat(sessionId, first.message ?? sessionId);
    await fill();
  } finally {
    loading = false;
  }
  say("");
  if (inFlight && !live) await watch(begin(inFlight));
}

async function stopUnanswered(view) {
  for (let tries = 0; tries < UNANSWERED_TRIES && !live; tries += 1) {
    const stopped = await fetch(turnAddress(view, "/stop"), { method: "POST" })
      .then((response) => response.ok)
      .catch(() => false);
    if (stopped) return;
    await pauseFor(500);
  }
}

async function stop() {
  const working = live;
  if (!working) return;
  stopButton.disabled = true;
  if (!working.accepted) {
    working.controller.abort();
    return;
  }
  for (; live === working; await pauseFor(1000)) {
    const stopped = await fetch(turnAddress(working.view, "/stop"), { method: "POST" })
      .then((response) => response.status < 500)
      .catch(() => false);
    if (stopped) return;
  }
}

// What a person does.

composer.addEventListener("submit", (event) => {
  event.preventDefault();
  const message = field.value.trim();
  if (!message || live) return;
  field.value = "";
  resize();
  field.focus();
  isAtEnd = true;
  const parent = lastAnswered();
  const view = place(nextIndex(), message, parent);
  if (view.index === 0) rememberChat(sessionId, message);
  submit(view);
});

field.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    composer.requestSubmit();
  }
});

function resize() {
  field.rows = 1;
  while (field.rows < 8 && field.scrollHeight > field.clientHeight) field.rows += 1;
  keepEndInSight();
}
field.addEventListener("input", resize);

stopButton.addEventListener("click", stop);

byId("new").addEventListener("click", () => {
  // An address without a hash is a load of its own, and no change of the hash besides.
  location.assign(location.pathname + location.search);
});

byId("starters").addEventListener("click", ({ target }) => {
  if (!(target instanceof HTMLButtonElement)) return;
  field.value = target.textContent;
  composer.requestSubmit();
});

byId("newest").addEventListener("click", () => {
  lines.backToNewest();
  draw();
  fill().catch(complain);
});

showChats(byId("chats"), byId("chat-list"), sessionId);
addEventListener("hashchange", () => location.reload());

// What others do: another tab, another device, another process.

function complain(error) {
  say(error instanceof Refused ? error.message : "The service does not answer.");
}
const look = () => refresh().catch(complain);
otherTabs.addEventListener("message", ({ data }) => {
  if (data === sessionId) look();
});
document.addEventListener("visibilitychange", look);
setInterval(() => document.hidden || look(), POLL_MS);
byId("starters").hidden = Boolean(named);
look();
