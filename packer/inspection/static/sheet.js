// Turns the pages by the arrow keys, marks the link of the page that is shown, and moves the focus to the page. Links work
// without it.
"use strict";

const pages = [...document.querySelectorAll("section")];
const links = new Map([...document.querySelectorAll("aside a")].map((link) => [link.hash, link]));

function shown() {
  return Math.max(0, pages.findIndex((page) => `#${page.id}` === location.hash));
}

function mark() {
  for (const link of links.values()) link.removeAttribute("aria-current");
  const link = links.get(`#${pages[shown()]?.id.replace(/\d+$/, "1")}`);
  link?.setAttribute("aria-current", "page");
  link?.scrollIntoView({ block: "nearest" });
}

addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
  const page = pages[shown() + step];
  if (page) location.hash = page.id;
});
addEventListener("hashchange", () => {
  mark();
  pages[shown()]?.focus({ preventScroll: true });
});
mark();
