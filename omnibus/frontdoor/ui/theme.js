// The theme: light, dark, or as the system has it. Loaded before the page is drawn, so that it never flashes.
"use strict";

(() => {
  const NAMES = ["auto", "light", "dark"];
  const LABELS = { auto: "Theme: as the system has it", light: "Theme: light", dark: "Theme: dark" };
  const root = document.documentElement;
  root.dataset.theme = NAMES.includes(localStorage.getItem("omnibus-theme")) ? localStorage.getItem("omnibus-theme") : "auto";

  function show(button) {
    const name = root.dataset.theme;
    button.textContent = `Theme: ${name}`;
    button.setAttribute("aria-label", LABELS[name]);
  }

  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme-button");
    show(button);
    button.addEventListener("click", () => {
      root.dataset.theme = NAMES[(NAMES.indexOf(root.dataset.theme) + 1) % NAMES.length];
      localStorage.setItem("omnibus-theme", root.dataset.theme);
      show(button);
    });
  });
})();
