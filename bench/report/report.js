// Make the page interactive: highlight methods in every figure, sort tables, hide problems.
// Without this script the page shows everything, in the suite's order.
"use strict";

(() => {
  const MOST = Number(document.body.dataset.colours);
  const all = (selector, within = document) => [...within.querySelectorAll(selector)];
  const methods = all("[data-follow]").map((chip) => chip.dataset.follow);
  const followed = new Set();
  let hovered = null;
  let only = false; // whether tables have rows of highlighted methods alone

  // Highlighted ("followed") methods keep their colours, and all others turn grey. If there are more than MOST methods,
  // the first MOST are highlighted until the reader chooses.
  const paint = () => {
    const few = methods.length > MOST ? methods.slice(0, MOST) : methods;
    const chosen = hovered !== null ? new Set([hovered]) : followed.size ? followed : new Set(few);
    const grey = methods.filter((place) => !chosen.has(place));
    const wanted = hovered !== null || followed.size > 0; // until then, all rows of tables stay easy to read
    document.getElementById("followed").textContent = grey
      .map((place) => `.method-${place} { filter: grayscale(1); opacity: 0.25; }`)
      .concat(wanted ? grey.map((place) => `[data-method="${place}"] { opacity: 0.45; }`) : [])
      .concat(only && followed.size
        ? methods.filter((place) => !followed.has(place)).map((place) => `tr[data-method="${place}"] { display: none; }`)
        : [])
      .join("\n");
    for (const chip of all("[data-follow]")) {
      chip.setAttribute("aria-pressed", String(followed.has(chip.dataset.follow)));
    }
  };

  const follow = (place) => {
    if (followed.has(place)) followed.delete(place);
    else if (followed.size < MOST) followed.add(place);
    hovered = null;
    paint();
  };

  const placeOf = (element) => {
    const part = element.closest('[data-method], [data-follow], [class^="method-"]');
    if (!part) return null;
    return part.dataset.method ?? part.dataset.follow ?? part.getAttribute("class").replace("method-", "");
  };

  document.addEventListener("pointerover", (event) => {
    if (event.pointerType === "touch") return; // a finger that scrolls highlights nothing
    const place = placeOf(event.target);
    if (place !== hovered) {
      hovered = place;
      paint();
    }
  });
  document.documentElement.addEventListener("pointerleave", () => {
    hovered = null;
    paint();
  });
  document.addEventListener("click", (event) => {
    if (!getSelection().isCollapsed) return; // the click that ends a selection of text
    const place = placeOf(event.target);
    if (place !== null && !event.target.closest("a, summary")) follow(place);
  });

  const onlyChip = document.querySelector("[data-only]");
  onlyChip.addEventListener("click", () => {
    only = !only;
    onlyChip.setAttribute("aria-pressed", String(only));
    paint();
  });

  // Hide and show a problem's section, and its columns in the overview.
  for (const chip of all("[data-show]")) {
    chip.addEventListener("click", () => {
      const shown = chip.getAttribute("aria-pressed") !== "true";
      chip.setAttribute("aria-pressed", String(shown));
      for (const part of all(`[data-problem="${chip.dataset.show}"]`)) part.hidden = !shown;
    });
  }

  // Sort tables: numbers by value, cells without a number after them, texts alphabetically.
  const value = (row, column) => {
    const cell = row.cells[column];
    const text = (cell.dataset.sort ?? cell.textContent).trim().replace("−", "-");
    const number = text.startsWith("∞") ? Infinity : parseFloat(text.replace(/[+,]/g, ""));
    return { text, number };
  };
  const sort = (table, column) => {
    const head = table.tHead.rows[0].cells[column];
    const down = head.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...table.tBodies[0].rows].map((row) => ({ row, ...value(row, column) }));
    const sign = down ? -1 : 1;
    rows.sort((a, b) => {
      const [none, also] = [Number.isNaN(a.number), Number.isNaN(b.number)];
      if (none && also) return sign * a.text.localeCompare(b.text);
      return none - also || (a.number === b.number ? 0 : sign * (a.number - b.number));
    });
    table.tBodies[0].append(...rows.map(({ row }) => row));
  };
  for (const table of all("table.sortable")) {
    table.classList.add("can-sort");
    [...table.tHead.rows[0].cells].forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      head.addEventListener("click", () => sort(table, column));
    });
  }

  document.getElementById("controls").hidden = false;
  paint();
})();
