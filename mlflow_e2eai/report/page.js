// Lets people narrow every table to some variants, and sort those that are sortable. Without it all
// rows are there, in the manifest's order.
(() => {
  const field = document.getElementById("filter");
  if (field) {
    const count = document.getElementById("filter-count");
    const bodies = [...document.querySelectorAll("tbody[data-variant]")];
    const named = (body) => body.dataset.variant.split("\n");
    const names = new Set(bodies.flatMap(named));
    field.addEventListener("input", () => {
      const wanted = field.value.trim().toLowerCase();
      const holds = (name) => name.toLowerCase().includes(wanted);
      for (const body of bodies) body.hidden = !named(body).some(holds);
      count.textContent = `${[...names].filter(holds).length} of ${names.size} shown`;
    });
    document.getElementById("filter-line").hidden = false;
  }

  // On a narrow screen the result is open, and of all else the headings; a link or print opens it.
  if (matchMedia("(max-width: 40rem)").matches) {
    for (const section of document.querySelectorAll("main > section:not(.result)")) {
      const [details, summary] = ["details", "summary"].map((tag) => document.createElement(tag));
      details.className = "collapsed";
      summary.append(section.querySelector("h2"));
      details.append(summary, ...section.childNodes);
      section.append(details);
    }
    const open = (which) => {
      for (const details of document.querySelectorAll(which)) details.open = true;
    };
    for (const event of ["load", "hashchange"]) {
      addEventListener(event, () => open(":target > .collapsed"));
    }
    addEventListener("beforeprint", () => open(".collapsed"));
  }

  // What was not measured goes last either way; what is no number (NaN) is worse than any number.
  const number = ({ dataset: { value } }) =>
    value === undefined ? undefined : Number(value.replace("inf", "Infinity"));
  const order = (column, sign) => (one, other) => {
    const [a, b] = [one, other].map((body) => body.rows[0].cells[column]);
    if (!a.classList.contains("number")) {
      return sign * a.textContent.localeCompare(b.textContent, "en", { numeric: true });
    }
    const [x, y] = [number(a), number(b)];
    if (x === undefined || y === undefined) return (x === undefined) - (y === undefined);
    if (Number.isNaN(x) || Number.isNaN(y)) return sign * (Number.isNaN(x) - Number.isNaN(y));
    return x === y ? 0 : sign * (x - y);
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    for (const head of table.tHead.rows[0].cells) {
      if (head.querySelector(".unseen")) continue;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const sign = head.ariaSort === "ascending" ? -1 : 1;
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
        table.append(...[...table.tBodies].sort(order(head.cellIndex, sign)));
      });
    }
  }
})();
