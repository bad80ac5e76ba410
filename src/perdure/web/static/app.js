// The chat page: one session, its turns, and whoever else writes to it.

import { recentChats, rememberChat } from "./chats.js";
import { Refused, follow, pauseFor, refusalOf } from "./stream.js";
import { TurnView, element } from "./turn.js";

const UNANSWERED_TRIES = 20;
const POLL_MS = 2000;
const SUBMIT_PAUSE_MAX_MS = 8000;
const NEAR_END_PX = 96;
const LIVE = new Set(["queued", "running", "sleeping", "waiting"]);
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
const turns = new Map();
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
const nextIndex = () => Math.max(-1, ...turns.keys()) + 1;

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

function place(index, message) {
  const view = new TurnView(index, message, {
    retry: (failed) => submit(failed, { retry: true }),
    grown: keepEndInSight,
  });
  const later = [...turns.values()].filter((other) => other.index > index);
  const next = later.sort((one, other) => one.index - other.index)[0];
  conversation.insertBefore(view.root, next ? next.root : null);
  turns.set(index, view);
  byId("starters").hidden = true;
  keepEndInSight();
  return view;
}

function take(view) {
  turns.delete(view.index);
  view.root.remove();
}

async function readTurn(view) {
  const response = await fetch(address(`/turns/${view.index}`));
  if (!response.ok) throw await refusalOf(response);
  return response.json();
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
        const stream = address(`/turns/${view.index}/stream?envelope=1${after}`);
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
  }
}

// Sends a turn. The same submit twice is one turn, so it is sent until there is an answer.
async function send(working, retry) {
  const { view, controller } = working;
  const request = {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ turnIndex: view.index, message: view.message, retry }),
    signal: controller.signal,
  };
  for (let pause = 500; ; pause = Math.min(2 * pause, SUBMIT_PAUSE_MAX_MS)) {
    let isBusy = false;
    try {
      const response = await fetch(address("/turns?envelope=1"), request);
      if (response.status !== 503 && response.status !== 429) return response;
      isBusy = response.status === 429;
    } catch (error) {
      if (controller.signal.aborted) throw error;
    }
    say(isBusy ? "The service is busy; trying again…" : "Reconnecting…");
    await pauseFor(pause);
  }
}

async function submit(view, { retry = false } = {}) {
  if (live) return;
  const working = begin(view);
  view.clearNotice();
  let response;
  try {
    response = await send(working, retry);
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

// Shows what the service knows of this session and this page does not.
async function refresh() {
  if (live || loading || isUnknown) return;
  loading = true;
  const changed = [];
  let inFlight = null;
  try {
    const response = await fetch(address());
    if (response.status === 404) return;
    if (!response.ok) throw await refusalOf(response);
    for (const turn of (await response.json()).turns) {
      if (live) return;
      const view = turns.get(turn.turnIndex) ?? place(turn.turnIndex, turn.message);
      if (LIVE.has(turn.state)) {
        inFlight = view;
        view.attempt = turn.attempt;
        view.begun = Date.parse(turn.createdAt);
      } else if (view.shown !== `${turn.state}/${turn.attempt}`) {
        changed.push(view);
      }
    }
    if (turns.has(0)) rememberChat(sessionId, turns.get(0).message ?? sessionId);
    await Promise.all(changed.map(async (view) => view.showWhole(await readTurn(view))));
  } finally {
    loading = false;
  }
  say("");
  if (inFlight && !live) await watch(begin(inFlight));
}

async function stopUnanswered(view) {
  for (let tries = 0; tries < UNANSWERED_TRIES && !live; tries += 1) {
    const stopped = await fetch(address(`/turns/${view.index}/stop`), { method: "POST" })
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
    const stopped = await fetch(address(`/turns/${working.view.index}/stop`), { method: "POST" })
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
  const view = place(nextIndex(), message);
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

const menu = byId("chats");
function listChats() {
  const links = recentChats().map(({ id, title }) => {
    const link = element("a", id === sessionId ? "current" : "", title || id);
    link.href = `#session=${encodeURIComponent(id)}`;
    return link;
  });
  const none = element("p", "", "No chats yet.");
  byId("chat-list").replaceChildren(...(links.length ? links : [none]));
}
menu.addEventListener("toggle", () => menu.open && listChats());
// The menu works without this script: somebody may have opened it already.
if (menu.open) listChats();

addEventListener("click", ({ target }) => {
  if (menu.open && !menu.contains(target)) menu.open = false;
});
addEventListener("keydown", ({ key }) => {
  if (key === "Escape") menu.open = false;
});
addEventListener("hashchange", () => location.reload());

// What others do: another tab, another device, another process.

const look = () =>
  refresh().catch((error) =>
    say(error instanceof Refused ? error.message : "The service does not answer."),
  );
otherTabs.addEventListener("message", ({ data }) => {
  if (data === sessionId) look();
});
document.addEventListener("visibilitychange", look);
setInterval(() => document.hidden || look(), POLL_MS);
byId("starters").hidden = Boolean(named);
look();
