// Let the keyboard scroll what is wider than its place, and name the two sidebars for screen readers.
"use strict";

document.addEventListener("DOMContentLoaded", () => {
  document.querySelector(".sidebar-drawer")?.setAttribute("aria-label", "Pages");
  document.querySelector(".toc-drawer")?.setAttribute("aria-label", "On this page");

  const scrolling = document.querySelectorAll("article pre, article .table-wrapper, article div.math");
  const mark = () => {
    scrolling.forEach((place) => {
      if (place.scrollWidth > place.clientWidth) {
        place.tabIndex = 0;
      } else {
        place.removeAttribute("tabindex");
      }
    });
  };
  mark();
  window.addEventListener("resize", mark);
});
