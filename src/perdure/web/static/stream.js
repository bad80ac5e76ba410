// Reading a turn's stream: lines of {"id", "chunk"}, from any cursor, again after every break.

const PAUSE_MS = 500;
const PAUSE_MAX_MS = 8000;
// The service sends a heartbeat every 15 s: behind a longer silence there is no connection.
const SILENCE_MS = 40000;
const ENDS = new Set(["session.run.completed", "session.run.failed", "session.run.stopped"]);
const CURSOR_IS_USELESS = new Set(["bad_cursor", "frames_expired"]);

export class Refused extends Error {
  constructor(status, { code, message, hint }) {
    super(hint ? `${message} ${hint}` : message);
    this.status = status;
    this.code = code;
  }
}

export async function refusalOf(response) {
  try {
    return new Refused(response.status, (await response.json()).error);
  } catch {
    return new Refused(response.status, { message: `The service answered ${response.status}.` });
  }
}

// Waits, but not longer than until the network is back.
export function pauseFor(ms) {
  return new Promise((resolve) => {
    const timer = setTimeout(done, ms);
    addEventListener("online", done);
    function done() {
      clearTimeout(timer);
      removeEventListener("online", done);
      resolve();
    }
  });
}

// Posts a body until there is an answer: the same submit twice is one turn. An abort throws.
export async function ask({ url, body, connection, signal }) {
  const request = {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  };
  for (let pause = PAUSE_MS; ; pause = Math.min(2 * pause, PAUSE_MAX_MS)) {
    let isBusy = false;
    try {
      const response = await fetch(url, request);
      if (response.status !== 503 && response.status !== 429) return response;
      isBusy = response.status === 429;
    } catch (error) {
      if (signal.aborted) throw error;
    }
    connection(isBusy ? "The service is busy; trying again…" : "Reconnecting…");
    await pauseFor(pause);
  }
}

// Yields the parsed lines of a body. A line ends at "\n" and nowhere else.
async function* linesOf(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  let silence;
  const hear = () => {
    clearTimeout(silence);
    silence = setTimeout(() => reader.cancel(), SILENCE_MS);
  };
  try {
    for (;;) {
      hear();
      const { done, value } = await reader.read();
      if (done) return;
      const lines = (rest + decoder.decode(value, { stream: true })).split("\n");
      rest = lines.pop();
      for (const line of lines) if (line) yield JSON.parse(line);
    }
  } finally {
    clearTimeout(silence);
    reader.cancel().catch(() => {});
  }
}

// Follows a turn to its end. `open(cursor)` fetches the stream behind a cursor (null: all of it);
// `show(event)` gets every event once and in order; `connection(text)` what a person should know.
// Throws Refused where trying again is of no use.
export async function follow({ open, show, connection, signal }) {
  let cursor = null;
  let pause = PAUSE_MS;
  while (!signal.aborted) {
    try {
      const response = await open(cursor);
      if (response.status === 204) return;
      if (!response.ok) throw await refusalOf(response);
      connection("");
      for await (const { id, chunk } of linesOf(response.body)) {
        pause = PAUSE_MS;
        if (id) cursor = id;
        if (!chunk) continue;
        show(chunk);
        if (ENDS.has(chunk.type)) return;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (cursor && CURSOR_IS_USELESS.has(error.code)) {
        cursor = null;
        continue;
      }
      if (error instanceof Refused && error.status < 500 && error.status !== 429) throw error;
    }
    connection("Reconnecting…");
    await pauseFor(pause);
    pause = Math.min(2 * pause, PAUSE_MAX_MS);
  }
}
