// Attention explorer: thumbnails of all heads, one head as a matrix and as lines, numbers for one token.

const KINDS = ["weights, with mask", "weights, without mask", "scores before softmax"];

function render({ model, el }) {
  const { root, askNewest, draw, close } = open(model, el, "Attention explorer");
  let data, maps, side;
  let [layer, head] = model.get("data").shown;
  let kind = 0;
  let picked = null; // the token whose row is looked at
  let cell = null; // [row, column] under the pointer or the keyboard's cursor

  const read = () => askNewest("read", { text: input.value, form: form.value, stage: stage.value });
  const first = model.get("data");
  const input = make("input", { type: "text", value: first.text, maxlength: 2000, dir: "auto", spellcheck: false });
  input.addEventListener("input", read);
  const forms = [["text", "plain text"], ["question", "a question, in the chat template"]];
  const form = select(forms, first.form, read);
  const stage = select(first.stages.map((name) => [name, name]), first.stage, read);
  const kinds = select(KINDS.map((name, i) => [String(i), name]), "0", (value) => {
    kind = Number(value);
    update();
  });
  const note = make("p", { class: "note", hidden: true });
  const heads = make("div", { class: "heads", role: "group", "aria-label": "All heads: choose one" });
  const matrix = make("div", { class: "matrix" });
  const lines = make("div");
  const reading = make("p", { class: "reading", role: "status" });
  root.append(
    make("div", { class: "row" }, labelled("Text", input, { class: "wide" })),
    make("div", { class: "row" }, labelled("read as", form), labelled("model", stage), labelled("show", kinds)),
    note,
    heads,
    reading,
    make(
      "div",
      { class: "panels" },
      make("figure", {}, make("figcaption", {}, "Row: the token that looks. Column: where it looks."), make("div", { class: "scroll" }, matrix)),
      make("figure", {}, make("figcaption", {}, "The same as lines: the thicker, the larger the weight."), make("div", { class: "scroll" }, lines)),
    ),
  );

  const at = (which, l, h, row, column) => maps[(((which * data.layers + l) * data.heads + h) * side + row) * side + column];
  const allowed = (row, column) => kind !== 0 || column <= row;

  function range(l, h) {
    if (kind < 2) return [0, 1];
    let low = Infinity, high = -Infinity;
    for (let row = 0; row < side; row++) {
      for (let column = 0; column < side; column++) {
        const value = at(kind, l, h, row, column);
        if (!Number.isFinite(value)) continue; // of a model that has diverged
        low = Math.min(low, value);
        high = Math.max(high, value);
      }
    }
    return high < low ? [0, 1] : [low, high > low ? high : low + 1];
  }

  function paint(canvas, l, h) {
    canvas.width = canvas.height = side;
    const context = canvas.getContext("2d");
    const image = context.createImageData(side, side);
    const [low, high] = range(l, h);
    for (let row = 0; row < side; row++) {
      for (let column = 0; column < side; column++) {
        const share = (at(kind, l, h, row, column) - low) / (high - low);
        const colour = allowed(row, column) && Number.isFinite(share) ? viridis(share) : [150, 150, 150];
        image.data.set([...colour, 255], 4 * (row * side + column));
      }
    }
    context.putImageData(image, 0, 0);
  }

  function drawHeads() {
    heads.style.gridTemplateColumns = `auto repeat(${data.heads}, auto)`;
    const parts = [];
    for (let l = 0; l < data.layers; l++) {
      parts.push(make("span", { class: "note" }, `layer ${l}`));
      for (let h = 0; h < data.heads; h++) {
        const canvas = make("canvas", { "aria-hidden": "true" });
        paint(canvas, l, h);
        const choose = () => {
          [layer, head] = [l, h];
          update();
        };
        const chosen = l === layer && h === head;
        parts.push(button("", choose, { "aria-label": `layer ${l}, head ${h}`, "aria-pressed": String(chosen), title: `layer ${l}, head ${h}` }));
        parts[parts.length - 1].append(canvas);
      }
    }
    const focused = [...heads.querySelectorAll("button")].indexOf(document.activeElement);
    heads.replaceChildren(...parts);
    if (focused >= 0) heads.querySelectorAll("button")[focused]?.focus();
  }

  function drawMatrix() {
    const size = Math.max(12, Math.min(26, Math.floor(400 / side)));
    const canvas = make("canvas", { tabindex: "0", role: "application", "aria-label": "matrix of this head; the arrow keys move from cell to cell" });
    paint(canvas, layer, head);
    canvas.style.width = canvas.style.height = `${side * size}px`;
    canvas.style.gridArea = `2 / 2 / span ${side} / span ${side}`;
    canvas.addEventListener("pointermove", (event) => {
      const box = canvas.getBoundingClientRect();
      const place = (offset, length) => Math.min(side - 1, Math.max(0, Math.floor((offset / length) * side)));
      cell = [place(event.clientY - box.top, box.height), place(event.clientX - box.left, box.width)];
      pick(cell[0]);
    });
    canvas.addEventListener("pointerleave", () => {
      cell = null;
      tell();
    });
    canvas.addEventListener("keydown", (event) => {
      const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
      if (!step) return;
      const limit = (number) => Math.min(side - 1, Math.max(0, number));
      const [row, column] = cell ?? [picked ?? 0, 0];
      cell = [limit(row + step[0]), limit(column + step[1])];
      pick(cell[0]);
      event.preventDefault();
    });
    matrix.style.gridTemplate = `auto repeat(${side}, ${size}px) / auto repeat(${side}, ${size}px)`;
    const labels = data.tokens.flatMap((token, i) => {
      const across = isolated(token, { class: "label across", style: `grid-area: 1 / ${i + 2}`, title: token });
      const down = isolated(token, { class: "label down", style: `grid-area: ${i + 2} / 1`, title: token, "data-row": i });
      down.addEventListener("pointerenter", () => {
        cell = null;
        pick(i);
      });
      return [across, down];
    });
    matrix.style.fontSize = `${Math.min(12, size - 1)}px`;
    const focused = matrix.contains(document.activeElement);
    matrix.replaceChildren(...labels, canvas);
    if (focused) canvas.focus();
  }

  function drawLines() {
    const gap = 20, left = 120, right = 240;
    const svg = makeSvg("svg", { class: "lines", width: right + 120, height: side * gap + 4, "aria-hidden": "true" });
    const middle = (i) => i * gap + gap / 2;
    const [low, high] = range(layer, head);
    for (let row = 0; row < side; row++) {
      if (picked !== null && row !== picked) continue;
      for (let column = 0; column < side; column++) {
        const share = (at(kind, layer, head, row, column) - low) / (high - low);
        if (!allowed(row, column) || !(share >= 0.02 && share < Infinity)) continue;
        svg.append(makeSvg("line", { x1: left, y1: middle(row), x2: right, y2: middle(column), "stroke-opacity": share.toFixed(3), "stroke-width": (1 + 4 * share).toFixed(1) }));
      }
    }
    data.tokens.forEach((token, i) => {
      const short = [...token].length > 16 ? `${[...token].slice(0, 15).join("")}…` : token;
      const name = makeSvg("text", { x: left - 6, y: middle(i) + 4, "text-anchor": "end", class: i === picked ? "chosen" : "", "data-row": i }, short);
      name.addEventListener("pointerenter", () => {
        cell = null;
        pick(i);
      });
      svg.append(name, makeSvg("text", { x: right + 6, y: middle(i) + 4 }, short));
    });
    lines.replaceChildren(svg);
  }

  const figure = (value) => fixed(Number.isFinite(value) ? value : null, kind < 2 ? 3 : 2);

  // The numbers of one token in words.
  function tell() {
    for (const name of matrix.querySelectorAll("[data-row]")) name.classList.toggle("chosen", Number(name.dataset.row) === picked);
    const parts = [`Layer ${layer}, head ${head}. `];
    if (picked === null) parts.push("Point at a token, or move through the matrix with the arrow keys.");
    else if (cell) {
      const [row, column] = cell;
      const value = allowed(row, column) ? figure(at(kind, layer, head, row, column)) : "the mask forbids it";
      parts.push(isolated(data.tokens[row]), " looks at ", isolated(data.tokens[column]), `: ${value}`);
    } else {
      const seen = data.tokens.map((token, i) => [at(kind, layer, head, picked, i), token, i]).filter(([, , i]) => allowed(picked, i));
      seen.sort((a, b) => b[0] - a[0]);
      parts.push(isolated(data.tokens[picked]), " looks at ");
      seen.slice(0, 5).forEach(([value, token], i) => parts.push(i ? ", " : "", isolated(token), ` ${figure(value)}`));
    }
    reading.replaceChildren(...parts);
  }

  function pick(row) {
    if (picked !== row) {
      picked = row;
      drawLines();
    }
    tell();
  }

  function update() {
    drawHeads();
    drawMatrix();
    drawLines();
    tell();
  }

  draw(() => {
    data = model.get("data");
    const bytes = model.get("maps");
    maps = new Float32Array(bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.byteLength));
    side = data.tokens.length;
    layer = Math.min(layer, data.layers - 1);
    head = Math.min(head, data.heads - 1);
    picked = cell = null;
    note.textContent = data.note;
    note.hidden = !data.note;
    update();
  }, "data");
  return close;
}

export default { render };
