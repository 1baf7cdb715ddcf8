/* The gallery: cards are made at once, their pictures when they come near the screen, and let go when they leave. */
const NOTHING = 65535, COLORS = (DATA.classes?.colors ?? []), NAMES = DATA.classes?.names ?? [];
const tip = document.getElementById("tip");
let touched = null; // the card whose picture a finger touched last
addEventListener("pointerdown", (event) => { if (touched && !event.target.closest(".view")) touched.unmark(); });
const COMPARED = DATA.compared ?? [], SOURCES = DATA.sources ?? [], AFTER = COMPARED.at(-1);
const FUSES = COMPARED.length > 1; // else the masks have no class scores, and there is no before
const OUTCOMES = FUSES
  ? { righted: "corrected", wronged: "newly wrong", other: "changed, wrong before and after", unknown: "changed, no ground truth" }
  : { righted: "correct", wronged: "wrong", unknown: "no ground truth" };
const PANES = {
  ...(DATA.has_data ? { photo: "image", truth: "ground truth" } : {}),
  ...Object.fromEntries(COMPARED.map((name) => [name, name])),
  changed: FUSES ? "changed masks and their points" : "masks and their points",
};

const node = (tag, attributes = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...children);
  return made;
};
const share = (value) => `${(100 * value).toFixed(value < 0.1 ? 1 : 0)} %`;
const classes = (list) => list.filter(([, p], i) => i === 0 || p >= 0.005).map(([k, p]) => `${NAMES[k]} ${p.toFixed(2)}`).join(", ");
const changedMask = (mask) => !FUSES || mask.generator[0][0] !== mask.fused[0][0];
function outcome(mask) {
  if (mask.label === null) return "unknown";
  if (mask[AFTER][0][0] === mask.label) return "righted";
  return !FUSES || mask.generator[0][0] === mask.label ? "wronged" : "other";
}

class Card {
  constructor(content, number) {
    this.content = content;
    [this.height, this.width] = content.size;
    this.planes = null;
    this.element = node("article", { className: "card" });
    this.element.dataset.kind = content.kind;
    this.element.id = `image-${number}`;
    this.element.tabIndex = -1; // a link to it moves the focus, too
    this.element.append(this.heading(), this.paneGrid());
    this.chips = node("ul", { className: "chips" });
    this.element.append(this.chips, this.maskTable());
    this.element.addEventListener("pointerleave", (event) => this.leave(event));
  }

  heading() {
    const { kind, name, before, after, uncertainty } = this.content;
    const measured = before !== null && after !== null, gain = 100 * (after - before);
    const alone = after === null ? "–" : `${(100 * after).toFixed(1)} %`;
    const figures = [!FUSES ? `${DATA.accuracy_word} ${alone}` : measured ? `${DATA.accuracy_word} ${(100 * before).toFixed(1)} → ${(100 * after).toFixed(1)} % (${gain >= 0 ? "+" : "−"}${Math.abs(gain).toFixed(1)})` : `${DATA.accuracy_word} –`];
    if (uncertainty !== null) figures.push(`uncertainty ${uncertainty.toFixed(2)}`);
    return node("h3", {}, node("span", { className: `badge ${kind}` }, kind), node("span", {}, name), node("small", {}, figures.join(" · ")));
  }

