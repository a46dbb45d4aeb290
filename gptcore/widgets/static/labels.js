// Preference labelling: two answers side by side; mouse or keys, undo, progress, agreement at the end.

function render({ model, el }) {
  const { root, ask, draw, close } = open(model, el, "Preference labelling");
  const progress = make("progress", { "aria-label": "pairs compared" });
  const count = make("span", { role: "status" });
  const undo = button("Undo", () => ask("undo"));
  const skip = button("Skip", () => vote("skipped"));
  const question = make("p", { class: "text", role: "status", dir: "auto" });
  const choices = make("div", { class: "choices", role: "group", "aria-label": "two answers: choose the better one" });
  const result = make("p", { class: "text", role: "status" });
  root.tabIndex = 0;
  root.append(
    make("div", { class: "row" }, progress, count, undo, skip),
    question,
    choices,
    result,
    make("p", { class: "note" }, "Keys: ", make("kbd", {}, "←"), " or ", make("kbd", {}, "1"), " left is better, ", make("kbd", {}, "→"), " or ", make("kbd", {}, "2"), " right is better, ", make("kbd", {}, "s"), " skip, ", make("kbd", {}, "u"), " undo. Click into the view first."),
  );
  const vote = (which) => ask("vote", { vote: which, number: model.get("data").done });
  root.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return; // a key held down is one vote
    const act = {
      ArrowLeft: () => vote("left"), 1: () => vote("left"),
      ArrowRight: () => vote("right"), 2: () => vote("right"),
      s: () => vote("skipped"), u: () => ask("undo"), Backspace: () => ask("undo"),
    }[event.key];
    if (!act) return;
    act();
    event.preventDefault();
  });

  draw(() => {
    const data = model.get("data");
    const over = data.done === data.count;
    progress.max = data.count;
    progress.value = data.done;
    count.textContent = `${data.done} of ${data.count} compared`;
    undo.disabled = data.done === 0;
    skip.disabled = over;
    const focused = choices.contains(document.activeElement);
    if (over) {
      question.replaceChildren(make("strong", {}, "All compared. Thank you."));
      choices.replaceChildren();
      const [value, low, high, pairs] = data.agreement ?? [];
      result.textContent =
        (data.own
          ? "No program can say which answers to questions of your own are better."
          : data.agreement
          ? `You chose the answer that a program which knows the truth finds better in ${percent(value)} of ${pairs} pairs (95 % interval: ${percent(low)} to ${percent(high)}).`
          : "None of the pairs that you decided differ in truth or manners.") + ` ${data.skipped} skipped. Saved in ${data.path}.`;
    } else {
      question.replaceChildren(make("strong", {}, "Question: "), isolated(data.question));
      choices.replaceChildren(
        ...data.answers.map((answer, i) => {
          const choice = button("", () => vote(i ? "right" : "left"), { "aria-label": `${i ? "right" : "left"} answer: ${answer || "(an empty answer)"}`, dir: "auto" });
          choice.append(make("span", { class: "note" }, i ? "right" : "left"), isolated(answer || "(an empty answer)"));
          return choice;
        }),
      );
      result.textContent = "";
    }
    if (focused) (over ? undo : root).focus();
  }, "data");
  return close;
}

export default { render };
