// Runs before the first paint, so that a chosen theme never flashes. Without a choice the system's is followed.
(() => {
  const root = document.documentElement;
  let chosen = null;
  try {
    chosen = localStorage.getItem("theme");
  } catch {
    // Storage is blocked: the choice lasts until the page is closed.
  }
  if (chosen === "light" || chosen === "dark") root.dataset.theme = chosen;

  window.everyframeTheme = {
    isDark: () =>
      root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches,
    toggle() {
      root.dataset.theme = this.isDark() ? "light" : "dark";
      try {
        localStorage.setItem("theme", root.dataset.theme);
      } catch {
        // As above.
      }
    },
  };
})();
