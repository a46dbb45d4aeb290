// PPO lab: choose settings, see the recorded run at once, beside it the standard one; run it again live.

const NAMES = {
  kl_coefficient: ["KL coefficient", (value) => String(value)],
  clip: ["clip", (value) => (value >= 5 ? "none (5)" : String(value))],
  policy_rate: ["learning rate", (value) => value.toExponential()],
  ballots: ["reward model", (value) => (value < 4000 ? `blind to surprise, from ${value} prompts` : `the chain's, from ${value}`)],
};
const CURVES = [
  ["score", "learned reward (deviations)"],
  ["gold", "gold score: the truth"],
  ["kl", "KL to the fine-tuned model (nats)"],
  ["length", "answer length (tokens)"],
  ["entropy", "entropy (nats a token)"],
  ["repeated", "share with the commonest sentence"],
];
const SIGNS = {
  frozen: "The policy has hardly moved.",
  hacking: "Reward hacking: the learned reward rose while the gold score fell.",
  collapse: "Mode collapse: most answers hold the same sentence, in their language.",
};

function render({ model, el }) {
  const { root, ask, draw, close } = open(model, el, "PPO lab");
  const { grid, standard, runs, questions, before } = model.get("data");
  const chosen = { ...standard };
  const sliders = Object.entries(NAMES).map(([name, [label, show]]) => {
    const values = grid[name];
    const place = { min: 0, max: values.length - 1, step: 1, value: Math.max(0, values.indexOf(standard[name])) };
    return slider(label, place, (index) => show(values[index]), (index) => {
      chosen[name] = values[index];
      update();
    }).element;
  });
  const start = button("Run this setting now", () => ask("run", { ...chosen }));
  const stop = button("Stop", () => ask("stop"));
  const progress = make("progress", { max: 1, value: 0, "aria-label": "progress of the live run" });
  const state = make("span", { role: "status" });
  const charts = make("div", { class: "charts" });
  const story = make("p", { role: "status" });
  const verdict = make("details", {}, make("summary", {}, "What has happened here?"), story);
  const answers = make("div", { class: "scroll" });
  root.append(
    make("div", { class: "row" }, ...sliders),
    make("div", { class: "row" }, start, stop, progress, state),
    make("p", { class: "note" }, "Blue: this setting, recorded. Grey, dotted: the standard setting. Orange, dashed: the live run, with other random numbers."),
    charts,
    verdict,
    answers,
  );

  const same = (a, b) => Object.keys(NAMES).every((name) => a[name] === b[name]);
  const recorded = (setting) => runs.find((run) => same(run.setting, setting));

  function update() {
    const run = recorded(chosen), usual = recorded(standard);
    const live = model.get("live");
    const liveRun = live.run && same(live.run.setting, chosen) ? live.run : null;
    charts.replaceChildren(
      ...CURVES.map(([name, title]) => {
        const lines = [];
        if (usual && usual !== run) lines.push({ name: "standard setting", points: usual.curves[name], colour: "var(--faint)", dash: "2 3" });
        if (run) lines.push({ name: "this setting", points: run.curves[name], colour: "var(--blue)" });
        if (liveRun) lines.push({ name: "live", points: liveRun.curves[name], colour: "var(--orange)", dash: "7 4" });
        return chart(title, "iteration", lines, { width: 305, height: 180 });
      }),
    );
    start.disabled = live.going;
    stop.disabled = !live.going;
    progress.hidden = !live.going;
    progress.value = live.progress ?? 0;
    state.textContent = live.going ? "running ..." : run ? "" : "This setting is not recorded: run it.";
    const words = run ? run.signs.map((sign) => SIGNS[sign]) : [];
    story.textContent = words.join(" ") || (run ? "None of the three failures, by the rules of this lab." : "");
    verdict.hidden = !run;
    const shown = liveRun?.answers ?? run?.answers ?? [];
    const rows = shown.map(([text, reward, gold], i) =>
      make(
        "tr",
        {},
        make("td", {}, isolated(questions[i] ?? "")),
        make("td", {}, isolated(before[i]?.[0] ?? "")),
        make("td", {}, isolated(text)),
        make("td", { class: "number" }, fixed(reward, 2)),
        make("td", { class: "number" }, fixed(gold, 2)),
      ),
    );
    const heads = ["question", "before", liveRun?.answers ? "after (live run)" : "after", "learned reward", "gold score"];
    answers.replaceChildren();
    if (rows.length) answers.append(make("table", {}, make("tr", {}, ...heads.map((name) => make("th", { scope: "col" }, name))), ...rows));
  }

  draw(update, "data", "live");
  return close;
}

export default { render };
