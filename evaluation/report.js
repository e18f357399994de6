"use strict";
// Makes the tables sortable and the list of mistakes filterable. Without this script the page still shows both.

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const value = (row, column) => {
    const cell = row.cells[column];
    return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent;
  };
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const order = (a, b) => (typeof a === "number" ? a - b : a.localeCompare(b, undefined, { numeric: true }));
      const rows = [...body.rows].sort((a, b) => order(value(a, column), value(b, column)) * (down ? -1 : 1));
      body.append(...rows);
    });
  });
}

const filters = document.querySelector(".filters");
if (filters) {
  const items = [...document.querySelectorAll(".mistakes li")];
  const selects = [...filters.querySelectorAll("select")];
  const count = filters.querySelector("output");
  const more = filters.querySelector("button");
  let limit = 48;
  const show = () => {
    const chosen = items.filter((item) =>
      selects.every((select) => select.value === "" || item.dataset[select.name] === select.value),
    );
    const shown = new Set(chosen.slice(0, limit));
    for (const item of items) item.hidden = !shown.has(item);
    count.textContent = `${shown.size} of ${chosen.length} shown`;
    more.hidden = shown.size === chosen.length;
  };
  more.addEventListener("click", () => {
    limit = Infinity;
    show();
  });
  for (const select of selects) {
    const names = [...new Set(items.map((item) => item.dataset[select.name]))];
    names.sort((a, b) => a.localeCompare(b, undefined, { numeric: true }));
    select.append(...names.map((name) => new Option(name, name)));
    select.addEventListener("change", show);
  }
  show();
  filters.hidden = false;
}
