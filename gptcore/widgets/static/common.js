// What all views share. Text always becomes a text node, so nothing in it can act as HTML.

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child != null));
  return element;
}

function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function makeSvg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

// A text of unknown direction that does not disturb its surroundings.
function isolated(text, attributes = {}) {
  return make("bdi", attributes, text);
}

// The name is also the control's own: read from the label, it would contain the options and values.
function labelled(text, control, attributes = {}) {
  control.setAttribute("aria-label", text);
  return make("label", attributes, make("span", {}, text), control);
}

function button(text, onclick, attributes = {}) {
  return make("button", { type: "button", onclick, ...attributes }, text);
}

function select(names, chosen, onchange) {
  const options = names.map(([value, text]) => make("option", { value, selected: value === chosen }, text));
  const element = make("select", {}, ...options);
  element.addEventListener("change", () => onchange(element.value));
  return element;
}

// A slider with its value beside it. `show` turns the slider's number into words.
function slider(text, { min, max, step, value }, show, oninput) {
  const shown = make("span", { class: "value", "aria-hidden": "true" }, show(value));
  const range = make("input", { type: "range", min, max, step, value, "aria-valuetext": show(value) });
  const set = (number) => {
    range.value = number;
    shown.textContent = show(Number(range.value));
    range.setAttribute("aria-valuetext", shown.textContent);
  };
  range.addEventListener("input", () => {
    set(range.value);
    oninput(Number(range.value));
  });
  const element = labelled(text, range, { class: "slider" });
  element.append(shown);
  return { element, set, range };
}

// The frame around a view: shows errors, sends requests, and forgets its listeners when it is closed.
function open(model, el, title) {
  const alert = make("p", { class: "error", role: "alert", hidden: true });
  // JupyterLab has a command on many a key ("d d" deletes the cell): not while a view has the focus.
  const root = make("section", { class: "gptcore", "aria-label": title, "data-lm-suppress-shortcuts": "true" }, alert);
  root.addEventListener("keydown", (event) => event.stopPropagation());
  el.append(root);
  const listeners = [];
  const watch = (event, listener) => {
    model.on(event, listener);
    listeners.push([event, listener]);
  };
  const showError = () => {
    alert.textContent = model.get("error");
    alert.hidden = !model.get("error");
  };
  watch("change:error", showError);
  showError();

  // The picture that stands in the view's place where it cannot run; in JupyterLab no empty output is left of it.
  const picture = `[data-gptcore="${model.get("key")}"]`;
  const hidden = make("style", {}, `${picture} { display: none; } .jp-OutputArea-child:has(${picture}) { display: none; }`);

  // One request at a time is on its way; the others wait in order.
  const name = Math.random().toString(36).slice(2);
  const waiting = [];
  let count = 0;
  let busy = false;
  const next = () => {
    if (busy || waiting.length === 0) return;
    busy = true;
    const [what, values] = waiting.shift();
    count += 1;
    model.send({ do: what, with: values, number: `${name} ${count}` });
  };
  watch("msg:custom", (message) => {
    if (message.done !== `${name} ${count}`) return;
    busy = false;
    next();
  });
  const ask = (what, values = {}) => {
    waiting.push([what, values]);
    next();
  };
  // For controls that move faster than Python answers: of equal requests that wait behind each other only the newest is kept.
  const askNewest = (what, values = {}) => {
    if (waiting.at(-1)?.[0] === what) waiting.pop();
    ask(what, values);
  };
  // Draws now and whenever a value changes.
  const draw = (drawing, ...values) => {
    const redraw = () => {
      drawing();
      root.dataset.drawn = Number(root.dataset.drawn || 0) + 1;
    };
    for (const value of values) watch(`change:${value}`, redraw);
    redraw();
    document.head.append(hidden);
  };
  const close = () => {
    hidden.remove();
    for (const [event, listener] of listeners) model.off(event, listener);
  };
  return { root, ask, askNewest, draw, watch, close };
}

// One tab stop for a row or column of elements; the arrow keys move among them.
function arrowKeys(container, selector) {
  const items = () => [...container.querySelectorAll(selector)];
  const enter = (item) => {
    for (const other of items()) other.tabIndex = other === item ? 0 : -1;
  };
  container.addEventListener("focusin", (event) => {
    const item = event.target.closest(selector);
    if (item) enter(item);
  });
  container.addEventListener("keydown", (event) => {
    const list = items();
    const at = list.indexOf(document.activeElement);
    const forward = ["ArrowRight", "ArrowDown"].includes(event.key);
    const to = forward ? at + 1 : ["ArrowLeft", "ArrowUp"].includes(event.key) ? at - 1 : null;
    if (at < 0 || to === null || to < 0 || to >= list.length) return;
    list[to].focus();
    event.preventDefault();
  });
}

