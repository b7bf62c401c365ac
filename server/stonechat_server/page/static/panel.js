// Tabs, theme, and the settings panel, which can be hidden.

import { byId } from "./dom.js";

const THEME = "stonechat-theme";
const THEMES = ["system", "light", "dark"];

export function startTabs(list, onSelect) {
  const tabs = () => [...list.querySelectorAll('[role="tab"]')];
  const select = (tab) => {
    for (const one of tabs()) {
      const chosen = one === tab;
      one.setAttribute("aria-selected", String(chosen));
      one.tabIndex = chosen ? 0 : -1;
      const pane = byId(one.getAttribute("aria-controls"));
      if (pane?.getAttribute("role") === "tabpanel") pane.hidden = !chosen;
    }
    onSelect?.(tab);
  };
  list.addEventListener("click", (event) => {
    const tab = event.target.closest('[role="tab"]');
    if (tab) select(tab);
  });
  list.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const all = tabs();
    const next = all[(all.indexOf(document.activeElement) + step + all.length) % all.length];
    select(next);
    next.focus();
    event.preventDefault();
  });
}

export function startTheme(button) {
  const set = (theme) => {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    button.textContent = `Theme: ${theme}`;
    try {
      localStorage.setItem(THEME, theme);
    } catch {
      /* no storage: the theme lasts as long as the page */
    }
  };
  let stored = null;
  try {
    stored = localStorage.getItem(THEME);
  } catch {
    /* no storage: the default theme */
  }
  let theme = THEMES.includes(stored) ? stored : "system";
  set(theme);
  button.addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    set(theme);
  });
}

export function startPanel(button, panel) {
  const set = (open) => {
    panel.hidden = !open;
    button.setAttribute("aria-expanded", String(open));
  };
  set(window.matchMedia("(min-width: 800px)").matches);
  const toggle = () => set(panel.hidden);
  button.addEventListener("click", toggle);
  return toggle;
}
