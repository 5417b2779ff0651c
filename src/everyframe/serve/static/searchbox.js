// The search box with its chips and filters: shows the state, and tells what the user changes in it.

import { $, clock, debounce, el, iconButton } from "./dom.js";
import { heldImage } from "./images.js";
import { EMPTY, FILTERS, filtersSet } from "./state.js";

const TYPING = 200; // milliseconds of rest before a search

export class SearchBox {
  /** actions: change(values, {typed}) with parts of the state; submit(); down(); nameOf(video) -> promise of a name. */
  constructor(actions) {
    this.actions = actions;
    this.input = $("query");
    this.collections = [];
    const typed = debounce(() => actions.change({ text: this.input.value }, { typed: true }), TYPING);
    this.input.addEventListener("input", () => {
      this.#buttons();
      typed();
    });
    this.input.addEventListener("keydown", (event) => {
      if (event.key === "ArrowDown") {
        event.preventDefault();
        actions.down();
      } else if (event.key === "Escape") {
        event.preventDefault();
        typed.cancel();
        if (!$("clear").hidden) this.#clear();
        else this.input.blur();
      } else if (event.key === "Backspace" && !this.input.value && this.state) this.#dropLastChip();
    });
    $("search").addEventListener("submit", (event) => {
      event.preventDefault();
      typed.cancel();
      actions.submit(this.input.value);
    });
    $("clear").addEventListener("click", () => {
      typed.cancel();
      this.#clear();
      this.input.focus();
    });
    $("combine").addEventListener("click", () => {
      typed.cancel();
      const text = this.input.value.trim();
      this.input.value = "";
      actions.change({ texts: [...this.state.texts, text], text: "" });
      this.input.focus();
    });
    $("toggle-filters").addEventListener("click", () => this.showFilters($("filters").hidden));
    $("clear-filters").addEventListener("click", () =>
      actions.change(Object.fromEntries(FILTERS.map((name) => [name, EMPTY[name]]))),
    );
    for (const field of document.querySelectorAll("[data-filter]")) {
      const tell = () => field.checkValidity() && actions.change({ [field.dataset.filter]: field.value });
      field.addEventListener(field.type === "text" || field.type === "number" ? "input" : "change", debounce(tell, 300));
    }
    $("group").addEventListener("click", () => actions.change({ group: !this.state.group }));
  }

  focus() {
    this.input.focus();
    this.input.select();
  }

  showFilters(yes) {
    $("filters").hidden = !yes;
    $("toggle-filters").setAttribute("aria-expanded", String(yes));
  }

  /** Collections that the archive holds; a choice is offered where there are several. */
  setCollections(collections) {
    this.collections = collections;
    $("collection-label").hidden = collections.length < 2;
    $("filter-collection").replaceChildren(
      ...collections.map(({ id, label, default: first }) => el("option", { value: first ? "" : id }, label)),
    );
    if (this.state) $("filter-collection").value = this.state.collection;
  }

  show(state) {
    this.state = state;
    if (this.input.value.trim() !== state.text.trim()) this.input.value = state.text;
    for (const field of document.querySelectorAll("[data-filter]")) {
      if (field.value !== state[field.dataset.filter]) field.value = state[field.dataset.filter];
    }
    const set = filtersSet(state);
    $("filter-count").hidden = !set;
    $("filter-count").textContent = set;
    $("clear-filters").disabled = !set;
    $("group").setAttribute("aria-pressed", String(state.group));
    this.#chips(state);
    this.#buttons();
  }

  #clear() {
    this.input.value = "";
    this.actions.change({ text: "", texts: [], like: "", image: "" });
  }

  #buttons() {
    const { texts, like, image } = this.state ?? EMPTY;
    $("clear").hidden = !(this.input.value || texts.length || like || image);
    $("combine").hidden = !this.input.value.trim();
  }

  #chips(state) {
    const chips = state.texts.map((text, i) =>
      chip(text, null, () => this.actions.change({ texts: state.texts.filter((_, j) => j !== i) })),
    );
    if (state.like) {
      const [video, seconds] = state.like.split("@");
      const label = el("span", {}, `like ${clock(Number(seconds))}`);
      chips.push(chip(label, `/api/videos/${video}/thumbnail?t=${seconds}`, () => this.actions.change({ like: "" })));
      this.actions.nameOf(video).then((name) => (label.textContent = `like ${name} at ${clock(Number(seconds))}`), () => {});
    }
    const picture = state.image && heldImage(state.image);
    if (picture) chips.push(chip(picture.name, picture.url, () => this.actions.change({ image: "" })));
    $("chips").replaceChildren(...chips);
  }

  #dropLastChip() {
    const { texts, like, image } = this.state;
    if (image) this.actions.change({ image: "" });
    else if (like) this.actions.change({ like: "" });
    else if (texts.length) this.actions.change({ texts: texts.slice(0, -1) });
  }
}

function chip(label, address, remove) {
  const name = typeof label === "string" ? label : label.textContent;
  return el(
    "span",
    { class: "chip" },
    address ? el("img", { src: address, alt: "" }) : null,
    typeof label === "string" ? el("span", {}, label) : label,
    iconButton("close", `Remove ${name}`, remove),
  );
}
