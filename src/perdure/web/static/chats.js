// The chats that this browser has seen lately, for the menu; a browser may keep none.

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
