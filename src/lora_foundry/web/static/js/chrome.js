// What every page has besides its own matter: the switch between light, dark and the system's colours.

import { byId } from "./dom.js";

const ORDER = ["system", "light", "dark"];
const NAMES = { system: "as the system", light: "light", dark: "dark" };

export function startChrome() {
  const button = byId("theme");
  let theme = localStorage.getItem("theme") ?? "system";
  const show = () => {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    button.setAttribute("aria-label", `Colours: ${NAMES[theme]}`);
    button.title = `Colours: ${NAMES[theme]}`;
  };
  button.addEventListener("click", () => {
    theme = ORDER[(ORDER.indexOf(theme) + 1) % ORDER.length];
    localStorage.setItem("theme", theme);
    show();
  });
  show();
}
