"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };

  // --- figures: drawn when they can be seen; their colours are the style sheet's, light or dark ---
  const figures = read("figures-data");
  // `ast`: expressions are interpreted, for the page's policy allows no eval.
  const options = { mode: "vega-lite", ast: true, renderer: "svg", actions: false, defaultStyle: false, tooltip: { disableDefaultStyle: true } };
  const drawn = new Set();
  const draw = (plot) => {
    if (drawn.has(plot) || !plot.offsetWidth) return;
    drawn.add(plot);
    vegaEmbed(plot, figures[plot.dataset.figure], options);
  };
  const plots = [...document.querySelectorAll(".plot")];
  const seen = new IntersectionObserver(
    (entries) => entries.filter((entry) => entry.isIntersecting).forEach((entry) => draw(entry.target)),
    { rootMargin: "600px" },
  );
  plots.forEach((plot) => seen.observe(plot));
  window.addEventListener("beforeprint", () => plots.forEach(draw));
  // A tap is no hover for Vega: it gets one. The tooltip does not move with the page, and goes.
  for (const plot of plots) {
    plot.addEventListener("click", (event) => {
      for (const type of ["pointerover", "pointermove"]) event.target.dispatchEvent(new PointerEvent(type, event));
    });
  }
  window.addEventListener("scroll", () => document.getElementById("vg-tooltip-element")?.classList.remove("visible"));

  // --- answers: only the page of prompts that is looked at is in the document ---
  const PAGE = 10;
  const HARMFUL = ["complied", "harmful", "unclear", "unscored"];
  const answers = read("answers-data");
  const byId = (id) => document.getElementById(id);
  const judgesBox = byId("filter-judges"); // only there where judges stand beside the protocol's
  const [setFilter, categoryFilter, verdictFilter] = ["set", "category", "verdict"].map((n) => byId(`filter-${n}`));
  const cellBoxes = answers.cells.map((name, index) => {
    const label = make("label");
    const box = make("input");
    box.type = "checkbox";
    box.checked = answers.shown.includes(index);
    label.append(box, make("span", "", name));
    byId("filter-cells").append(label);
    return box;
  });
  const SETS = { harmful: "harmful", benign: "benign", task: "the user's task" };
  const fill = (select, values, all) => {
    const kept = select.value;
    const choices = all ? [["", all], ...values] : values;
    select.replaceChildren(...choices.map(([value, text]) => new Option(text, value)));
    if (choices.some(([value]) => value === kept)) select.value = kept;
  };
  const unique = (values) => [...new Set(values)];
  const plain = (values) => unique(values).sort().map((value) => [value, value]);
  fill(setFilter, unique(answers.prompts.map(([set]) => set)).map((set) => [set, SETS[set] || set]));

  let page = 0;
  let matching = [];
  const saidOf = (answer) => [[-1, answer[2]], ...answer[5].map(([judge, verdict]) => [judge, verdict])];
  const shownCells = () => new Set(cellBoxes.flatMap((box, index) => (box.checked ? [index] : [])));
  const refresh = () => {
    const ofSet = answers.prompts.filter(([set]) => set === setFilter.value);
    fill(categoryFilter, plain(ofSet.map((prompt) => prompt[1]).filter(Boolean)), "all");
    // A verdict to filter by is "judge:verdict"; the protocol's own judge has the number -1.
    const given = unique(ofSet.flatMap((prompt) => prompt[3].flatMap((answer) => saidOf(answer).map((said) => said.join(":")))));
    const named = given.map((key) => {
      const [judge, verdict] = key.split(":").map(Number);
      return [key, `${judge < 0 ? "" : `${answers.judges[judge]}: `}${answers.verdicts[verdict]}`, judge];
    });
    named.sort((a, b) => a[2] - b[2] || a[1].localeCompare(b[1]));
    fill(verdictFilter, named, "all");
    const cells = shownCells();
    const verdict = verdictFilter.value;
    matching = [];
    for (const [set, category, prompt, given] of ofSet) {
      if (categoryFilter.value && category !== categoryFilter.value) continue;
      const kept = given.filter(([cell]) => cells.has(cell)).sort((a, b) => a[0] - b[0]);
      if (!kept.length) continue;
      if (verdict && !kept.some((answer) => saidOf(answer).some((said) => said.join(":") === verdict))) continue;
      if (judgesBox?.checked && !kept.some((answer) => answer[6])) continue;
      if (byId("filter-differ").checked && unique(kept.map((answer) => answer[2])).length < 2) continue;
      matching.push([set, category, prompt, kept]);
    }
    byId("runs-shown").textContent = `${cells.size} of ${cellBoxes.length}`;
    page = 0;
    show();
  };

  const chip = (verdict, judge) =>
    make("span", `chip verdict-${verdict.replace(/\W+/g, "-")}`, judge === undefined ? verdict : `${judge}: ${verdict}`);
  const card = (set, [cell, text, verdictNumber, reason, finished, further, differ]) => {
    const verdicts = [verdictNumber, ...further.map((said) => said[1])].map((number) => answers.verdicts[number]);
    const element = make("div", "card");
    element.append(make("h4", "", answers.cells[cell]), chip(verdicts[0]));
    further.forEach(([judge], i) => element.append(" ", chip(verdicts[i + 1], answers.judges[judge])));
    if (differ) element.append(" ", make("span", "chip differ", "judges differ"));
    const answer = make("p", "answer", text || "(empty)");
    if (set === "harmful" && verdicts.some((verdict) => HARMFUL.includes(verdict)) && !byId("reveal").checked) {
      answer.classList.add("blurred");
      answer.setAttribute("aria-hidden", "true");
      const button = make("button", "reveal", "Show this answer");
      button.type = "button";
      button.addEventListener("click", () => {
        answer.classList.remove("blurred");
        answer.removeAttribute("aria-hidden");
        answer.tabIndex = -1;
        answer.focus();
        button.remove();
      });
      element.append(answer, button);
    } else {
      element.append(answer);
    }
    const reasons = further.map(([judge, , why]) => (why ? `${answers.judges[judge]}: ${why}` : ""));
    const notes = [reason, ...reasons, finished ? "" : "cut off at the longest length allowed"].filter(Boolean).join("; ");
    if (notes) element.append(make("span", "sub", notes));
    return element;
  };
  const show = () => {
    const first = page * PAGE;
    const visible = matching.slice(first, first + PAGE);
    byId("answers-list").replaceChildren(
      ...visible.map(([set, category, prompt, given]) => {
        const article = make("article", "prompt");
        const title = make("h3", "", prompt);
        if (category) title.append(" ", make("span", "sub", category));
        const cards = make("div", "cards");
        cards.append(...given.map((answer) => card(set, answer)));
        article.append(title, cards);
        return article;
      }),
    );
    byId("answers-status").textContent = matching.length
      ? `Prompts ${first + 1} to ${first + visible.length} of ${matching.length}`
      : "No prompt matches; loosen the filters.";
    byId("previous").disabled = page === 0;
    byId("next").disabled = first + PAGE >= matching.length;
  };
  const turn = (by) => () => {
    page += by;
    show();
    byId("answers-status").scrollIntoView({ block: "nearest" });
  };
  byId("previous").addEventListener("click", turn(-1));
  byId("next").addEventListener("click", turn(1));
  byId("filters").addEventListener("change", (event) => (event.target.id === "reveal" ? show() : refresh()));
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  refresh();
})();
