// Sampling lab: sliders above, the most likely next tokens as bars below; a click on a token goes on from it.

function render({ model, el }) {
  const { root, ask, askNewest, draw, close } = open(model, el, "Sampling lab");
  const first = model.get("data");
  const read = () => askNewest("read", { text: input.value, form: form.value, stage: stage.value });
  const input = make("input", { type: "text", value: first.text, maxlength: 2000, dir: "auto", spellcheck: false });
  input.addEventListener("input", read);
  const form = select([["text", "plain text"], ["question", "a question, in the chat template"]], first.form, read);
  const stage = select(first.stages.map((name) => [name, name]), first.stage, read);

  const NO_CUT = 51; // the slider's last place: every token may be drawn
  const shape = () =>
    askNewest("shape", {
      temperature: Number(temperature.range.value),
      top_k: Number(topK.range.value) === NO_CUT ? null : Number(topK.range.value),
      top_p: Number(topP.range.value) === 1 ? null : Number(topP.range.value),
    });
  const temperature = slider("temperature", { min: 0.1, max: 3, step: 0.05, value: first.temperature }, (value) => value.toFixed(2), shape);
  const topK = slider("top-k", { min: 1, max: NO_CUT, step: 1, value: first.top_k ?? NO_CUT }, (value) => (value === NO_CUT ? "all" : String(value)), shape);
  const topP = slider("top-p", { min: 0.05, max: 1, step: 0.01, value: first.top_p ?? 1 }, (value) => (value === 1 ? "all" : value.toFixed(2)), shape);

  const text = make("p", { class: "text", "aria-live": "polite" });
  let shown = "";
  const undo = button("Take back", () => ask("undo"));
  const reset = button("All sliders back", () => {
    temperature.set(1);
    topK.set(NO_CUT);
    topP.set(1);
    shape();
  });
  const summary = make("p", { class: "reading", role: "status" });
  const bars = make("div", { class: "bars", role: "group", "aria-label": "Most likely next tokens: choose one to go on from it" });
  root.append(
    make("div", { class: "row" }, labelled("Text", input, { class: "wide" })),
    make("div", { class: "row" }, labelled("read as", form), labelled("model", stage)),
    make("div", { class: "row" }, temperature.element, topK.element, topP.element),
    make("div", { class: "row" }, button("Draw a token", () => ask("draw")), undo, reset),
    text,
    summary,
    bars,
    make("p", { class: "note" }, "Filled: the probability with which the token is drawn. Outline: as the model predicts it, at temperature 1 without a cut."),
  );
  arrowKeys(bars, "button");

  draw(() => {
    const data = model.get("data");
    const start = data.tokens.length - data.added;
    // A screen reader reads the text again when it changes: not at each move of a slider.
    const now = JSON.stringify([data.tokens, start]);
    if (now !== shown) text.replaceChildren(...data.tokens.map((token, i) => isolated(token, { class: i < start ? "token" : "token new" })));
    shown = now;
    undo.disabled = data.added === 0;
    summary.textContent =
      `${data.kept} of ${data.vocabulary} tokens can be drawn. ` +
      `Entropy ${fixed(data.entropy_after, 2)} nats (the model's own: ${fixed(data.entropy_before, 2)}).`;
    const largest = Math.max(...data.before, ...data.after, data.rest_before, data.rest_after) || 1;
    const focused = [...bars.querySelectorAll("button")].indexOf(document.activeElement);
    const line = (name, before, after) => [
      name,
      make(
        "div",
        { class: "bar", "aria-hidden": "true" },
        make("div", { class: "now", style: `width: ${(100 * after) / largest}%` }),
        make("div", { class: "before", style: `width: ${(100 * before) / largest}%` }),
      ),
      make("span", { class: "number" }, percent(after)),
    ];
    const rows = data.ids.map((id, i) => {
      const name = button("", () => ask("add", { token: id, at: data.tokens.length }), { "aria-label": `${data.labels[i]}, ${percent(data.after[i])}`, title: `token ${id}`, class: data.cut[i] ? "cut" : "" });
      name.append(isolated(data.labels[i]));
      return line(name, data.before[i], data.after[i]);
    });
    rows.push(line(make("span", { class: "note" }, "all others together"), data.rest_before, data.rest_after));
    bars.replaceChildren(...rows.flat());
    oneTabStop(bars, "button", Math.max(0, focused));
    if (focused >= 0) bars.querySelectorAll("button")[focused]?.focus();
  }, "data");
  return close;
}

export default { render };