// Called after the elements of such a container were made anew.
function oneTabStop(container, selector, at = 0) {
  [...container.querySelectorAll(selector)].forEach((item, index) => (item.tabIndex = index === at ? 0 : -1));
}

// Viridis, which also readers who see no colours can order.
const VIRIDIS = ["440154", "482878", "3e4989", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725"].map(
  (hex) => [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16)),
);

function viridis(share) {
  const place = Math.min(Math.max(share, 0), 1) * (VIRIDIS.length - 1);
  const low = Math.min(Math.floor(place), VIRIDIS.length - 2);
  return VIRIDIS[low].map((value, i) => Math.round(value + (place - low) * (VIRIDIS[low + 1][i] - value)));
}

// Python sends null for a number that is not finite.
function fixed(value, digits) {
  return value === null ? "no number" : value.toFixed(digits);
}

function percent(share) {
  if (share === null) return "no number";
  return share >= 0.9995 ? "100 %" : share >= 0.1 ? `${(100 * share).toFixed(1)} %` : `${(100 * share).toPrecision(2)} %`;
}

// The stretches of a line between its gaps, which are where y is null.
function stretches(points) {
  const found = [[]];
  for (const point of points) {
    if (point[1] !== null) found.at(-1).push(point);
    else if (found.at(-1).length) found.push([]);
  }
  return found.filter((stretch) => stretch.length);
}

// Lines over a common horizontal axis as SVG. Each line: {points: [[x, y], ...], colour, dash, name}.
function chart(title, xLabel, lines, { width = 300, height = 190 } = {}) {
  const left = 46, right = 10, top = 24, bottom = 34;
  const points = lines.flatMap((line) => line.points);
  const bounds = (index) => {
    const values = points.map((point) => point[index]).filter((value) => value !== null);
    const [low, high] = values.length ? [Math.min(...values), Math.max(...values)] : [0, 1];
    const room = high > low ? 0 : Math.abs(high) * 0.1 || 1;
    return [low - room, high + room];
  };
  const [x0, x1] = bounds(0), [y0, y1] = bounds(1);
  const across = (x) => left + ((x - x0) / (x1 - x0)) * (width - left - right);
  const up = (y) => height - bottom - ((y - y0) / (y1 - y0)) * (height - top - bottom);
  const number = (value) => (Math.abs(value) >= 100 ? value.toFixed(0) : String(Number(value.toPrecision(2))));
  const text = (x, y, anchor, words) => makeSvg("text", { x, y, "text-anchor": anchor }, words);
  const svg = makeSvg(
    "svg",
    { class: "chart", viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": describe(title, lines) },
    text(left, 14, "start", title),
    text((left + width - right) / 2, height - 4, "middle", xLabel),
    makeSvg("path", { class: "axis", d: `M${left},${top}V${height - bottom}H${width - right}` }),
  );
  for (const y of [y0, (y0 + y1) / 2, y1]) svg.append(text(left - 5, up(y) + 4, "end", number(y)));
  for (const x of [x0, x1]) svg.append(text(across(x), height - bottom + 14, x === x0 ? "start" : "end", number(x)));
  // The legend: a stroke and a name for each line, from the right.
  const named = lines.filter((line) => line.legend);
  named.forEach((line, i) => {
    const y = top + 6 + 14 * i;
    svg.append(
      makeSvg("path", { class: "line", d: `M${width - right - 130},${y}h22`, stroke: line.colour, "stroke-dasharray": line.dash }),
      text(width - right - 104, y + 4, "start", line.name),
    );
  });
  for (const line of lines) {
    const parts = stretches(line.points);
    const path = parts.flatMap((part) => part.map(([x, y], i) => `${i ? "L" : "M"}${across(x).toFixed(1)},${up(y).toFixed(1)}`)).join("");
    svg.append(makeSvg("path", { class: "line", d: path, stroke: line.colour, "stroke-dasharray": line.dash, "stroke-opacity": line.opacity }));
    const dots = (some, r) => some.map(([x, y]) => makeSvg("circle", { cx: across(x), cy: up(y), r, fill: line.colour, "fill-opacity": line.opacity }));
    // A point between two gaps would not be seen as a line.
    svg.append(...(line.marks ? dots(parts.flat(), 3) : dots(parts.filter((part) => part.length === 1).flat(), 1.5)));
  }
  return svg;
}

function describe(title, lines) {
  const ends = lines
    .map((line) => [line.name, stretches(line.points).flat()])
    .filter(([, points]) => points.length)
    .map(([name, points]) => `${name}: from ${points[0][1]} to ${points.at(-1)[1]}`);
  return `${title}. ${ends.join("; ")}`;
}
