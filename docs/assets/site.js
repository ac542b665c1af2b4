// Formulas: in pages they are marked by the build, in notebooks they stand between dollars.
const DOLLARS = [
  { left: "$$", right: "$$", display: true },
  { left: "$", right: "$", display: false },
]
const BRACKETS = [
  { left: "\\[", right: "\\]", display: true },
  { left: "\\(", right: "\\)", display: false },
]

for (const element of document.querySelectorAll(".arithmatex"))
  renderMathInElement(element, { delimiters: BRACKETS })
for (const element of document.querySelectorAll(".jp-RenderedMarkdown"))
  renderMathInElement(element, { delimiters: [...DOLLARS, ...BRACKETS] })

// Cells that are folded in the notebook are folded here.
for (const input of document.querySelectorAll(".celltag_folded .jp-Cell-inputWrapper")) {
  const details = document.createElement("details")
  const summary = document.createElement("summary")
  summary.textContent = "Code"
  details.className = "folded"
  input.replaceWith(details)
  details.append(summary, input)
}
