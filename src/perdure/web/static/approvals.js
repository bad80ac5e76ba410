// Calls of tools that wait for a human: what is asked, two answers, and the one that counted.

import { refusalOf } from "./stream.js";
import { button, element } from "./elements.js";

export const EVENTS = new Set(["tool_approval_request", "tool_approval"]);

export class Approvals {
  // `place` is where boxes go, `address` where decisions are sent.
  constructor(place, address) {
    this.place = place;
    this.address = address;
    this.boxes = new Map();
  }

  forget() {
    this.boxes.clear();
  }

  // Whether somebody is still asked.
  get isOpen() {
    return [...this.boxes.values()].some((box) => box.querySelector(".answers"));
  }

  show({ type, data }) {
    if (type === "tool_approval_request") this.ask(data);
    else this.settle(this.boxes.get(data.call), data);
  }

  ask({ event, call, tool, arguments: given }) {
    const box = element("section", "approval");
    const question = box.appendChild(element("p", "", "May "));
    question.append(element("code", "", tool), " be called?");
    box.appendChild(element("pre", "", JSON.stringify(given, null, 2)));
    const reason = element("input");
    reason.placeholder = "Reason, if you like";
    reason.setAttribute("aria-label", "Reason");
    reason.maxLength = 1000;
    const answers = box.appendChild(element("div", "answers"));
    for (const [label, approved] of [["Approve", true], ["Deny", false]]) {
      answers.append(button(label, () => this.decide(box, event, approved, reason.value.trim())));
    }
    answers.prepend(reason);
    box.appendChild(element("p", "decided")).setAttribute("role", "status");
    this.boxes.set(call, box);
    this.place.appendChild(box);
  }

  async decide(box, event, approved, reason) {
    const fields = box.querySelectorAll("button, input");
    for (const field of fields) field.disabled = true;
    try {
      const response = await fetch(this.address(), {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ event, approved, ...(reason && { reason }) }),
      });
      if (!response.ok) throw await refusalOf(response);
      const { decision } = await response.json();
      this.settle(box, decision ?? { approved: false, reason: "nobody decided in time" });
    } catch (error) {
      for (const field of fields) field.disabled = false;
      box.querySelector(".decided").textContent = error.message;
    }
  }

  settle(box, { approved, reason }) {
    if (!box) return;
    box.querySelector(".answers")?.remove();
    const told = approved ? "Approved" : "Denied";
    box.querySelector(".decided").textContent = reason ? `${told}: ${reason}` : told;
  }
}
