// The list of all videos: find by name, play, remove.

import { getJson, request, withParameters } from "./api.js";
import { $, clock, count, day, debounce, el, iconButton } from "./dom.js";

const PAGE = 50;

export class Videos {
  /** actions: open(record), changed() after a removal, canRemove(). */
  constructor(actions) {
    this.actions = actions;
    this.dialog = $("videos");
    this.list = $("videos-list");
    this.filter = $("videos-filter");
    this.filter.addEventListener("input", debounce(() => this.#load(), 200));
    this.list.addEventListener("error", (event) => event.target.classList?.add("missing"), true);
  }

  open() {
    if (!this.dialog.open) this.dialog.showModal();
    this.filter.value = "";
    this.#load();
  }

  async #load() {
    this.loading?.abort();
    this.loading = new AbortController();
    try {
      const answer = await this.#page(0, this.loading.signal);
      this.records = el("ol", { class: "records" });
      this.list.replaceChildren(this.records);
      this.#append(answer);
      $("videos-count").textContent = answer.total ? count(answer.total, "video") : "No video has this in its name.";
      if (!answer.total && !this.filter.value.trim()) $("videos-count").textContent = "No videos yet.";
    } catch (error) {
      if (error.name === "AbortError") return;
      this.list.replaceChildren();
      $("videos-count").textContent = error.message;
    }
  }

  #page(offset, signal) {
    return getJson(withParameters("/api/videos", { offset, limit: PAGE, q: this.filter.value.trim() }), { signal });
  }

  #append({ videos, total }) {
    this.records.append(...videos.map((record) => this.#row(record)));
    this.more?.remove();
    if (this.records.children.length >= total || !videos.length) return;
    this.more = el("button", { type: "button", class: "plain more", onclick: async () => {
      this.more.disabled = true;
      try {
        this.#append(await this.#page(this.records.children.length, this.loading.signal));
      } catch (error) {
        if (error.name !== "AbortError") this.more.replaceWith(el("p", { class: "muted" }, error.message));
      }
    } }, "More videos");
    this.list.append(this.more);
  }

  #row(record) {
    const facts = [clock(Math.round(record.duration)), count(record.frames, "frame"), record.codec, day(record.date)];
    const row = el("li", { class: "record" });
    const open = el(
      "button",
      { type: "button", class: "record-open", onclick: () => this.actions.open(record) },
      el("img", { src: record.thumbnail ?? "", alt: "", loading: "lazy", decoding: "async" }),
      el(
        "span",
        {},
        el("span", { class: "record-name" }, record.name),
        el("span", { class: "muted" }, facts.filter(Boolean).join(" · ")),
        record.available === false ? el("span", { class: "warning" }, "The file is not where it was.") : null,
      ),
    );
    const remove = iconButton("trash", `Remove ${record.name}`, () => this.#confirm(row, record, remove));
    row.append(open, ...(this.actions.canRemove() ? [remove] : []));
    return row;
  }

  #confirm(row, record, remove) {
    const done = () => {
      question.remove();
      remove.hidden = false;
      remove.focus();
    };
    const yes = el("button", { type: "button", class: "danger", onclick: () => this.#remove(row, record, question) }, "Remove");
    const no = el("button", { type: "button", class: "plain", onclick: done }, "Keep");
    const question = el(
      "div",
      { class: "question", role: "group", "aria-label": `Remove ${record.name}?` },
      el("p", {}, "Take this video out of the archive? Its file stays, unless it was uploaded here."),
      yes,
      no,
    );
    remove.hidden = true;
    row.append(question);
    no.focus();
  }

  async #remove(row, record, question) {
    try {
      await request(`/api/videos/${record.video}`, { method: "DELETE" });
    } catch (error) {
      question.firstChild.textContent = error.message;
      return;
    }
    const next = (row.nextElementSibling ?? row.previousElementSibling)?.querySelector("button");
    row.remove();
    (next ?? this.filter).focus();
    $("videos-count").textContent = `${record.name} was removed.`;
    this.actions.changed();
  }
}
