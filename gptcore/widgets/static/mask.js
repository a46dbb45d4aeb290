// Mask inspector: the reader's turns above, a column for each position below: input, arrow, target.

function render({ model, el }) {
  const { root, askNewest, draw, close } = open(model, el, "Mask inspector");
  const turns = make("div");
  const read = () => askNewest("read", { turns: [...turns.children].map((row) => [...row.querySelectorAll("input")].map((field) => field.value)) });
  const field = (value, label) => {
    const input = make("input", { type: "text", value, maxlength: 1000, dir: "auto", spellcheck: false });
    input.addEventListener("input", read);
    return labelled(label, input, { class: "wide" });
  };
  const addTurn = (question, answer) => {
    const row = make("div", { class: "row", role: "group", "aria-label": "a turn" }, field(question, "question"), field(answer, "answer"));
    row.append(
      button("✕", () => {
        row.remove();
        add.focus();
        read();
      }, { "aria-label": "remove this turn" }),
    );
    turns.append(row);
  };
  const add = button("Add a turn", () => {
    addTurn("", "");
    turns.lastChild.querySelector("input").focus();
    read();
  });
  for (const [question, answer] of model.get("data").turns) addTurn(question, answer);
  const summary = make("p", { class: "reading", role: "status" });
  const note = make("p", { class: "note", hidden: true });
  const columns = make("div", { class: "columns scroll", role: "list", "aria-label": "positions: input and target" });
  root.append(
    turns,
    make("div", { class: "row" }, add),
    summary,
    make("p", { class: "note" }, "Above: the token that is read. Below: the token to predict. Blue with a solid foot: the loss counts it. Dotted foot: it does not."),
    note,
    columns,
  );

  draw(() => {
    const data = model.get("data");
    summary.textContent = `${data.trained} of ${data.positions} positions are trained.`;
    note.textContent = data.note;
    note.hidden = !data.note;
    columns.replaceChildren(
      ...data.columns.map((column, i) => {
        const said = `position ${i}: reads ${column.input}, target ${column.target}, ${column.trained ? "trained" : "not trained"}`;
        return make(
          "div",
          { class: `column ${column.trained ? "trained" : "idle"}`, role: "listitem", "aria-label": said, title: `${said} (ids ${column.ids.join(" and ")})` },
          isolated(column.input, { class: "label input" }),
          make("span", { class: "arrow" }, "↓"),
          isolated(column.target, { class: "label target" }),
        );
      }),
    );
  }, "data");
  return close;
}

export default { render };
