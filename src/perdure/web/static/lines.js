// Which turns of a session stand on the page. A turn has revisions; each names the turn that it
// follows, so the turns are a tree, and a conversation is one line through it.

const LIVE = new Set(["queued", "running", "sleeping", "waiting"]);

export const keyOf = ({ turnIndex, revision }) => `${turnIndex}.${revision}`;
export const isLive = (turn) => LIVE.has(turn.state);

export class Lines {
  constructor() {
    this.turns = new Map();
    // Which of its siblings a person has chosen, by the place that they share.
    this.chosen = new Map();
    // What was just sent is chosen too, until the service goes on from it by itself.
    this.sent = new Set();
  }

  // Takes in what the service knows. What is only known here, because it was just sent, stays.
  learn(turns) {
    for (const turn of turns) {
      this.turns.set(keyOf(turn), turn);
      if (!turn.isCurrent || !this.sent.delete(keyOf(turn))) continue;
      const place = this.placeOf(turn);
      if (this.chosen.get(place) === keyOf(turn)) this.chosen.delete(place);
    }
  }

  // Forgets what the service knew, and says whether there was anything.
  forget() {
    const known = [...this.turns.values()].filter((turn) => turn.isCurrent !== undefined);
    for (const turn of known) this.remove(turn);
    return known.length > 0;
  }

  add(turn) {
    this.turns.set(keyOf(turn), turn);
    this.choose(turn);
    this.sent.add(keyOf(turn));
  }

  remove(turn) {
    this.turns.delete(keyOf(turn));
    this.chosen.delete(this.placeOf(turn));
  }

  choose(turn) {
    this.sent.delete(keyOf(turn));
    this.chosen.set(this.placeOf(turn), keyOf(turn));
  }

  // The revisions that stand for the same moment: of one index, behind the same parent.
  siblings(turn) {
    return this.byPlace().get(this.placeOf(turn));
  }

  // All turns, by the place that they share with their siblings, the oldest revision first.
  byPlace() {
    const places = new Map();
    for (const turn of this.turns.values()) {
      const place = this.placeOf(turn);
      if (!places.has(place)) places.set(place, []);
      places.get(place).push(turn);
    }
    for (const turns of places.values()) turns.sort((one, other) => one.revision - other.revision);
    return places;
  }

  // The line that is shown: at each place what was chosen, else what is live, else what the
  // service goes on from, else the newest.
  shown() {
    const children = new Map();
    for (const turn of this.turns.values()) {
      const parent = this.parentOf(turn);
      if (!children.has(parent)) children.set(parent, []);
      children.get(parent).push(turn);
    }
    const line = [];
    let parent = "";
    while (children.has(parent)) {
      const kids = children.get(parent);
      let next = null;
      for (const index of [...new Set(kids.map((turn) => turn.turnIndex))].sort((a, b) => a - b)) {
        const turn = this.pick(kids.filter((kid) => kid.turnIndex === index));
        line.push(turn);
        if (children.has(keyOf(turn))) next = keyOf(turn);
      }
      children.delete(parent);
      if (next === null) break;
      parent = next;
    }
    return line;
  }

  pick(siblings) {
    const chosen = this.chosen.get(this.placeOf(siblings[0]));
    const newest = [...siblings].sort((one, other) => other.revision - one.revision);
    return (
      newest.find((turn) => keyOf(turn) === chosen) ??
      newest.find(isLive) ??
      newest.find((turn) => turn.isCurrent) ??
      newest[0]
    );
  }

  // Whether the shown line is the one that the next message will follow, or is about to be.
  isNewest() {
    const line = this.shown();
    if (line.some((turn) => isLive(turn) || turn.isCurrent === undefined)) return true;
    const shown = new Set(line.map(keyOf));
    return [...this.turns.values()].every((turn) => !turn.isCurrent || shown.has(keyOf(turn)));
  }

  backToNewest() {
    this.chosen.clear();
  }

  // A free place for a message at `turnIndex`: a new revision if others stand there.
  place(turnIndex) {
    const taken = [...this.turns.values()].filter((turn) => turn.turnIndex === turnIndex);
    const revision = taken.length ? Math.max(...taken.map((turn) => turn.revision)) + 1 : 0;
    return { turnIndex, revision };
  }

  parentOf(turn) {
    if (turn.parent) return keyOf(turn.parent);
    // A turn that waits in line gets its parent when it begins.
    const before = [...this.turns.values()].filter(
      (other) => other.isCurrent && other.turnIndex < turn.turnIndex,
    );
    const last = before.sort((one, other) => other.turnIndex - one.turnIndex)[0];
    return last ? keyOf(last) : "";
  }

  placeOf(turn) {
    return `${this.parentOf(turn)}>${turn.turnIndex}`;
  }
}
