"use strict";
// Sorting, hiding and pointing; without it the page shows everything, in the order of the recipes.
(() => {
  const all = (what, where = document) => [...where.querySelectorAll(what)];
  document.body.classList.add("live");

  // -- hide and highlight a method, everywhere

  const owned = new Map();
  for (const e of all("[data-row]")) owned.set(e.dataset.row, [...(owned.get(e.dataset.row) ?? []), e]);
  const off = new Set();
  const focus = document.head.appendChild(document.createElement("style"));

  function show(key, on) {
    if (on) off.delete(key); else off.add(key);
    for (const e of owned.get(key) ?? []) e.classList.toggle("off", !on);
    for (const e of all(`[data-toggle="${key}"]`)) {
      if (e.type === "checkbox") e.checked = on; else e.setAttribute("aria-pressed", on);
    }
    for (const bar of all(".pick")) {
      const boxes = all("input", bar);
      const shown = boxes.filter(box => box.checked).length;
      bar.querySelector(".small").textContent = shown === boxes.length ? `all ${shown} shown` : `${shown} of ${boxes.length} shown`;
    }
  }

  for (const entry of all(".legend [data-legend]")) {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.toggle = entry.dataset.legend;
    button.setAttribute("aria-pressed", true);
    button.title = "Click to hide or show";
    button.append(...entry.childNodes);
    button.addEventListener("click", () => show(button.dataset.toggle, off.has(button.dataset.toggle)));
    entry.append(button);
  }
  for (const box of all(".pick input")) {
    box.checked = true;
    box.addEventListener("change", () => show(box.dataset.toggle, box.checked));
  }
  for (const button of all(".pick button")) {
    button.addEventListener("click", () => {
      for (const box of all("input", button.closest(".pick"))) show(box.dataset.toggle, button.value === "all");
    });
  }
  for (const e of all(".legend button, .pick label")) {
    const key = e.dataset.toggle ?? e.querySelector("input").dataset.toggle;
    e.addEventListener("pointerenter", () => { focus.textContent = `svg g[data-row]:not([data-row="${key}"]) { opacity: .13; }`; });
    e.addEventListener("pointerleave", () => { focus.textContent = ""; });
  }

  // -- sort a table by a column

  function words(cell) {
    return [...cell.childNodes].filter(e => !e.classList?.contains("small")).map(e => e.textContent).join("").trim();
  }

  function number(cell) {
    if (cell.dataset.value) return Number(cell.dataset.value);
    const text = words(cell).replaceAll("−", "-").replaceAll(",", "");
    const took = /^(?:([\d.]+) h )?(?:([\d.]+) min)?(?:([\d.]+) s)?$/.exec(text);
    if (text && took) return 3600 * (took[1] ?? 0) + 60 * (took[2] ?? 0) + 1 * (took[3] ?? 0);
    const found = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?(?![\w.])/i.exec(text.replace(/(?<=\d)[FB](?= |$)/, ""));
    return found ? parseFloat(found[0]) : NaN;
  }
  const missing = cell => ["", "–", "baseline"].includes(words(cell));

  function sort(table, column, head) {
    const body = table.tBodies[0];
    const lines = [...body.rows];
    lines.forEach((line, i) => { line.dataset.at ??= i; });
    const cells = new Map(lines.map(line => [line, line.cells[column]]));
    const known = lines.filter(line => !missing(cells.get(line)));
    const numeric = known.filter(line => !Number.isNaN(number(cells.get(line)))).length * 2 > known.length;
    const first = numeric ? "descending" : "ascending";
    const second = numeric ? "ascending" : "descending";
    const now = head.getAttribute("aria-sort");
    const next = now === null ? first : now === first ? second : null;
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    if (next) head.setAttribute("aria-sort", next);
    const way = next === "descending" ? -1 : 1;
    const gone = line => missing(cells.get(line)) || (numeric && Number.isNaN(number(cells.get(line))));
    const value = new Map(lines.map(line => [line, numeric ? number(cells.get(line)) : words(cells.get(line))]));
    const between = (a, b) => numeric ? a - b : a.localeCompare(b, undefined, { numeric: true });
    lines.sort((a, b) => {
      if (!next) return a.dataset.at - b.dataset.at;
      if (gone(a) || gone(b)) return gone(a) - gone(b) || a.dataset.at - b.dataset.at;
      return way * between(value.get(a), value.get(b)) || a.dataset.at - b.dataset.at;
    });
    body.append(...lines);
  }

  for (const table of all("table[data-sort]")) {
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      if ("still" in head.dataset) return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => sort(table, column, head));
    });
  }

  // -- say what the pointer is at

  const tip = document.body.appendChild(document.createElement("div"));
  tip.className = "tip";
  tip.hidden = true;
  const spot = document.createElementNS(document.querySelector("svg")?.namespaceURI ?? null, "circle");
  spot.setAttribute("r", 3.2);
  spot.setAttribute("style", "fill: none; stroke: var(--ink); stroke-width: 1.2; pointer-events: none");
  const drawn = new WeakMap();
  for (const title of all("svg title")) title.remove();

  function inData([start, stop, low, high, scale, unit, , whole], at) {
    const share = (at - start) / (stop - start);
    let found = low + share * (high - low);
    if (scale === "log") found = low * (high / low) ** share;
    if (scale === "asinh") found = unit * Math.sinh(Math.asinh(low / unit) + share * (Math.asinh(high / unit) - Math.asinh(low / unit)));
    if (whole) return String(Math.round(found));
    return String(Number(found.toPrecision(3))).replace("-", "−");
  }

  function points(group) {
    if (!drawn.has(group)) {
      const dots = all("use", group).map(e => [e.x.baseVal.value, e.y.baseVal.value]);
      const path = [...group.children].find(e => e.tagName === "path");
      const found = path ? [...path.getAttribute("d").matchAll(/[ML] *(-?[\d.]+)[ ,]+(-?[\d.]+)/g)].map(m => [+m[1], +m[2]]) : [];
      drawn.set(group, { dots, line: found });
    }
    return drawn.get(group);
  }

  function nearest(svg, x, y) {
    let best = { far: 14 };
    for (const group of all("g[data-line], g[data-dots]", svg)) {
      if (group.classList.contains("off")) continue;
      const { dots, line } = points(group);
      dots.forEach(([u, v], i) => {
        const far = 0.6 * Math.hypot(u - x, v - y);
        if (far < best.far) best = { far, group, u, v, i };
      });
      for (let i = 1; i < line.length; i++) {
        const [[a, b], [c, d]] = [line[i - 1], line[i]];
        if (x < Math.min(a, c) || x > Math.max(a, c)) continue;
        const v = a === c ? b : b + (d - b) * (x - a) / (c - a);
        const far = Math.abs(v - y);
        if (far < best.far) best = { far, group, u: x, v };
      }
    }
    return best;
  }

  function said(svg, { group, u, v, i }) {
    const { x, y } = JSON.parse(svg.dataset.axes);
    const names = (group.dataset.dots ?? group.dataset.line).split("\t");
    const name = names.length > 1 ? names[i] : names[0];
    const parts = x[6] || group.dataset.dots ? [`${x[6]} ${inData(x, u)}`, `${y[6]} ${inData(y, v)}`] : [];
    return [name, ...(names.length > 1 || !x[6] ? parts.slice(1) : parts)].join(" · ");
  }

  function tell(text, event) {
    tip.textContent = text;
    tip.hidden = !text;
    if (!text) return;
    const box = tip.getBoundingClientRect();
    const left = Math.min(event.clientX + 14, innerWidth - box.width - 6);
    const top = event.clientY + 18 + box.height > innerHeight ? event.clientY - box.height - 10 : event.clientY + 18;
    tip.style.left = `${Math.max(6, left)}px`;
    tip.style.top = `${top}px`;
  }

  function point(event) {
    const at = event.target instanceof Element ? event.target : document.body;
    const titled = at.closest("td[title]");
    if (titled) {
      titled.dataset.tip = titled.title;
      titled.removeAttribute("title");
    }
    const bar = at.closest("[data-bar]");
    const svg = at.closest("svg[data-axes]");
    spot.remove();
    if (bar) return tell(bar.dataset.bar, event);
    if (svg) {
      const box = svg.getBoundingClientRect(), view = svg.viewBox.baseVal, scale = view.width / box.width;
      const found = nearest(svg, (event.clientX - box.left) * scale, (event.clientY - box.top) * scale);
      if (!found.group) return tell("", event);
      spot.setAttribute("cx", found.u);
      spot.setAttribute("cy", found.v);
      svg.append(spot);
      return tell(said(svg, found), event);
    }
    return tell(at.closest("[data-tip]")?.dataset.tip ?? "", event);
  }
  document.addEventListener("pointermove", point);
  document.addEventListener("pointerdown", point);
  document.addEventListener("scroll", () => { tip.hidden = true; spot.remove(); }, { passive: true });

  // -- paper shows what is folded, but for whole recipes

  let opened = [];
  addEventListener("beforeprint", () => {
    opened = all("details[data-paper]:not([open])");
    for (const e of opened) e.open = true;
  });
  addEventListener("afterprint", () => { for (const e of opened) e.open = false; });
})();