  paneGrid() {
    const grid = node("div", { className: "panes" });
    grid.style.setProperty("--panes", Object.keys(PANES).length);
    this.canvases = {};
    this.images = [];
    for (const [pane, title] of Object.entries(PANES)) {
      const view = node("div", { className: "view" });
      view.style.aspectRatio = `${this.width} / ${this.height}`;
      if (this.content.photo) {
        const image = node("img", { alt: pane === "photo" ? `photograph ${this.content.name}` : "" });
        this.images.push(image);
        view.append(image);
      }
      const map = ["truth", ...COMPARED].includes(pane);
      const canvas = node("canvas", { className: map ? "map" : "" });
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `${title} of ${this.content.name}; the table below says the same in words`);
      this.canvases[pane] = canvas;
      view.append(canvas);
      view.addEventListener("pointermove", (event) => this.point(event, view));
      view.addEventListener("pointerdown", (event) => this.point(event, view));
      view.addEventListener("pointerleave", (event) => this.leave(event));
      view.addEventListener("pointercancel", () => this.unmark()); // the finger scrolls the page
      grid.append(node("figure", { className: `pane ${pane}` }, view, node("figcaption", {}, title)));
    }
    return grid;
  }

  maskTable() {
    const changed = this.content.masks.map((mask, i) => [mask, i]).filter(([mask]) => changedMask(mask));
    const count = (kind) => changed.filter(([mask]) => outcome(mask) === kind).length;
    const words = FUSES
      ? `${changed.length} of ${this.content.masks.length} masks changed their class: ${count("righted")} corrected, ${count("wronged")} newly wrong`
      : `${changed.length} masks: ${count("righted")} correct, ${count("wronged")} wrong`;
    const details = node("details", {}, node("summary", {}, words));
    const body = node("tbody");
    for (const [mask, i] of changed) {
      const truth = mask.label === null ? "–" : NAMES[mask.label];
      const kind = outcome(mask);
      const style = { righted: "up", wronged: "down" }[kind] ?? "alike";
      const cells = [`${mask.query}`, share(mask.area), truth, ...SOURCES.map((name) => classes(mask[name]))];
      const row = node("tr", { tabIndex: 0 }, ...cells.map((text, c) => node("td", { className: c > 1 ? "text" : "" }, text)), node("td", { className: `text ${style}` }, OUTCOMES[kind]));
      row.addEventListener("focus", () => this.mark(i));
      row.addEventListener("blur", () => this.unmark());
      row.addEventListener("pointerenter", () => this.mark(i));
      row.addEventListener("pointerleave", () => this.unmark());
      body.append(row);
    }
    const titles = ["mask", "area", "majority ground truth", ...SOURCES, ""];
    const head = node("thead", {}, node("tr", {}, ...titles.map((t, c) => node("th", { className: c > 1 ? "text" : "", scope: "col" }, t))));
    const wide = node("div", { className: "wide" }, node("table", {}, head, body));
    wide.tabIndex = 0;
    wide.setAttribute("role", "region");
    wide.setAttribute("aria-label", `${FUSES ? "changed " : ""}masks of ${this.content.name}`);
    details.append(wide);
    return details;
  }

  async load() {
    if (this.planes) return;
    const bytes = Uint8Array.from(atob(this.content.maps), (c) => c.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const all = new Uint16Array(await new Response(stream).arrayBuffer());
    const size = this.width * this.height;
    this.planes = {};
    ["truth", ...COMPARED, "top"].forEach((name, i) => { this.planes[name] = all.subarray(i * size, (i + 1) * size); });
    for (const image of this.images) image.src = `data:image/jpeg;base64,${this.content.photo}`;
    this.paint();
    this.showChips();
    this.element.dataset.loaded = "yes";
  }

  release() {
    if (!this.planes) return;
    this.planes = null;
    for (const image of this.images) image.removeAttribute("src");
    for (const canvas of Object.values(this.canvases)) canvas.width = canvas.height = 0;
    delete this.element.dataset.loaded;
  }

  paint(marked = null) {
    if (!this.planes) return;
    this.marked = marked;
    for (const [pane, canvas] of Object.entries(this.canvases)) {
      canvas.width = this.width;
      canvas.height = this.height;
      const pen = canvas.getContext("2d");
      const picture = pen.createImageData(this.width, this.height);
      const pixels = new Uint32Array(picture.data.buffer);
      if (pane === "changed") this.fillChanged(pixels);
      else if (pane !== "photo") this.fillClasses(pixels, this.planes[pane]);
      if (marked !== null) this.outline(pixels, marked);
      pen.putImageData(picture, 0, 0);
      if (pane === "changed" && marked === null) this.drawPoints(pen);
      else if (marked !== null) this.drawPoints(pen, marked);
    }
  }

  fillClasses(pixels, plane) {
    const packed = COLORS.map(([r, g, b]) => (255 << 24) | (b << 16) | (g << 8) | r);
    for (let i = 0; i < pixels.length; i++) if (plane[i] !== NOTHING) pixels[i] = packed[plane[i]];
  }

  fillChanged(pixels) {
    const colors = outcomeColors();
    const packed = this.content.masks.map((mask) => (changedMask(mask) ? pack(colors[outcome(mask)], 170) : 0));
    const top = this.planes.top;
    for (let i = 0; i < pixels.length; i++) if (top[i] !== NOTHING) pixels[i] = packed[top[i]];
  }

  outline(pixels, marked) {
    const top = this.planes.top, { width, height } = this;
    for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
      const i = y * width + x;
      if (top[i] !== marked) continue;
      const edge = x === 0 || y === 0 || x === width - 1 || y === height - 1
        || top[i - 1] !== marked || top[i + 1] !== marked || top[i - width] !== marked || top[i + width] !== marked;
      if (!edge) continue;
      for (const j of [i, i + 1, i + width]) if (j < pixels.length) pixels[j] = 0xffffffff;
      for (const j of [i - 1, i - width]) if (j >= 0 && top[j] !== marked) pixels[j] = 0xff000000;
    }
  }

  drawPoints(pen, only = null) {
    const colors = outcomeColors();
    this.content.masks.forEach((mask, i) => {
      if (only === null ? !changedMask(mask) : i !== only) return;
      const points = only === null ? mask.points.slice(0, 1) : mask.points;
      const radius = points.length > 1 ? 4 : 6;
      for (const [row, col] of points) {
        pen.beginPath();
        pen.arc(col * this.width, row * this.height, radius, 0, 2 * Math.PI);
        pen.fillStyle = changedMask(mask) ? colors[outcome(mask)] : "#333333";
        pen.fill();
        pen.lineWidth = 1.5;
        pen.strokeStyle = "#ffffff";
        pen.stroke();
      }
    });
  }

  showChips() {
    const counts = new Map();
    for (const name of ["truth", AFTER]) for (const k of this.planes[name]) if (k !== NOTHING) counts.set(k, (counts.get(k) ?? 0) + 1);
    const largest = [...counts].sort((a, b) => b[1] - a[1]).slice(0, 10);
    this.chips.replaceChildren(...largest.map(([k]) => {
      const chip = node("span", { className: "chip" });
      chip.style.background = `rgb(${COLORS[k].join(",")})`;
      return node("li", {}, chip, NAMES[k]);
    }));
  }

  point(event, view) {
    if (!this.planes) return;
    if (touched && touched !== this) touched.unmark();
    touched = event.pointerType === "touch" ? this : null;
    const box = view.getBoundingClientRect();
    const x = Math.floor(((event.clientX - box.left) / box.width) * this.width);
    const y = Math.floor(((event.clientY - box.top) / box.height) * this.height);
    if (x < 0 || y < 0 || x >= this.width || y >= this.height) return;
    const i = y * this.width + x, top = this.planes.top[i];
    const marked = top === NOTHING ? null : top;
    if (marked !== this.marked) this.paint(marked);
    this.showTip(marked, i, event.clientX, event.clientY);
  }

  showTip(marked, i, x, y) {
    const lines = [];
    const word = (plane) => (this.planes[plane][i] === NOTHING ? "–" : NAMES[this.planes[plane][i]]);
    if (marked !== null) {
      const mask = this.content.masks[marked];
      const truth = mask.label === null ? "–" : NAMES[mask.label];
      lines.push(node("b", {}, `mask ${mask.query}: ${COMPARED.map((name) => NAMES[mask[name][0][0]]).join(" → ")}`));
      lines.push(node("div", {}, `majority ground truth: ${truth}`));
      const said = { generator: "before (generator)", fused: "after (fused)" };
      for (const name of SOURCES) lines.push(node("div", {}, `${said[name] ?? name}: ${classes(mask[name])}`));
      lines.push(node("div", {}, `${share(mask.area)} of the image, 1 − v = ${mask.objectness.toFixed(2)}`));
    }
    const here = DATA.has_data ? [`ground truth ${word("truth")}`] : [];
    lines.push(node("div", { className: "hint" }, `this pixel: ${[...here, ...COMPARED.map((name) => `${name} ${word(name)}`)].join(" · ")}`));
    tip.replaceChildren(...lines);
    tip.hidden = false;
    const { width, height } = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(x + 16, innerWidth - width - 8))}px`;
    tip.style.top = `${y + 18 + height > innerHeight ? Math.max(4, y - height - 14) : y + 18}px`;
  }

  /* A finger that is lifted leaves what it showed, until the next tap. */
  leave(event) { if (event.pointerType !== "touch") this.unmark(); }
  mark(i) { this.paint(i); }
  unmark() { tip.hidden = true; if (this.marked !== null) this.paint(); }
}
const outcomeColors = () => ({ righted: css("--gain"), wronged: css("--harm"), other: css("--other"), unknown: css("--generator") });
function pack(hex, alpha) {
  const value = parseInt(hex.slice(1), 16);
  return (alpha << 24) | ((value & 255) << 16) | (((value >> 8) & 255) << 8) | (value >> 16);
}

const place = document.getElementById("cards");
if (place) {
  const cards = DATA.gallery.map((content, number) => new Card(content, number));
  const of = new Map(cards.map((card) => [card.element, card]));
  place.append(...cards.map((card) => card.element));
  const nearby = new Set();
  let printing = false;
  const seen = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      const card = of.get(target);
      if (isIntersecting) { nearby.add(card); card.load(); } else { nearby.delete(card); if (!printing) card.release(); }
    }
  }, { rootMargin: "800px" });
  for (const card of cards) seen.observe(card.element);
  repaintGallery = () => { for (const card of cards) card.paint(); };

  const byClass = document.getElementById("by-class"), onlyChanged = document.getElementById("only-changed");
  const said = document.getElementById("shown");
  const filter = () => {
    const kind = document.querySelector("input[name=kind]:checked").value;
    const wanted = byClass.value === "" ? null : Number(byClass.value);
    let count = 0;
    for (const { content, element } of cards) {
      const has = wanted === null || (onlyChanged.checked ? content.changed : content.classes).includes(wanted);
      element.hidden = !(has && (kind === "all" || content.kind === kind));
      count += !element.hidden;
    }
    said.textContent = `${count} of ${cards.length} images`;
  };
  byClass.addEventListener("change", filter);
  onlyChanged.addEventListener("change", filter);
  for (const radio of document.querySelectorAll("input[name=kind]")) radio.addEventListener("change", filter);
  document.getElementById("strength").addEventListener("input", (event) => {
    place.style.setProperty("--strength", event.target.value);
  });
  filter();

  /* Links from the rest of the page: #class-3 shows the images of a class, #image-5 one of the images. */
  const follow = () => {
    const [, kind, number] = location.hash.match(/^#(class|image)-(\d+)$/) ?? [];
    if (!kind) return;
    document.querySelector("input[name=kind][value=all]").checked = true;
    onlyChanged.checked = false;
    byClass.value = kind === "class" ? number : "";
    filter();
    const target = kind === "class" ? document.getElementById("gallery") : cards[number]?.element;
    target?.scrollIntoView();
    (kind === "class" ? byClass : target)?.focus({ preventScroll: true });
  };
  addEventListener("hashchange", follow);
  document.addEventListener("click", (event) => { // the same link twice changes no address
    const link = event.target.closest?.("a");
    const address = link?.getAttribute("href") ?? link?.getAttribute("xlink:href");
    if (address && address === location.hash) follow();
  });
  follow();

  /* A browser that prints waits for nothing, and pictures take a moment: this button draws all of them before. */
  document.getElementById("print").addEventListener("click", async () => {
    printing = true;
    document.documentElement.classList.add("whole");
    const shown = cards.filter((card) => !card.element.hidden);
    try {
      await Promise.all(shown.map((card) => card.load()));
      await Promise.all(shown.flatMap((card) => card.images).map((image) => image.decode()));
      print();
    } finally {
      printing = false;
      document.documentElement.classList.remove("whole");
      for (const card of cards) if (!nearby.has(card)) card.release();
    }
  });
}
