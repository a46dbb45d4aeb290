// Training dashboard: curves that grow while the cell runs, progress, and what the model writes.

function render({ model, el }) {
  const { root, draw, close } = open(model, el, "Training dashboard");
  const headline = make("p", { class: "reading" });
  const progress = make("progress", { max: 1, "aria-label": "share of the steps done" });
  const charts = make("div", { class: "charts" });
  const samples = make("div");
  root.append(make("div", { class: "row" }, progress, headline), charts, samples);

  draw(() => {
    const data = model.get("data");
    if (!data.headline) return;
    headline.textContent = data.headline;
    progress.value = data.done;
    const blue = "var(--blue)", orange = "var(--orange)";
    charts.replaceChildren(
      chart(`loss (nats a ${data.loss_of})`, "step", [
        { name: "single batches", points: data.loss, colour: blue, opacity: 0.3 },
        { name: "batches, mean of 20", points: data.smooth, colour: blue, legend: true },
        { name: "held out", points: data.held_out, colour: orange, dash: "6 3", marks: true, legend: data.held_out.length > 0 },
      ], { width: 470, height: 240 }),
      chart("learning rate (share)", "step", [{ name: "learning rate", points: data.rate, colour: "var(--green)" }], { width: 230 }),
      chart("gradient norm", "step", [{ name: "gradient norm", points: data.norm, colour: "var(--ink)" }], { width: 230 }),
    );
    samples.replaceChildren(
      ...data.samples.map(([step, text]) => make("p", { class: "text", dir: "auto" }, make("span", { class: "note" }, `step ${step}: `), isolated(text))),
    );
  }, "data");
  return close;
}

export default { render };
