// Let readers sort a table by its columns and show the rows that they look for. Without this script it is plain.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll(".filtered-table").forEach((container) => {
    const table = container.querySelector("table");
    const body = table.tBodies[0];
    const rows = Array.from(body.rows);
    const headers = Array.from(table.tHead.rows[0].cells);
    const names = headers.map((header) => header.textContent.trim());
    const text = (row, column) => row.cells[column].textContent.trim();

    rows.forEach((row) => {
      Array.from(row.cells).forEach((cell, column) => {
        cell.dataset.label = names[column];
      });
    });

    const filter = document.createElement("div");
    filter.className = "table-filter";
    const search = document.createElement("input");
    search.type = "search";
    const kinds = document.createElement("select");
    const order = document.createElement("select");
    const shown = document.createElement("output");
    const labelled = (name, field) => {
      const label = document.createElement("label");
      label.append(name, field);
      return label;
    };
    filter.append(labelled("Search", search), labelled("It reads", kinds), labelled("Sort by", order), shown);
    container.prepend(filter);

    // The second column, up to its parentheses and commas, is what a method reads.
    const kind = (row) => text(row, 1).split(/[(,]/)[0].trim();
    ["anything", ...new Set(rows.map(kind))].forEach((name) => kinds.append(new Option(name, name)));
    names.forEach((name, column) => order.append(new Option(name, column)));

    const show = () => {
      const words = search.value.toLowerCase().split(/\s+/);
      let count = 0;
      rows.forEach((row) => {
        const content = row.textContent.toLowerCase();
        const ofKind = kinds.value === "anything" || kind(row) === kinds.value;
        row.hidden = !ofKind || !words.every((word) => content.includes(word));
        count += row.hidden ? 0 : 1;
      });
      shown.value = `${count} of ${rows.length}`;
    };

    const sort = (column, descending) => {
      const value = (row) => {
        const number = parseFloat(text(row, column));
        return Number.isNaN(number) ? null : number;
      };
      const numeric = rows.some((row) => value(row) !== null);
      const sign = descending ? -1 : 1;
      rows.sort((a, b) => {
        if (!numeric) return sign * text(a, column).localeCompare(text(b, column));
        if (value(a) === null || value(b) === null) return (value(a) === null) - (value(b) === null); // last
        return sign * (value(a) - value(b));
      });
      body.append(...rows);
      headers.forEach((header) => header.removeAttribute("aria-sort"));
      headers[column].setAttribute("aria-sort", descending ? "descending" : "ascending");
      order.value = String(column);
    };

    headers.forEach((header, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(names[column]);
      header.replaceChildren(button);
      button.addEventListener("click", () => sort(column, header.getAttribute("aria-sort") === "ascending"));
    });
    search.addEventListener("input", show);
    kinds.addEventListener("change", show);
    order.addEventListener("change", () => sort(Number(order.value), false));
    order.value = "1";
    show();
  });
});
