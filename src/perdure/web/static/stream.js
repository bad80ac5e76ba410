// Reading a turn's stream: lines of {"id", "chunk"}, from any cursor, again after every break.

const PAUSE_MS = 500;
const PAUSE_MAX_MS = 8000;
const ENDS = new Set(["session.run.completed", "session.run.failed", "session.run.stopped"]);

export class Refused extends Error {
  constructor(status, error) {
    super(error.message);
    this.status = status;
    this.code = error.code;
    this.hint = error.hint;
  }
}

export async function refusalOf(response) {
  try {
    return new Refused(response.status, (await response.json()).error);
  } catch {
    return new Refused(response.status, { message: `The service answered ${response.status}.` });
  }
}

// Yields the parsed lines of a body. A line ends at "\n" and nowhere else.
async function* linesOf(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      rest += decoder.decode(value, { stream: true });
      const lines = rest.split("\n");
      rest = lines.pop();
      for (const line of lines) if (line) yield JSON.parse(line);
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

// Follows a turn to its end. `open(cursor)` fetches the stream behind a cursor (null: all of it);
// `show(event, cursor)` gets every event; `connection(text)` what a person should know.
export async function follow({ open, show, connection, signal, cursor = null }) {
  let pause = PAUSE_MS;
  for (;;) {
    try {
      const response = await open(cursor, signal);
      if (response.status === 204) return;
      if (!response.ok) throw await refusalOf(response);
      connection("");
      for await (const { id, chunk } of linesOf(response.body)) {
        pause = PAUSE_MS;
        if (id) cursor = id;
        if (!chunk) continue;
        show(chunk, cursor);
        if (ENDS.has(chunk.type)) return;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Refused && error.status < 500) throw error;
    }
    if (signal.aborted) return;
    connection("Reconnecting…");
    await new Promise((resolve) => setTimeout(resolve, pause));
    pause = Math.min(2 * pause, PAUSE_MAX_MS);
  }
}
