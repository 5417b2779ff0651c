// Small helpers for the DOM: elements, icons and how times are written.

const SVG = "http://www.w3.org/2000/svg";

// Paths on a 24 x 24 grid, drawn with a stroke.
const ICONS = {
  search: "M11 4a7 7 0 1 1 0 14 7 7 0 0 1 0-14zM16 16l5 5",
  close: "M6 6l12 12M18 6L6 18",
  plus: "M12 5v14M5 12h14",
  film: "M4 5h16v14H4zM8 5v14M16 5v14M4 9.7h4M4 14.3h4M16 9.7h4M16 14.3h4",
  image: "M4 5h16v14H4zM4 16l5-5 4 4 3-3 4 4M15 9.5h.01",
  filter: "M4 7h16M7 12h10M10 17h4",
  help: "M9.2 9.2a2.9 2.9 0 1 1 4.2 2.6c-.9.5-1.4 1-1.4 2.2M12 17.5h.01M12 3a9 9 0 1 1 0 18 9 9 0 0 1 0-18z",
  theme: "M12 4a8 8 0 1 0 0 16zM12 4a8 8 0 0 1 0 16",
  play: "M8 5.5v13l10.5-6.5z",
  pause: "M9 6v12M15 6v12",
  previous: "M6 6v12M18 6.5v11L9.5 12z",
  next: "M18 6v12M6 6.5v11l8.5-5.5z",
  sound: "M4 9.5v5h3.5L12 18.5v-13L7.5 9.5zM15.5 9a4.2 4.2 0 0 1 0 6M18 6.5a8 8 0 0 1 0 11",
  muted: "M4 9.5v5h3.5L12 18.5v-13L7.5 9.5zM16 9.5l5 5M21 9.5l-5 5",
  loop: "M17 3l3 3-3 3M20 6H8a4 4 0 0 0-4 4v1M7 21l-3-3 3-3M4 18h12a4 4 0 0 0 4-4v-1",
  expand: "M9 4H4v5M15 4h5v5M9 20H4v-5M15 20h5v-5",
  similar: "M8 4h12v12H8zM4 8v12h12",
  kinds: "M5 5v14M10 12v7M14.5 12v7M19 5v14",
  trash: "M5 7h14M10 7V4.5h4V7M7 7l1 12.5h8L17 7",
  warning: "M12 4l9 16H3zM12 10v4M12 17h.01",
};

/** An element. `props` are properties; `class`, `data` and names with a dash or `role` are attributes. */
export function el(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null) continue;
    if (name === "class") node.className = value;
    else if (name === "data") Object.assign(node.dataset, value);
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name.includes("-") || name === "role") node.setAttribute(name, value);
    else node[name] = value;
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

export function svg(tag, attributes = {}, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

export function icon(name) {
  return svg("svg", { viewBox: "0 0 24 24", "aria-hidden": "true", class: "icon" }, svg("path", { d: ICONS[name] }));
}

/** A button with an icon; `label` is its name, and its tooltip where no text is shown. */
export function iconButton(name, label, onclick, { text = "", className = "quiet" } = {}) {
  const kind = text ? className : `${className} round`;
  return el(
    "button",
    { type: "button", class: kind, title: label, "aria-label": text ? null : label, onclick },
    icon(name),
    text ? el("span", { class: "text" }, text) : null,
  );
}

export function setIcon(button, name) {
  button.querySelector(".icon").replaceWith(icon(name));
}

/** Replace what stands in for icons in the page's own markup. */
export function drawIcons(root = document) {
  for (const place of root.querySelectorAll("span.icon[data-icon]")) place.replaceWith(icon(place.dataset.icon));
}

/** A click that is not meant to open a link elsewhere. */
export const plainClick = (event) =>
  !(event.button || event.ctrlKey || event.metaKey || event.shiftKey || event.altKey);

export const $ = (id) => document.getElementById(id);

/** 75.4 -> "1:15", 3700 -> "1:01:40". */
export function clock(seconds) {
  const whole = Math.max(0, Math.floor(seconds + 1e-6));
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  const two = (number) => String(number).padStart(2, "0");
  return hours ? `${hours}:${two(minutes)}:${two(rest)}` : `${minutes}:${two(rest)}`;
}

/** 75.4 -> "1 minute 15 seconds", as a screen reader should say it. */
export function spokenTime(seconds) {
  const whole = Math.max(0, Math.floor(seconds + 1e-6));
  const parts = [
    [Math.floor(whole / 3600), "hour"],
    [Math.floor(whole / 60) % 60, "minute"],
    [whole % 60, "second"],
  ].filter(([number], index, all) => number || (index === 2 && !all[0][0] && !all[1][0]));
  return parts.map(([number, unit]) => `${number} ${unit}${number === 1 ? "" : "s"}`).join(" ");
}

/** Length of much video: "48 s", "12 min", "3.4 h", "1,204 h". */
export function amount(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  const hours = seconds / 3600;
  return `${hours.toLocaleString("en", { maximumFractionDigits: hours < 100 ? 1 : 0 })} h`;
}

/** 12.3 -> "12 ms", 2345 -> "2.3 s". */
export function speed(milliseconds) {
  return milliseconds < 1000 ? `${Math.max(1, Math.round(milliseconds))} ms` : `${(milliseconds / 1000).toFixed(1)} s`;
}

let toastTimer;

/** Say something for a few seconds, over the page. */
export function toast(text) {
  $("toast").textContent = text;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => ($("toast").textContent = ""), 6000);
}

export const count = (number, one, many = `${one}s`) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;

export const day = (text) => {
  const date = new Date(text);
  return Number.isNaN(date.getTime()) ? "" : date.toLocaleDateString("en", { dateStyle: "medium" });
};

/** Call `action` when it was not asked for again during `milliseconds`. */
export function debounce(action, milliseconds) {
  let timer;
  const later = (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => action(...args), milliseconds);
  };
  later.cancel = () => clearTimeout(timer);
  return later;
}
