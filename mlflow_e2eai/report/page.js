// Narrows every table to the variants whose name holds the text; without it, all are shown.
(() => {
  const field = document.getElementById("filter");
  if (!field) return;
  const count = document.getElementById("filter-count");
  const bodies = [...document.querySelectorAll("tbody[data-variant]")];
  const names = new Set(bodies.map((body) => body.dataset.variant));
  field.addEventListener("input", () => {
    const wanted = field.value.trim().toLowerCase();
    const holds = (name) => name.toLowerCase().includes(wanted);
    for (const body of bodies) body.hidden = !holds(body.dataset.variant);
    count.textContent = `${[...names].filter(holds).length} of ${names.size} shown`;
  });
  document.getElementById("filter-line").hidden = false;
})();
