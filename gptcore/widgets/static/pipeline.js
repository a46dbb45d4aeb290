// Pipeline map: the stages as buttons in a row; the chosen one's story stands below.

function render({ model, el }) {
  const { root, draw, close } = open(model, el, "Pipeline map");
  const chain = make("ol", { class: "chain", "aria-label": "The stages of the chain: choose one" });
  const panel = make("div", { role: "status", class: "text" });
  root.append(chain, panel);
  arrowKeys(chain, "button");

  function choose(stages, index) {
    [...chain.querySelectorAll("button")].forEach((item, i) => item.setAttribute("aria-pressed", String(i === index)));
    const stage = stages[index];
    const total = stages.reduce((sum, one) => sum + one.cost, 0);
    const rows = [
      ["read", stage.read],
      ["learned", stage.learned],
      ["cost", `${fixed(stage.cost, 0)} seconds, ${((100 * stage.cost) / total || 0).toFixed(0)} % of the training`],
    ];
    const scores = stage.scores.map(([meaning, value, between]) =>
      make("tr", {}, make("td", {}, meaning), make("td", { class: "number" }, value), make("td", { class: "note" }, between ?? "")),
    );
    const facts = rows.map(([name, words]) => make("tr", {}, make("th", { scope: "row" }, name), make("td", {}, words)));
    panel.replaceChildren(make("h4", {}, stage.name), make("table", {}, ...facts));
    if (scores.length) {
      const heads = ["score, measured on questions held out", "value", "95 % interval"];
      panel.append(make("table", {}, make("tr", {}, ...heads.map((name) => make("th", { scope: "col" }, name))), ...scores));
    }
  }

  draw(() => {
    const { stages } = model.get("data");
    chain.replaceChildren(
      ...stages.map((stage, i) => {
        const name = button("", () => choose(stages, i), { "aria-pressed": "false" });
        name.append(make("strong", {}, stage.name), make("span", { class: "seconds" }, `${fixed(stage.cost, 0)} s`));
        return make("li", {}, name);
      }),
    );
    oneTabStop(chain, "button");
    if (stages.length) choose(stages, 0);
  }, "data");
  return close;
}

export default { render };
