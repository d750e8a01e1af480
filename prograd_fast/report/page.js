"use strict";
// Sort a table by the column whose header is pressed: first rising (texts) or falling (numbers), then the other way.
for (const table of document.querySelectorAll("table")) {
  const headers = [...table.querySelectorAll("thead th")];
  headers.forEach((header, column) => {
    const button = header.querySelector("button");
    if (!button) return;
    button.addEventListener("click", () => {
      const body = table.tBodies[0];
      const rows = [...body.rows];
      const isNumber = rows.some((row) => row.cells[column].dataset.value !== undefined);
      const now = header.getAttribute("aria-sort");
      const falling = now ? now === "ascending" : isNumber;
      const key = (row) => {
        const cell = row.cells[column];
        return isNumber ? Number(cell.dataset.value) : cell.textContent;
      };
      const compare = isNumber ? (a, b) => a - b : new Intl.Collator(undefined, { numeric: true }).compare;
      rows.sort((a, b) => (falling ? -1 : 1) * compare(key(a), key(b)));
      body.append(...rows);
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", falling ? "descending" : "ascending");
    });
  });
}
