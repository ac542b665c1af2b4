"use strict";
// The threshold's slider: verdicts, rates, histogram and order of the pictures follow it. Without script all are shown.
(() => {
  const box = document.getElementById("gallery");
  const [slider, filter, order] = ["threshold", "filter", "order"].map((id) => document.getElementById(id));
  const tiles = [...box.querySelectorAll("[data-score]")].map((node) => ({
    node, score: Number(node.dataset.score), defect: node.dataset.defect, name: node.dataset.name,
  }));
  const scores = tiles.map((t) => t.score);
  const [low, high] = [Number(slider.dataset.low), Number(slider.dataset.high)];
  const value = () => Number(slider.value) === Number(slider.dataset.start)
    ? Number(slider.dataset.exact)
    : low + (high - low) * (Number(slider.value) / 1000) ** 2; // fine where most scores are;
  const share = (count, total) => total ? `${count} of ${total} (${(100 * count / total).toFixed(1)} %)` : "none";
  const shown = {
    all: () => true,
    nok: (t, nok) => nok,
    ok: (t, nok) => !nok,
    alarms: (t, nok) => nok && t.defect === "good",
    misses: (t, nok) => !nok && t.defect !== "good",
  };
  const sorted = {
    highest: (a, b) => b.score - a.score,
    lowest: (a, b) => a.score - b.score,
    name: (a, b) => a.name.localeCompare(b.name),
  };
  function update() {
    const threshold = value();
    const good = tiles.filter((t) => t.defect === "good");
    const bad = tiles.filter((t) => t.defect !== "good");
    const above = (list) => list.filter((t) => t.score > threshold).length;
    document.getElementById("at").textContent = threshold.toPrecision(4);
    document.getElementById("alarms").textContent = share(above(good), good.length);
    document.getElementById("found").textContent = share(above(bad), bad.length);
    let visible = 0;
    for (const t of [...tiles].sort(sorted[order.value])) {
      const nok = t.score > threshold;
      const show = shown[filter.value] ? shown[filter.value](t, nok) : t.defect === filter.value;
      t.node.hidden = !show;
      visible += show;
      t.node.classList.toggle("nok", nok);
      t.node.querySelector("b").textContent = nok ? "NOK" : "OK";
      box.append(t.node);
    }
    document.getElementById("count").textContent = `${visible} of ${tiles.length} pictures`;
    const line = document.getElementById("mark");
    const x = 600 * (threshold - low) / (high - low);
    line.setAttribute("x1", x);
    line.setAttribute("x2", x);
  }
  for (const control of [slider, filter, order]) control.addEventListener("input", update);
  document.getElementById("controls").hidden = false;
  update();
})();
