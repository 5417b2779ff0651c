// The list of moments, and what stands in its place: empty, failed, searching.

import { amount, clock, count, el, icon, iconButton, plainClick } from "./dom.js";

/** The list of moments. `actions`: link(moment) -> address, open(moment), like(video, seconds, name). */
export class Results {
  constructor(root, actions) {
    this.root = root;
    this.actions = actions;
    this.moments = [];
    this.byLink = new WeakMap();
    root.addEventListener("keydown", (event) => this.#keys(event));
    root.addEventListener("click", (event) => this.#click(event));
    // A picture that is missing leaves a plain tile; errors do not bubble, so they are caught on the way down.
    root.addEventListener("error", (event) => event.target.classList?.add("missing"), true);
  }

  show(moments, grouped) {
    this.moments = moments;
    const best = Math.max(...moments.map((moment) => moment.score), 1e-6);
    const items = (list, named) =>
      el("ol", { class: "moments" }, list.map((moment) => this.#row(moment, best, named)));
    if (!grouped) return this.#replace(items(moments, true));
    const groups = Map.groupBy ? Map.groupBy(moments, (moment) => moment.video) : groupBy(moments);
    return this.#replace(
      ...[...groups.values()].map((list) =>
        el(
          "section",
          { class: "group" },
          el("h2", {}, list[0].name),
          el("p", { class: "muted" }, summary(list)),
          items(list, false),
        ),
      ),
    );
  }

  /** One of the designed states: a drawing, a heading, a sentence and what can be done. */
  state(name, heading, text, ...actions) {
    this.moments = [];
    this.#replace(
      el(
        "div",
        { class: `state ${name}`, role: name === "problem" || name === "gone" ? "alert" : null },
        el("div", { class: "state-mark" }, icon(name === "problem" || name === "gone" ? "warning" : "film")),
        el("h2", {}, heading),
        el("p", {}, text),
        actions.length ? el("div", { class: "state-actions" }, actions) : null,
      ),
    );
  }

  clear(...children) {
    this.moments = [];
    this.#replace(...children);
  }

  busy(yes) {
    this.root.classList.toggle("busy", yes);
    this.root.setAttribute("aria-busy", String(yes));
  }

  get links() {
    return [...this.root.querySelectorAll("a.moment-link")];
  }

  focusFirst() {
    this.links[0]?.focus();
  }

  /** The moment that has the focus, or none. */
  get focused() {
    const link = document.activeElement?.closest?.("li.moment")?.querySelector("a.moment-link");
    return link ? this.byLink.get(link) : undefined;
  }

  /** Moments of one video among the results. */
  of(video) {
    return this.moments.filter((moment) => moment.video === video).sort((a, b) => a.start - b.start);
  }

  #replace(...children) {
    this.busy(false);
    this.root.replaceChildren(...children);
  }

  #row(moment, best, named) {
    const when = `${clock(moment.start)} – ${clock(moment.end)}`;
    const bar = el("span", { class: "score-bar" }, el("span", {}));
    bar.firstChild.style.width = `${Math.max(2, (100 * Math.max(0, moment.score)) / best)}%`;
    const link = el(
      "a",
      { class: "moment-link", href: this.actions.link(moment) },
      picture(moment.thumbnail, "poster"),
      el(
        "span",
        { class: "moment-text" },
        named ? el("span", { class: "moment-name" }, moment.name) : null,
        el("span", { class: "moment-time" }, when, el("span", { class: "muted" }, ` · ${amount(moment.end - moment.start)}`)),
        el(
          "span",
          { class: "score" },
          bar,
          el("span", { class: "hidden" }, "score "),
          el("span", { class: "number" }, moment.score.toFixed(3)),
        ),
      ),
      el("span", { class: "strip" }, moment.thumbnails.slice(0, 6).map(({ url }) => picture(url, ""))),
      position(moment),
    );
    this.byLink.set(link, moment);
    const like = iconButton("similar", `More like this: ${moment.name} at ${clock(moment.peak)}`, () =>
      this.actions.like(moment.video, moment.peak, moment.name),
    );
    like.title = "More like this frame (L)";
    like.classList.add("like");
    return el("li", { class: "moment" }, link, like);
  }

  #click(event) {
    const link = event.target.closest("a.moment-link");
    // With a modifier key the browser opens the link elsewhere, as it does for any link.
    if (!link || !plainClick(event)) return;
    event.preventDefault();
    this.actions.open(this.byLink.get(link));
  }

  #keys(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const links = this.links;
    const here = links.indexOf(event.target.closest("li.moment")?.querySelector("a.moment-link"));
    if (here < 0) return;
    const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
    if (step) {
      event.preventDefault();
      if (here + step < 0) document.getElementById("query").focus();
      else links[Math.min(here + step, links.length - 1)].focus();
    } else if (event.key.toLowerCase() === "l") {
      event.preventDefault();
      const moment = this.byLink.get(links[here]);
      this.actions.like(moment.video, moment.peak, moment.name);
    }
  }
}

function picture(url, name) {
  if (!url) return el("span", { class: `${name} missing` });
  return el("img", { class: name, src: url, alt: "", loading: "lazy", decoding: "async" });
}

/** Where in its video the moment lies. */
function position(moment) {
  if (!moment.duration) return null;
  const mark = el("span", {});
  const left = Math.min(99, (100 * moment.start) / moment.duration);
  mark.style.left = `${left}%`;
  mark.style.width = `${Math.max(1, Math.min(100 - left, (100 * (moment.end - moment.start)) / moment.duration))}%`;
  return el("span", { class: "position" }, mark);
}

function summary(moments) {
  const whole = moments[0].duration ? `, video of ${clock(moments[0].duration)}` : "";
  return count(moments.length, "moment") + whole;
}

function groupBy(moments) {
  const groups = new Map();
  for (const moment of moments) groups.set(moment.video, [...(groups.get(moment.video) ?? []), moment]);
  return groups;
}
