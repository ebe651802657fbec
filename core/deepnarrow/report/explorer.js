// The explorer: reads the page's own data and draws with textContent and attributes only, so a name
// stays text whatever it holds. No library, no address, nothing loaded.
(() => {
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const section = document.getElementById("explorer");
const form = section.querySelector("form");
const panels = section.querySelector(".panels");
const details = section.querySelector(".details");
const blank = section.querySelector("svg"); // its namespace, so that the page holds no address
const HEIGHT = 400, LEFT = 62, RIGHT = 16, TOP = 14, BOTTOM = 46, REACH = 28;
const COSTS = data.axes.map((a, i) => i).filter(i => data.axes[i].kind === "cost");
const QUALITIES = data.axes.map((a, i) => i).filter(i => data.axes[i].kind === "quality");
const state = { x: 0, y: 0, xLog: true, yLog: false, domains: new Set(), operators: new Set() };
let drawn = []; // one a panel: { domain, svg, points, selected, mark }
let named = null; // the shape that is named, whatever is drawn anew

// --- small helpers ------------------------------------------------------------------------------
function make(tag, attributes, text) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

function draw(tag, attributes, parent, text) {
  const element = document.createElementNS(blank.namespaceURI, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  if (parent) parent.appendChild(element);
  return element;
}

function digits(value, count) {
  return String(Number(value.toPrecision(count)));
}

function show(value, axis) {
  if (value === null || value === undefined) return "–";
  if (axis.unit === "s") return Math.abs(value) < 1 ? digits(value * 1e3, 3) + " ms"
    : digits(value, 3) + " s";
  if (axis.kind === "quality") return digits(value, 4);
  for (const [size, mark] of [[1e15, "P"], [1e12, "T"], [1e9, axis.unit === "params" ? "B" : "G"],
                              [1e6, "M"], [1e3, "k"]]) {
    if (Math.abs(value) >= size * 0.9995) return digits(value / size, 3) + mark
      + (axis.unit === "B" ? "B" : "");
  }
  return digits(value, 3);
}

function ticks(low, high, log) {
  if (log) {
    const first = Math.floor(Math.log10(low)), last = Math.ceil(Math.log10(high));
    for (const steps of [[1], [1, 3], [1, 2, 5], [1, 2, 3, 4, 6, 8]]) {
      const found = [];
      for (let d = first; d <= last; d++) for (const m of steps) {
        const value = Number(m + "e" + d);
        if (value >= low && value <= high) found.push(value);
      }
      const stride = Math.ceil(found.length / 7);
      if (found.length >= 3) return found.filter((_, i) => i % stride === 0);
    }
  }
  let step = Math.pow(10, Math.floor(Math.log10(high - low)));
  while ((high - low) / step < 4) step /= 2;
  while ((high - low) / step > 7) step *= 2;
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high; i++) found.push(Number((i * step).toPrecision(6)));
  return found;
}

function scale(values, from, to, log) {
  let low = Math.min(...values), high = Math.max(...values);
  if (log) {
    const room = Math.max(Math.pow(high / low, 0.06), 1.05);
    low /= room; high *= room;
  } else {
    const room = (high - low) * 0.06 || Math.abs(high) * 0.05 || 1;
    low -= room; high += room;
  }
  const turn = log ? Math.log : v => v;
  const span = turn(high) - turn(low);
  const place = value => from + (turn(value) - turn(low)) / span * (to - from);
  return { place, low, high, ticks: ticks(low, high, log) };
}

// --- what is shown ------------------------------------------------------------------------------
function chosen(domain) {
  const points = [];
  let hidden = 0;
  const missing = new Map(); // by axis: shapes without a value there
  for (const shape of domain.shapes) {
    if (!state.operators.has(shape.operator)) { hidden++; continue; }
    const x = shape.values[state.x], y = shape.values[state.y];
    const bad = [];
    for (const [value, log, axis] of [[x, state.xLog, state.x], [y, state.yLog, state.y]]) {
      if (!value) bad.push("without " + data.axes[axis].title);
      else if (log && value[0] <= 0) bad.push("not above 0 in " + data.axes[axis].title);
    }
    for (const words of bad) missing.set(words, (missing.get(words) || 0) + 1);
    if (bad.length) continue;
    points.push({ shape, x: x[0], y: y[0], sd: y[1], seeds: y[2], front: false });
  }
  points.sort((a, b) => a.x - b.x || a.y - b.y || (a.shape.name < b.shape.name ? -1 : 1));
  if (data.axes[state.x].kind === "cost") markFront(points);
  return { points, hidden, missing };
}

function markFront(points) {
  const sign = data.axes[state.y].better === "max" ? 1 : -1;
  let best = -Infinity;
  for (let i = 0; i < points.length;) {
    let end = i, top = -Infinity;
    while (end < points.length && points[end].x === points[i].x) top = Math.max(top, sign * points[end++].y);
    for (let k = i; k < end; k++) points[k].front = sign * points[k].y === top && top > best;
    best = Math.max(best, top);
    i = end;
  }
}

// --- drawing ------------------------------------------------------------------------------------
function redraw() {
  const open = data.domains.filter((_, i) => state.domains.has(i));
  panels.replaceChildren();
  const figures = open.map(() => make("figure"));
  panels.append(...figures);
  drawn = open.map((domain, i) => panel(domain, figures[i]));
  if (!open.length) panels.append(make("p", { class: "empty" }, "No modality is chosen."));
  details.replaceChildren(make("p", { class: "note" },
    "Hover over, tap or focus the chart (then arrow keys) to name a shape."));
  for (const chart of drawn) {
    const i = chart.points.findIndex(p => p.shape === named);
    if (i >= 0) select(chart, i);
  }
}

function panel(domain, figure) {
  const caption = make("figcaption", {}, domain.name || "all rows");
  figure.append(caption);
  const found = chosen(domain);
  const counts = [found.points.length + " shapes"];
  if (found.hidden) counts.push(found.hidden + " filtered out");
  for (const [words, n] of found.missing) counts.push(n + " " + words);
  caption.append(make("span", { class: "sub" }, counts.join(", ")));
  const chart = { domain, points: found.points, selected: -1, svg: null, mark: null };
  if (!found.points.length) {
    figure.append(make("p", { class: "empty" }, "Nothing to draw: not measured here, or filtered out."));
    return chart;
  }
  const width = Math.max(280, Math.floor(figure.clientWidth));
  const xAxis = data.axes[state.x], yAxis = data.axes[state.y];
  const svg = draw("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, tabindex: "0",
    role: "application", "aria-label": `${domain.name}: ${yAxis.title} against ${xAxis.title}, `
      + `${found.points.length} shapes; arrow keys move from shape to shape` });
  const ends = found.points.flatMap(p => {
    const low = p.y - (p.sd || 0);
    return [state.yLog && low <= 0 ? p.y : low, p.y + (p.sd || 0)];
  });
  const raw = domain.raw[state.y];
  if (raw !== undefined && !(state.yLog && raw <= 0)) ends.push(raw);
  const x = scale(found.points.map(p => p.x), LEFT, width - RIGHT, state.xLog);
  const y = scale(ends, HEIGHT - BOTTOM, TOP, state.yLog);
  axes(svg, x, y, width, xAxis, yAxis);
  if (raw !== undefined && ends.includes(raw)) rawLine(svg, y.place(raw), width);
  for (const p of found.points) { p.px = x.place(p.x); p.py = y.place(p.y); }
  frontLine(svg, found.points.filter(p => p.front));
  for (const p of found.points) if (p.sd) {
    const low = state.yLog && p.y - p.sd <= 0 ? y.low : p.y - p.sd;
    draw("path", { class: p.front ? "bar front" : "bar",
      d: `M${p.px} ${y.place(low)}V${y.place(p.y + p.sd)}` }, svg);
  }
  for (const front of [false, true]) for (const p of found.points) if (p.front === front) {
    draw("circle", { class: front ? "point front" : "point", cx: p.px, cy: p.py, r: 4.5 }, svg);
  }
  names(svg, found.points, width);
  chart.svg = svg;
  chart.mark = draw("g", { class: "mark" }, svg);
  figure.append(svg);
  listen(chart, width);
  return chart;
}

function axes(svg, x, y, width, xAxis, yAxis) {
  for (const value of x.ticks) {
    const place = x.place(value);
    draw("path", { class: "grid", d: `M${place} ${TOP}V${HEIGHT - BOTTOM}` }, svg);
    draw("text", { x: place, y: HEIGHT - BOTTOM + 16, "text-anchor": "middle" }, svg, show(value, xAxis));
  }
  for (const value of y.ticks) {
    const place = y.place(value);
    draw("path", { class: "grid", d: `M${LEFT} ${place}H${width - RIGHT}` }, svg);
    draw("text", { x: LEFT - 7, y: place + 4, "text-anchor": "end" }, svg, show(value, yAxis));
  }
  const better = axis => axis.better === "min" ? "lower is better" : "higher is better";
  const short = (axis, room) => {
    const whole = `${axis.title} (${better(axis)})`;
    const limit = Math.floor(room / 6.4);
    const cut = axis.title.length <= limit ? axis.title : axis.title.slice(0, limit - 1) + "…";
    return whole.length <= limit ? whole : cut;
  };
  draw("text", { class: "title", x: (LEFT + width - RIGHT) / 2, y: HEIGHT - 8,
    "text-anchor": "middle" }, svg, short(xAxis, width - LEFT - RIGHT));
  draw("text", { class: "title", "text-anchor": "middle",
    transform: `translate(13 ${(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)` }, svg,
    short(yAxis, HEIGHT - TOP - BOTTOM));
}

// Below it, features are worse than the inputs themselves.
function rawLine(svg, place, width) {
  draw("path", { class: "raw", d: `M${LEFT} ${place}H${width - RIGHT}` }, svg);
  draw("text", { class: "raw", x: width - RIGHT - 3, y: place - 5, "text-anchor": "end" }, svg, "raw inputs");
}

function frontLine(svg, front) {
  if (front.length < 2) return;
  let d = `M${front[0].px} ${front[0].py}`;
  for (const p of front.slice(1)) d += `H${p.px}V${p.py}`;
  draw("path", { class: "line", d }, svg);
}

// Names beside points on the front, where one fits without covering another name or point.
function names(svg, points, width) {
  const taken = points.map(p => [p.px - 5, p.py - 5, p.px + 5, p.py + 5]);
  for (const p of points) {
    if (!(p.front || points.length <= 16)) continue;
    const name = p.shape.name.length > 24 ? p.shape.name.slice(0, 23) + "…" : p.shape.name;
    const length = name.length * 6.3;
    for (const [dx, dy, anchor] of [[8, 4, "start"], [-8, 4, "end"], [6, -9, "start"],
                                    [-6, -9, "end"], [6, 17, "start"], [-6, 17, "end"]]) {
      const left = p.px + dx - (anchor === "end" ? length : 0);
      const box = [left, p.py + dy - 10, left + length, p.py + dy + 3];
      const fits = box[0] > LEFT && box[2] < width - 2 && box[1] > TOP && box[3] < HEIGHT - BOTTOM;
      if (!fits || taken.some(o => box[0] < o[2] && o[0] < box[2] && box[1] < o[3] && o[1] < box[3])) continue;
      taken.push(box);
      draw("text", { class: p.front ? "name front" : "name", x: p.px + dx, y: p.py + dy,
        "text-anchor": anchor }, svg, name);
      break;
    }
  }
}

// --- naming a shape -----------------------------------------------------------------------------
function listen(chart, width) {
  const nearest = event => {
    const box = chart.svg.getBoundingClientRect();
    const px = (event.clientX - box.left) * width / box.width;
    const py = (event.clientY - box.top) * HEIGHT / box.height;
    let best = -1, least = REACH * REACH;
    chart.points.forEach((p, i) => {
      const distance = (p.px - px) ** 2 + (p.py - py) ** 2;
      if (distance < least) { best = i; least = distance; }
    });
    return best;
  };
  const point = event => { const i = nearest(event); if (i >= 0) select(chart, i); };
  chart.svg.addEventListener("pointermove", point);
  chart.svg.addEventListener("pointerdown", point);
  chart.svg.addEventListener("focus", () => { if (chart.selected < 0) select(chart, 0); });
  chart.svg.addEventListener("keydown", event => {
    const last = chart.points.length - 1, i = chart.selected;
    const next = { ArrowRight: i + 1, ArrowDown: i + 1, ArrowLeft: i - 1, ArrowUp: i - 1, Home: 0,
      End: last }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    select(chart, Math.min(Math.max(next, 0), last));
  });
}

function select(chart, i) {
  if (chart.selected === i && chart.mark.childNodes.length) return;
  for (const other of drawn) if (other.mark) { other.mark.replaceChildren(); if (other !== chart) other.selected = -1; }
  chart.selected = i;
  const p = chart.points[i];
  named = p.shape;
  draw("circle", { cx: p.px, cy: p.py, r: 8.5 }, chart.mark);
  const xAxis = data.axes[state.x], yAxis = data.axes[state.y];
  const heading = make("h3", {}, p.shape.name);
  const list = make("dl", { class: "facts" });
  const fact = (name, value) => list.append(make("dt", {}, name), make("dd", {}, value));
  if (chart.domain.name) fact("Modality", chart.domain.name);
  fact("Operator", p.shape.operator || "none: reference family");
  fact(xAxis.title, show(p.x, xAxis));
  fact(yAxis.title, show(p.y, yAxis) + (p.sd ? " ± " + digits(p.sd, 2) : "")
    + ` (${p.seeds} seed${p.seeds === 1 ? "" : "s"})`);
  if (xAxis.kind === "cost") {
    fact("Here", p.front ? "on the front of the shapes shown" : "dominated by a shape shown");
    const share = p.shape.membership[xAxis.id + "|" + yAxis.id];
    if (share !== undefined) fact("Membership", Math.round(share * 100)
      + "% to be on the front of the true means, of all shapes");
  }
  const trials = make("dd");
  p.shape.trials.forEach(([key, seed, anchor], k) => {
    if (k) trials.append(", ");
    const words = `seed ${seed}: ${key}`;
    trials.append(anchor ? make("a", { href: "#" + anchor }, words) : words);
  });
  list.append(make("dt", {}, "Trials"), trials);
  const row = make("a", { href: "#" + p.shape.anchor }, "all its numbers");
  details.replaceChildren(heading, list, row);
}

// --- controls -----------------------------------------------------------------------------------
function options(name, groups, value) {
  const element = form.elements[name];
  for (const [label, places] of groups) {
    const group = make("optgroup", { label });
    for (const i of places) group.append(make("option", { value: i }, data.axes[i].title));
    element.append(group);
  }
  element.value = value;
  element.addEventListener("change", () => { state[name] = Number(element.value); redraw(); });
}

function boxes(holder, names, set, all) {
  const inputs = names.map(([value, words]) => {
    const label = make("label"), input = make("input", { type: "checkbox" });
    input.checked = set.has(value);
    input.addEventListener("change", () => {
      if (input.checked) set.add(value); else set.delete(value);
      redraw();
    });
    label.append(input, " " + words);
    holder.append(label);
    return [input, value];
  });
  for (const [words, on] of all ? [["all", true], ["none", false]] : []) {
    const button = make("button", { type: "button" }, words);
    button.addEventListener("click", () => {
      for (const [input, value] of inputs) { input.checked = on; if (on) set.add(value); else set.delete(value); }
      redraw();
    });
    holder.append(button);
  }
}

function start() {
  if (!COSTS.length || !QUALITIES.length) return;
  state.x = COSTS[0];
  state.y = QUALITIES[0];
  const counts = new Map();
  data.domains.forEach((domain, i) => {
    state.domains.add(i);
    for (const shape of domain.shapes) counts.set(shape.operator, (counts.get(shape.operator) || 0) + 1);
  });
  for (const operator of counts.keys()) state.operators.add(operator);
  options("x", [["Costs", COSTS], ["Qualities", QUALITIES]], state.x);
  options("y", [["Qualities", QUALITIES]], state.y);
  for (const name of ["xLog", "yLog"]) {
    const element = form.elements[name];
    element.checked = state[name];
    element.addEventListener("change", () => { state[name] = element.checked; redraw(); });
  }
  if (data.domains.length > 1) {
    boxes(form.querySelector(".domains"), data.domains.map((domain, i) => [i, domain.name]), state.domains, false);
  } else form.querySelector(".domains").hidden = true;
  const operators = [...counts].sort((a, b) => (a[0] !== "") - (b[0] !== "") || b[1] - a[1]);
  boxes(form.querySelector(".operators"), operators.map(([name, n]) => [
    name, `${name || "none (reference)"}: ${n}`]), state.operators, true);
  form.addEventListener("submit", event => event.preventDefault());
  let width = 0;
  const resized = () => { if (panels.clientWidth !== width) { width = panels.clientWidth; redraw(); } };
  section.hidden = false;
  resized();
  window.addEventListener("resize", resized);
}

start();
})();
