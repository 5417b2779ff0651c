// The videos that the page shows before anything is searched for.

import { clock, el, plainClick } from "./dom.js";

/** link(record) -> address; open(record) plays it. */
export function tiles(records, link, open) {
  return [
    el("h2", { class: "recent" }, "In the archive"),
    el("ul", { class: "tiles" }, records.map((record) => el("li", {}, tile(record, link(record), open)))),
  ];
}

function tile(record, href, open) {
  const onclick = (event) => {
    if (!plainClick(event)) return;
    event.preventDefault();
    open(record);
  };
  const picture = el("img", { src: record.thumbnail, alt: "", loading: "lazy", decoding: "async" });
  const length = record.duration ? el("span", { class: "length" }, clock(Math.round(record.duration))) : null;
  return el(
    "a",
    { class: "tile", href, onclick },
    el("span", { class: "tile-picture" }, picture, length),
    el("span", { class: "tile-name" }, record.name),
  );
}
