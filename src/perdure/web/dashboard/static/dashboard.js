// What the pages need beside htmx: JSON in requests, a dialog, and pieces that come anew in place.

"use strict";

const panel = document.getElementById("panel");
const trouble = document.getElementById("trouble");

// A body that no form of another site could send.
htmx.defineExtension("json", {
  onEvent(name, { detail }) {
    if (name === "htmx:configRequest") detail.headers["Content-Type"] = "application/json";
    return true;
  },
  encodeParameters(_, parameters) {
    return JSON.stringify(Object.fromEntries(parameters.entries()));
  },
});

// Moments are told in the time zone of whoever looks at them.
function localise(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    time.title = `${new Date(time.dateTime).toLocaleString()} (${time.dateTime})`;
  }
}

function showNewest(root) {
  for (const list of root.querySelectorAll("[data-end]")) list.scrollTop = list.scrollHeight;
}

// What a person has opened and scrolled stays so when the run comes anew.
let kept = null;

document.addEventListener("htmx:beforeSwap", ({ detail }) => {
  if (detail.target.id !== "run") return;
  const frames = document.getElementById("frames");
  kept = {
    open: [...detail.target.querySelectorAll("details[open][id]")].map(({ id }) => id),
    top: frames?.scrollTop,
    atEnd: !frames || frames.scrollHeight - frames.clientHeight - frames.scrollTop < 24,
  };
});

document.addEventListener("htmx:afterSettle", () => {
  const run = document.getElementById("run");
  if (!kept || !run) return;
  for (const id of kept.open) document.getElementById(id)?.setAttribute("open", "");
  const frames = document.getElementById("frames");
  if (frames) frames.scrollTop = kept.atEnd ? frames.scrollHeight : kept.top;
  kept = null;
});

document.addEventListener("htmx:afterSwap", ({ detail }) => {
  localise(document);
  if (detail.target.id !== "panel-body") return;
  if (!panel.open) panel.showModal();
  panel.querySelector("h1, h2")?.focus();
});

panel.addEventListener("click", ({ target }) => {
  if (target === panel) panel.close();
});

document.addEventListener("keydown", (event) => {
  // A link that acts as a button is pressed by the space bar too.
  if (event.key === " " && event.target.matches("a[role=button]")) {
    event.preventDefault();
    event.target.click();
  }
});

// Nobody looks at a hidden page.
document.addEventListener("htmx:beforeRequest", (event) => {
  if (document.hidden && event.detail.elt.matches("[data-poll]")) event.preventDefault();
});

document.addEventListener("htmx:sendError", () => (trouble.hidden = false));
document.addEventListener("htmx:afterOnLoad", () => (trouble.hidden = true));

localise(document);
showNewest(document);
