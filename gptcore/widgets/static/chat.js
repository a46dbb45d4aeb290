// Chat window: the models' answers side by side, token by token as they are made.

function render({ model, el }) {
  const { root, ask, draw, watch, close } = open(model, el, "Chat");
  const first = model.get("data");
  const boxes = first.stages.map((name) => make("input", { type: "checkbox", value: name, checked: first.answering.includes(name) }));
  const temperature = slider("temperature", { min: 0, max: 2, step: 0.1, value: first.temperature }, (value) => (value === 0 ? "most likely" : value.toFixed(1)), () => {});
  const log = make("div", { class: "log", role: "log", "aria-label": "conversation", tabindex: "0" });
  const detail = make("p", { class: "reading", role: "status" });
  const input = make("input", { type: "text", maxlength: 2000, dir: "auto", placeholder: "Ask something, in English or Chinese", "aria-label": "your message" });
  const send = make("button", { type: "submit" }, "Send");
  const form = make("form", { class: "row" }, make("label", { class: "wide" }, input), send, listenButtons(input, (error) => (detail.textContent = `Listening failed: ${error}`)));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const stages = boxes.filter((box) => box.checked).map((box) => box.value);
    ask("say", { message: input.value, stages, temperature: Number(temperature.range.value) });
  });
  root.append(
    make("div", { class: "row" }, make("span", {}, "answered by"), ...boxes.map((box) => make("label", {}, box, box.value)), temperature.element, button("New conversation", () => ask("forget"))),
    log,
    detail,
    form,
  );

  // One piece of an answer: how likely it was, and what else might have stood there.
  function tell(piece) {
    const others = piece.else.flatMap(([label, p], i) => [i ? ", " : "", isolated(label), ` ${percent(p)}`]);
    detail.replaceChildren(isolated(piece.text.trim() || "(space)"), ` had a probability of ${percent(piece.p)}. Most likely here: `, ...others);
  }

  function answerOf(stage, answer) {
    const text = make("div", { class: "text", dir: "auto" });
    for (const piece of answer.pieces) {
      const part = make("span", { class: piece.p < 0.5 ? "piece unsure" : "piece", tabindex: "-1" }, piece.text);
      part.addEventListener("pointerenter", () => tell(piece));
      part.addEventListener("focus", () => tell(piece));
      text.append(part);
    }
    arrowKeys(text, ".piece");
    oneTabStop(text, ".piece");
    const whole = answer.pieces.map((piece) => piece.text).join("");
    const head = make("header", {}, make("strong", {}, stage));
    if (answer.reward !== null) head.append(make("span", {}, `reward ${answer.reward >= 0 ? "+" : "−"}${Math.abs(answer.reward).toFixed(2)}`));
    head.append(make("span", {}, `${answer.speed} tokens a second`));
    if ("speechSynthesis" in window) head.append(button("Read aloud", () => speak(whole)));
    return make("article", { class: "message", "data-stage": stage }, head, text);
  }

  const mine = (question) => make("div", { class: "message mine text", dir: "auto" }, question);

  // While answers are being made they grow here; `data` then replaces them, with probabilities.
  let growing = null;
  watch("msg:custom", (message) => {
    if (message.begin) {
      if (!growing) {
        growing = { answers: make("div", { class: "answers" }), parts: {} };
        log.append(mine(message.question), growing.answers);
        if (input.value.trim() === message.question) input.value = ""; // what cannot be answered stays, to be changed
      }
      growing.parts[message.stage] = make("div", { class: "text", dir: "auto" });
      growing.answers.append(make("article", { class: "message" }, make("header", {}, make("strong", {}, message.stage)), growing.parts[message.stage]));
    } else if (message.piece && growing) {
      growing.parts[message.stage].append(message.piece);
    }
    log.scrollTop = log.scrollHeight;
  });

  draw(() => {
    growing = null;
    const data = model.get("data");
    log.replaceChildren(
      ...data.turns.flatMap((turn) => [
        mine(turn.question),
        make("div", { class: "answers" }, ...Object.entries(turn.answers).map(([stage, answer]) => answerOf(stage, answer))),
      ]),
    );
    log.scrollTop = log.scrollHeight;
    detail.textContent = data.turns.length ? "Point at a word of an answer, or move there with Tab and the arrow keys. Underlined words had a probability below one half." : "";
  }, "data");
  return () => {
    if ("speechSynthesis" in window) speechSynthesis.cancel();
    close();
  };
}

// The browser's own voice, where it has one; a second click while it speaks stops it.
function speak(text) {
  if (speechSynthesis.speaking) return speechSynthesis.cancel();
  const words = new SpeechSynthesisUtterance(text);
  words.lang = /[\u4e00-\u9fff]/.test(text) ? "zh-CN" : "en-US";
  speechSynthesis.speak(words);
}

// The browser's own ear, where it has one. Some browsers send what they hear to their maker's servers.
function listenButtons(input, onerror) {
  const Recognition = window.SpeechRecognition ?? window.webkitSpeechRecognition;
  if (!Recognition) return null;
  const listen = (language) => {
    const ear = new Recognition();
    ear.lang = language;
    ear.onresult = (event) => {
      input.value = event.results[0][0].transcript;
      input.focus();
    };
    ear.onerror = (event) => onerror(event.error);
    ear.start();
  };
  const hint = "Your browser turns speech into text; some browsers send it to their maker for that.";
  return make("span", {}, button("Speak English", () => listen("en-US"), { title: hint }), " ", button("说中文", () => listen("zh-CN"), { title: hint }));
}

export default { render };
