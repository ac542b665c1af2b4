"use strict";
// Photographs are sent one after another; each has a card with its heatmap and verdict, the newest first.
(() => {
  const [drop, file, results, token, rule] = ["drop", "file", "results", "token", "rule"].map((id) => document.getElementById(id));
  const element = (name, text) => Object.assign(document.createElement(name), { textContent: text });
  const card = (name) => {
    const box = document.createElement("figure");
    const caption = document.createElement("figcaption");
    caption.append(element("b", "…"), element("span", name));
    box.append(caption);
    results.prepend(box);
    return (verdict, text, source) => {
      box.className = verdict;
      caption.replaceChildren(element("b", verdict), element("span", `${name}: ${text}`));
      if (source) box.prepend(Object.assign(new Image(), { src: source, alt: `Heatmap of ${name}: ${verdict}` }));
    };
  };
  async function judge(photo, show) {
    const headers = token ? { Authorization: `Bearer ${token.value}` } : {};
    try {
      const answer = await fetch("predict?heatmap=1", { method: "POST", body: photo, headers });
      const found = await answer.json();
      if (!answer.ok) return show("ERROR", typeof found.detail === "string" ? found.detail : `answer ${answer.status}`);
      const parts = found.regions.length === 1 ? "1 region" : `${found.regions.length} regions`;
      const score = `score ${found.score.toPrecision(4)}, threshold ${found.threshold.toPrecision(4)}, ${parts}`;
      return show(found.verdict, score, `data:image/png;base64,${found.heatmap}`);
    } catch (error) {
      return show("ERROR", `the service does not answer (${error.message})`);
    }
  }
  let line = Promise.resolve();
  function take(photos) {
    for (const photo of photos) {
      const show = card(photo.name);
      line = line.then(() => judge(photo, show));
    }
  }
  file.addEventListener("change", () => { take(file.files); file.value = ""; });
  for (const name of ["dragover", "dragleave", "drop"]) {
    document.addEventListener(name, (event) => {
      event.preventDefault();
      drop.classList.toggle("over", name === "dragover");
      if (name === "drop") take(event.dataTransfer.files);
    });
  }
  fetch("health").then((answer) => answer.json()).then((found) => { rule.textContent = `${found.method}: ${found.decision}`; }, () => {});
})();
