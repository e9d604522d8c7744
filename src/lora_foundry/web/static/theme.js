// Before the first paint: the colours that were chosen last, so that no page flashes in the other ones.
const chosenTheme = localStorage.getItem("theme");
if (chosenTheme === "light" || chosenTheme === "dark") document.documentElement.dataset.theme = chosenTheme;
