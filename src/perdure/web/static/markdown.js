// Markdown as it comes. What a model says is hostile: it is parsed into tokens, and of those only
// the tags, classes and addresses below become elements; there is no HTML in between.

import MarkdownIt from "./vendor/markdown-it.mjs";

const TAGS = new Set(
  "p h1 h2 h3 h4 h5 h6 ul ol li blockquote table thead tbody tr th td strong em s a".split(" "),
);
const ADDRESS = /^(https?:|mailto:)/i;
const ALIGNED = /text-align:(left|center|right)/;
const SHORT_BYTES = 20_000;
const PAUSE_MS = 250;

// Images are left out: an address in an answer would tell somebody that it was read, and of what.
const parser = new MarkdownIt({ html: false, linkify: true, breaks: true }).disable("image");

function make(token) {
  const made = document.createElement(TAGS.has(token.tag) ? token.tag : "span");
  const address = token.attrGet("href");
  if (address && ADDRESS.test(address)) {
    made.href = address;
    made.target = "_blank";
    made.rel = "noopener noreferrer nofollow";
  }
  const start = Number(token.attrGet("start"));
  if (start && token.tag === "ol") made.start = start;
  const aligned = ALIGNED.exec(token.attrGet("style") ?? "");
  if (aligned) made.className = aligned[1];
  return made;
}

function codeBlock(token) {
  const box = document.createElement("div");
  box.className = "code";
  const language = token.info?.trim().split(/\s+/)[0] ?? "";
  const bar = box.appendChild(document.createElement("div"));
  bar.appendChild(document.createElement("span")).textContent = language;
  const copy = bar.appendChild(document.createElement("button"));
  copy.type = "button";
  copy.textContent = "Copy";
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(token.content);
    copy.textContent = "Copied";
    setTimeout(() => (copy.textContent = "Copy"), 1500);
  });
  const pre = box.appendChild(document.createElement("pre"));
  pre.tabIndex = 0;
  pre.appendChild(document.createElement("code")).textContent = token.content.trimEnd();
  return box;
}

function leaf(token) {
  switch (token.type) {
    case "fence":
    case "code_block":
      return codeBlock(token);
    case "code_inline": {
      const code = document.createElement("code");
      code.textContent = token.content;
      return code;
    }
    case "hardbreak":
    case "softbreak":
      return document.createElement("br");
    case "hr":
      return document.createElement("hr");
    default:
      return document.createTextNode(token.content);
  }
}

// Appends what `tokens` stand for to `parent`.
function build(tokens, parent) {
  const open = [parent];
  for (const token of tokens) {
    const inner = open[open.length - 1];
    if (token.hidden) continue;
    if (token.nesting === 1) {
      open.push(inner.appendChild(make(token)));
    } else if (token.nesting === -1) {
      if (open.length > 1) open.pop();
    } else if (token.type === "inline") {
      build(token.children, inner);
    } else {
      inner.append(leaf(token));
    }
  }
}

// Splits tokens into the blocks of the outermost level, each with the lines it was made of.
function blocksOf(tokens, lines) {
  const blocks = [];
  let depth = 0;
  for (const token of tokens) {
    if (depth === 0) {
      const [from, to] = token.map ?? [0, 0];
      blocks.push({ key: `${token.type}\n${lines.slice(from, to).join("\n")}`, tokens: [] });
    }
    blocks[blocks.length - 1].tokens.push(token);
    depth += token.nesting;
  }
  return blocks;
}

// A text that grows. Blocks that stay as they are keep their elements, and with them what a person
// has selected or scrolled in them.
export class MarkdownView {
  constructor(root, grown) {
    this.root = root;
    this.grown = grown;
    this.source = "";
    this.keys = [];
    this.waiting = false;
    this.drawn = 0;
  }

  append(delta) {
    this.source += delta;
    this.later();
  }

  set(text) {
    this.source = text;
    this.draw();
  }

  // Draws all of it once more, now that it is whole: a link may be defined behind its use.
  finish() {
    this.keys = [];
    this.draw();
  }

  later() {
    if (this.waiting) return;
    this.waiting = true;
    const short = this.source.length < SHORT_BYTES;
    const pause = short ? 0 : Math.max(0, this.drawn + PAUSE_MS - performance.now());
    const draw = () => {
      this.waiting = false;
      this.draw();
    };
    // A page in the background is drawn too, if more seldom: it may be read by a test or a tool.
    if (pause || document.hidden) setTimeout(draw, pause);
    else requestAnimationFrame(draw);
  }

  draw() {
    this.drawn = performance.now();
    const blocks = blocksOf(parser.parse(this.source, {}), this.source.split("\n"));
    let same = 0;
    while (same < this.keys.length && this.keys[same] === blocks[same]?.key) same += 1;
    while (this.root.childNodes.length > same) this.root.lastChild.remove();
    for (const block of blocks.slice(same)) {
      const made = document.createDocumentFragment();
      build(block.tokens, made);
      // One element for each block, so that they can be counted.
      if (made.childNodes.length === 1) this.root.append(made);
      else this.root.appendChild(document.createElement("div")).append(made);
    }
    this.keys = blocks.map(({ key }) => key);
    this.grown();
  }
}
