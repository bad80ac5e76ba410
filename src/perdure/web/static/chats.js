// The chats that this browser has seen lately, for the menu; a browser may keep none.

import { refusalOf } from "./stream.js";
import { button, element } from "./elements.js";

const KEY = "perdure.chats";
const KEPT = 20;

export function recentChats() {
  try {
    const kept = JSON.parse(localStorage.getItem(KEY) ?? "[]");
    return kept.filter(({ id, title }) => typeof id === "string" && typeof title === "string");
  } catch {
    return [];
  }
}

export function rememberChat(id, message) {
  const title = message.trim().split("\n")[0].slice(0, 80);
  const others = recentChats().filter((chat) => chat.id !== id);
  try {
    localStorage.setItem(KEY, JSON.stringify([{ id, title }, ...others].slice(0, KEPT)));
  } catch {
    // A full or forbidden storage costs the menu an entry, nothing else.
  }
}

export function forgetChat(id) {
  try {
    const left = recentChats().filter((chat) => chat.id !== id);
    localStorage.setItem(KEY, JSON.stringify(left));
  } catch {
    // As above.
  }
}

// The menu of chats: a link to each, and a way to delete it for good.
export function showChats(menu, list, sessionId) {
  function draw() {
    const rows = recentChats().map(({ id, title }) => {
      const row = element("div", id === sessionId ? "current" : "");
      const link = row.appendChild(element("a", "", title || id));
      link.href = `#session=${encodeURIComponent(id)}`;
      row.append(button("✕", () => erase(id, title || id), `Delete ${title || id}`));
      return row;
    });
    list.replaceChildren(...(rows.length ? rows : [element("p", "", "No chats yet.")]));
  }

  async function erase(id, title) {
    if (!confirm(`Delete “${title}” with everything in it? This cannot be undone.`)) return;
    const response = await fetch(`v1/sessions/${encodeURIComponent(id)}?stop=1`, {
      method: "DELETE",
    });
    if (!response.ok && response.status !== 404) {
      alert((await refusalOf(response)).message);
      return;
    }
    forgetChat(id);
    if (id === sessionId) location.hash = "";
    else draw();
  }

  menu.addEventListener("toggle", () => menu.open && draw());
  // The menu works without this script: somebody may have opened it already.
  if (menu.open) draw();
  addEventListener("click", ({ target }) => {
    if (menu.open && target.isConnected && !menu.contains(target)) menu.open = false;
  });
  addEventListener("keydown", ({ key }) => {
    if (key === "Escape") menu.open = false;
  });
}
