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

// A side panel with its button. The browser remembers whether it is open; `isOpen` holds before the
// first use. On a narrow screen it lies over the conversation, and starts closed.
export function startPanel(button, panel, isOpen) {
  const stored = `stonechat-open-${panel.id}`;
  const isWide = () => window.matchMedia("(min-width: 800px)").matches;
  const set = (open) => {
    panel.hidden = !open;
    button.setAttribute("aria-expanded", String(open));
  };
  let before = null;
  try {
    before = localStorage.getItem(stored);
  } catch {
    /* no storage: as before the first use */
  }
  set(isWide() && (before === null ? isOpen : before === "true"));
  const choose = (open) => {
    set(open);
    try {
      if (isWide()) localStorage.setItem(stored, String(open));
    } catch {
      /* no storage: it is not remembered */
    }
  };
  button.addEventListener("click", () => choose(panel.hidden));
  return {
    toggle: () => choose(panel.hidden),
    show: () => choose(true),
    isWide,
    hide: () => set(false),
  };
}

// Menus are <details>: a click elsewhere or Escape closes them.
export function startMenus() {
  const close = (except) => {
    for (const menu of document.querySelectorAll("details.menu[open]")) {
      if (menu !== except) menu.open = false;
    }
  };
  document.addEventListener("click", (event) => {
    const menu = event.target.closest("details.menu");
    close(event.target.closest(".menu .items button, .menu .items a") ? null : menu);
  });
  return close;
}
