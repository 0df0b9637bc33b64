// Let the keyboard scroll what is wider than its place. For screen readers, name the two sidebars, and the search.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  document.querySelector(".sidebar-drawer")?.setAttribute("aria-label", "Pages");
  document.querySelector(".toc-drawer")?.setAttribute("aria-label", "On this page");
  if (!document.querySelector("h1")) {
    const heading = document.createElement("h1");
    heading.textContent = "Search";
    document.getElementById("search-results")?.before(heading);
  }

  const places = "article pre, article .table-wrapper, article div.math, article mjx-container[display]";
  const mark = () => {
    document.querySelectorAll(places).forEach((place) => {
      if (place.scrollWidth > place.clientWidth) {
        place.tabIndex = 0;
      } else {
        place.removeAttribute("tabindex");
      }
    });
  };
  mark();
  window.addEventListener("resize", mark);
  window.addEventListener("load", () => window.MathJax?.startup?.promise.then(mark)); // which sets formulas later
});
