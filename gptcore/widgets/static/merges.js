// Merge stepper: a slider over the merges; the token just made is marked, the pair that comes next is outlined.

function render({ model, el }) {
  const { root, askNewest, draw, close } = open(model, el, "Merge stepper");
  const first = model.get("data");
  let data, step = 0, timer = null;
  const read = () => askNewest("read", { text: input.value, learn: source.value === "learn" });
  const input = make("textarea", { rows: 3, maxlength: 4000, dir: "auto", spellcheck: false }, first.text);
  input.addEventListener("input", read);
  const sources = [["learn", "learned from this text"]];
  if (first.choice) sources.push(["known", "of the course's tokenizer"]);
  const source = select(sources, first.learn ? "learn" : "known", read);

  const range = make("input", { type: "range", min: 0, max: 0, value: 0, "aria-label": "merges applied", class: "wide" });
  range.addEventListener("input", () => go(Number(range.value)));
  const back = button("◀ Back", () => go(step - 1));
  const on = button("Next merge ▶", () => go(step + 1));
  const play = button("Play", () => (timer ? stop() : start()));
  const line = make("p", { class: "reading", role: "status" });
  const note = make("p", { class: "note", hidden: true });
  const tokens = make("div", { class: "scroll", role: "group", tabindex: "0", "aria-label": "the text as tokens", dir: "auto" });
  const table = make("table", {}, make("thead", {}, make("tr", {}, ...["merge", "pair", "becomes", "times"].map((name) => make("th", { scope: "col" }, name)))), make("tbody"));
  root.append(
    make("div", { class: "row" }, labelled("Text", input, { class: "wide" })),
    make("div", { class: "row" }, labelled("merges", source), back, on, play, range),
    note,
    line,
    tokens,
    make("details", {}, make("summary", {}, "The merges so far"), make("div", { class: "scroll" }, table)),
  );

  function start() {
    play.textContent = "Pause";
    timer = setInterval(() => (step < data.steps.length - 1 ? go(step + 1) : stop()), 600);
  }

  function stop() {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
  }

  function go(to) {
    step = Math.max(0, Math.min(to, data.steps.length - 1));
    range.value = step;
    const last = data.steps.length - 1;
    range.setAttribute("aria-valuetext", `${step} of ${last} merges`);
    back.disabled = step === 0;
    on.disabled = step === last;
    const now = data.steps[step], next = data.steps[step + 1];
    const size = `${now.words.flat().length} tokens for ${data.characters} characters (${data.bytes} bytes). `;
    if (step === 0) line.replaceChildren(size, "Every token is one byte; no merge is applied yet.");
    else {
      const what = [isolated(now.left), " + ", isolated(now.right), " become ", isolated(now.new)];
      const times = now.count === 1 ? "once" : `${now.count} times`;
      line.replaceChildren(size, `Merge ${now.rank + 1}: `, ...what, `, ${times} in this text.`);
    }
    if (step === last && step > 0) line.append(data.complete ? " No further pair is left to merge." : ` Only the first ${last} merges are shown.`);
    // Which tokens of a word the next merge takes: from left to right, each of them once.
    const taken = (word) => {
      const places = new Set();
      for (let k = 0; next && k + 1 < word.length; k++) {
        if (word[k] === next.pair[0] && word[k + 1] === next.pair[1]) places.add(k).add(++k);
      }
      return places;
    };
    const chip = (token, places, i) => {
      const kind = token === now.id ? " new" : places.has(i) ? " next" : "";
      return isolated(data.labels[token], { class: `token${kind}`, title: `id ${token}` });
    };
    tokens.replaceChildren(...now.words.map((word) => {
      const places = taken(word);
      return make("span", { class: "word" }, ...word.map((token, i) => chip(token, places, i)));
    }));
    const rows = data.steps.slice(1, step + 1).map((one) =>
      make("tr", {}, make("td", { class: "number" }, String(one.rank + 1)), make("td", {}, isolated(one.left), " + ", isolated(one.right)), make("td", {}, isolated(one.new)), make("td", { class: "number" }, String(one.count))),
    );
    table.tBodies[0].replaceChildren(...rows.reverse());
  }

  draw(() => {
    data = model.get("data");
    stop();
    note.textContent = data.note;
    note.hidden = !data.note;
    range.max = data.steps.length - 1;
    go(0);
  }, "data");
  return () => {
    stop();
    close();
  };
}

export default { render };
