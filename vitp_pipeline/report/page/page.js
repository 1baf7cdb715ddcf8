"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

/* Theme: the system's, until the button says otherwise. */
const THEMES = ["auto", "light", "dark"];
const remembered = (() => { try { return localStorage.getItem("vitp-theme"); } catch { return null; } })();
const themeButton = document.getElementById("theme");
let theme = THEMES.includes(remembered) ? remembered : "auto";
function showTheme() {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  themeButton.textContent = `Theme: ${theme}`;
}
themeButton.addEventListener("click", () => {
  theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  try { localStorage.setItem("vitp-theme", theme); } catch { /* a page from disk may have no storage */ }
  showTheme();
  repaintAll();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => repaintAll());
showTheme();

/* Charts: Plotly wants colors, not CSS variables, so these are looked up when a chart is drawn. */
function resolved(value) {
  if (typeof value === "string") return value.startsWith("var(") ? css(value.slice(4, -1)) : value;
  if (Array.isArray(value)) return value.map(resolved);
  if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, resolved(v)]));
  return value;
}
function themed(layout) {
  const axis = { gridcolor: css("--line"), zerolinecolor: css("--muted"), linecolor: css("--line"), fixedrange: true };
  const hover = { ...layout.hoverlabel, bgcolor: css("--card"), bordercolor: css("--line"), font: { color: css("--ink") } };
  const clear = "rgba(0,0,0,0)";
  return {
    ...resolved(layout), paper_bgcolor: clear, plot_bgcolor: clear, dragmode: false, hoverlabel: hover,
    font: { color: css("--ink"), family: "system-ui, sans-serif", size: 12.5 },
    xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis },
  };
}
const CONFIG = { responsive: true, displayModeBar: false };
const drawn = new Set();
const PAPER = 630; // pixels beside the margins of a sheet
function draw(element, printed = false) {
  const chart = DATA.charts[element.dataset.chart];
  drawn.add(element);
  const order = element.dataset.order ? JSON.parse(element.dataset.order) : null;
  const layout = themed(chart.layout);
  if (order) layout.yaxis = { ...layout.yaxis, categoryorder: "array", categoryarray: order };
  if (printed && element.clientWidth > PAPER) layout.width = PAPER;
  const first = !element.on;
  const done = Plotly.react(element, resolved(chart.data), layout, CONFIG);
  if (first) element.on("plotly_afterplot", () => linkTicks(element));
  linkTicks(element);
  return done;
}
/* Plotly keeps no address inside the page: it takes only https and the like. */
function linkTicks(element) {
  for (const text of element.querySelectorAll(".ytick text")) {
    const address = text.dataset.unformatted?.match(/href="(#[a-z]+-\d+)"/)?.[1];
    if (address) text.querySelector("a")?.setAttribute("href", address);
  }
}
const charts = [...document.querySelectorAll(".chart")];
const near = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) if (isIntersecting) { near.unobserve(target); draw(target); }
}, { rootMargin: "500px" });
for (const chart of charts) near.observe(chart);
const repaintCharts = () => { for (const chart of drawn) draw(chart); };
addEventListener("beforeprint", () => { for (const chart of charts) draw(chart, true); });
addEventListener("afterprint", repaintCharts);

/* Tables whose headers sort. Empty cells come last either way. */
function cellValue(row, column) {
  const cell = row.cells[column];
  if (cell.dataset.value !== undefined) return cell.dataset.value === "" ? null : Number(cell.dataset.value);
  return cell.textContent.trim();
}
for (const table of document.querySelectorAll("table.sortable")) {
  const headers = [...table.tHead.rows[0].cells];
  headers.forEach((header, column) => {
    header.querySelector("button")?.addEventListener("click", () => {
      const descending = header.getAttribute("aria-sort") !== "descending";
      for (const other of headers) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", descending ? "descending" : "ascending");
      const sign = descending ? -1 : 1;
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const x = cellValue(a, column), y = cellValue(b, column);
        if (x === null || y === null) return (x === null) - (y === null);
        return sign * (typeof x === "number" ? x - y : x.localeCompare(y));
      });
      table.tBodies[0].append(...rows);
    });
  });
}

/* Choices that show one of several blocks, alike wherever they stand. */
for (const select of document.querySelectorAll("select[data-switch]")) {
  select.addEventListener("change", () => {
    const name = select.dataset.switch;
    for (const other of document.querySelectorAll(`select[data-switch="${name}"]`)) other.value = select.value;
    for (const block of document.querySelectorAll(`[data-${name}]`)) block.hidden = block.dataset[name] !== select.value;
  });
}

/* Bars of the classes: which figure, in which order. */
const measure = document.getElementById("measure"), order = document.getElementById("order");
const bars = document.getElementById("class-bars");
const difference = (after, before) => (after === null || before === null ? null : after - before);
function orderClasses() {
  const names = DATA.classes.names, values = DATA.classes.measures[measure.value];
  const of = (variant, i) => values[variant]?.[i] ?? null;
  const keys = {
    gain: (i) => difference(of("fused", i), of("generator", i)),
    generator: (i) => of("generator", i),
    fused: (i) => of("fused", i),
    classifier: (i) => of("classifier", i),
    upper_bound: (i) => difference(of("upper_bound_mask", i), of(DATA.compared.at(-1), i)),
    pixels: (i) => DATA.classes.pixels[i],
    manifest: (i) => -i,
  };
  const name = order.value;
  if (name === "name") return [...names].sort((a, b) => a.localeCompare(b));
  const key = name === "harm" ? (i) => (keys.gain(i) === null ? null : -keys.gain(i)) : keys[name];
  const indices = names.map((_, i) => i).sort((a, b) => {
    const x = key(a), y = key(b);
    if (x === null || y === null) return (x === null) - (y === null) || a - b;
    return y - x || a - b;
  });
  return indices.map((i) => names[i]);
}
function showBars() {
  const shown = new Set(DATA.charts[`classes:${measure.value}`].data[0].y);
  bars.dataset.chart = `classes:${measure.value}`;
  bars.dataset.order = JSON.stringify(orderClasses().filter((name) => shown.has(name)));
  for (const table of document.querySelectorAll("[data-measure]")) table.hidden = table.dataset.measure !== measure.value;
  if (drawn.has(bars)) draw(bars);
}
if (bars) {
  measure.addEventListener("change", showBars);
  order.addEventListener("change", showBars);
  showBars();
}

let repaintGallery = () => {};
function repaintAll() { repaintCharts(); repaintGallery(); }
