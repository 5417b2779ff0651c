// The strip under the player: similarity over time, found moments as bands, frame kinds, and the position.

import { clock, el, spokenTime, svg } from "./dom.js";

const WIDTH = 1000;
const HEIGHT = 100;
const KINDS = { I: [30, "computed in full"], P: [16, "computed in part"], C: [7, "copied"] };

export class Timeline {
  /** onseek(seconds) is called on click, drag and keys; thumbnail(seconds) -> address of a picture. */
  constructor({ onseek, thumbnail }) {
    this.onseek = onseek;
    this.thumbnail = thumbnail;
    this.duration = 0;
    this.time = 0;
    this.moments = [];
    this.curve = svg("g");
    this.bands = svg("g");
    this.drawing = svg(
      "svg",
      { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true", class: "curve" },
      this.bands,
      this.curve,
    );
    this.kinds = svg("svg", { viewBox: `0 0 ${WIDTH} 32`, preserveAspectRatio: "none", "aria-hidden": "true", class: "kinds" });
    this.kindsRow = el("div", { class: "kinds-row", hidden: true }, this.kinds, el("p", { class: "muted legend" }));
    this.head = el("div", { class: "head" });
    this.tipTime = el("span");
    this.tipPicture = el("img", { alt: "", decoding: "async" });
    this.tipPicture.addEventListener("error", () => (this.tipPicture.hidden = true));
    this.tip = el("div", { class: "tip", hidden: true }, this.tipPicture, this.tipTime);
    this.slider = el(
      "div",
      { class: "track", tabIndex: 0, role: "slider", "aria-label": "Position in the video", "aria-orientation": "horizontal" },
      this.drawing,
      this.head,
    );
    this.ticks = el("div", { class: "ticks", "aria-hidden": "true" });
    this.root = el("div", { class: "timeline" }, el("div", { class: "track-place" }, this.slider, this.tip), this.ticks, this.kindsRow);
    this.#listen();
    this.setTime(0);
  }

  clear() {
    this.curve.replaceChildren();
    this.bands.replaceChildren();
    this.kinds.replaceChildren();
    this.kindsRow.lastChild.textContent = "";
    this.moments = [];
    this.setDuration(0);
    this.setTime(0);
  }

  setDuration(seconds) {
    if (!(seconds > 0) && this.duration === 0) return;
    this.duration = seconds > 0 ? seconds : 0;
    this.slider.setAttribute("aria-valuemin", "0");
    this.slider.setAttribute("aria-valuemax", this.duration.toFixed(1));
    const steps = 4;
    this.ticks.replaceChildren(
      ...(this.duration ? Array.from({ length: steps + 1 }, (_, i) => el("span", {}, clock((this.duration * i) / steps))) : []),
    );
    this.setMoments(this.moments, this.active);
    this.setTime(this.time);
  }

  /** times in seconds and scores, of equal length. The lowest and highest score fill the height. */
  setCurve(times, scores) {
    this.curve.replaceChildren();
    if (!this.duration || scores.length < 2) return;
    const low = Math.min(...scores);
    const span = Math.max(Math.max(...scores) - low, 0.02); // a flat curve stays flat instead of showing noise
    const points = scores.map((score, i) => {
      const x = (WIDTH * Math.min(times[i], this.duration)) / this.duration;
      return `${x.toFixed(1)} ${(HEIGHT - 6 - (HEIGHT - 14) * ((score - low) / span)).toFixed(1)}`;
    });
    const [first, last] = [points[0].split(" ")[0], points.at(-1).split(" ")[0]];
    const line = `M${points.join("L")}`;
    this.curve.append(
      svg("path", { class: "curve-area", d: `${line}L${last} ${HEIGHT}L${first} ${HEIGHT}Z` }),
      svg("path", { class: "curve-line", d: line, "vector-effect": "non-scaling-stroke" }),
    );
  }

  /** Bands; `active` is one of the moments, or none. */
  setMoments(moments, active) {
    this.moments = moments;
    this.active = active;
    this.bands.replaceChildren();
    if (!this.duration) return;
    for (const moment of moments) {
      const x = (WIDTH * moment.start) / this.duration;
      const width = Math.max(2, (WIDTH * (moment.end - moment.start)) / this.duration);
      const kind = moment === active ? "band active" : "band";
      this.bands.append(svg("rect", { class: kind, x: x.toFixed(1), y: 0, width: width.toFixed(1), height: HEIGHT }));
    }
  }

  /** roles: a letter per time. Long videos give a column to several frames; the costliest of them is drawn. */
  setKinds(roles, times) {
    this.kinds.replaceChildren();
    const counts = {};
    const columns = new Map();
    for (let i = 0; i < roles.length; i += 1) {
      counts[roles[i]] = (counts[roles[i]] ?? 0) + 1;
      const time = times.length === roles.length ? times[i] : (this.duration * i) / roles.length;
      const column = Math.round((WIDTH * time) / (this.duration || 1));
      const kept = columns.get(column);
      if (!kept || "IPC".indexOf(roles[i]) < "IPC".indexOf(kept)) columns.set(column, roles[i]);
    }
    const paths = {};
    for (const [column, kind] of columns) {
      const [height] = KINDS[kind] ?? KINDS.I;
      paths[kind] = `${paths[kind] ?? ""}M${column} 31v-${height}`;
    }
    for (const [kind, d] of Object.entries(paths)) {
      this.kinds.append(svg("path", { class: `kind kind-${kind}`, d, "vector-effect": "non-scaling-stroke" }));
    }
    const said = Object.keys(KINDS).filter((kind) => counts[kind]);
    this.kindsRow.lastChild.replaceChildren(
      ...said.map((kind) => el("span", { class: `legend-${kind}` }, `${kind} ${KINDS[kind][1]}: ${counts[kind].toLocaleString("en")}`)),
    );
  }

  showKinds(yes) {
    this.kindsRow.hidden = !yes;
  }

  setTime(seconds) {
    this.time = seconds;
    const share = this.duration ? Math.min(1, seconds / this.duration) : 0;
    this.head.style.left = `${100 * share}%`;
    const whole = seconds.toFixed(1);
    if (this.slider.getAttribute("aria-valuenow") === whole) return;
    this.slider.setAttribute("aria-valuenow", whole);
    this.slider.setAttribute("aria-valuetext", `${spokenTime(seconds)} of ${spokenTime(this.duration)}`);
  }

  #at(event) {
    const box = this.slider.getBoundingClientRect();
    return this.duration * Math.min(1, Math.max(0, (event.clientX - box.left) / box.width));
  }

  #listen() {
    const seek = (seconds) => this.onseek(Math.min(Math.max(0, seconds), this.duration));
    this.slider.addEventListener("pointerdown", (event) => {
      if (event.button || !this.duration) return;
      this.slider.setPointerCapture(event.pointerId);
      this.dragging = true;
      seek(this.#at(event));
    });
    this.slider.addEventListener("pointermove", (event) => {
      if (!this.duration) return;
      if (this.dragging) seek(this.#at(event));
      if (event.pointerType !== "touch") this.#showTip(this.#at(event));
    });
    for (const name of ["pointerup", "pointercancel"]) this.slider.addEventListener(name, () => (this.dragging = false));
    this.slider.addEventListener("pointerleave", () => (this.tip.hidden = true));
    this.slider.addEventListener("keydown", (event) => {
      const step = event.shiftKey ? 10 : 1;
      const to = {
        ArrowLeft: this.time - step,
        ArrowDown: this.time - step,
        ArrowRight: this.time + step,
        ArrowUp: this.time + step,
        PageDown: this.time - 10,
        PageUp: this.time + 10,
        Home: 0,
        End: this.duration,
      }[event.key];
      if (to === undefined || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      event.stopPropagation();
      seek(to);
    });
  }

  #showTip(seconds) {
    this.tip.hidden = false;
    this.tip.style.left = `${Math.min(92, Math.max(8, (100 * seconds) / this.duration))}%`;
    this.tipTime.textContent = clock(seconds);
    const address = this.thumbnail(Math.round(seconds / 2) * 2); // stored pictures are about two seconds apart
    if (this.tipPicture.getAttribute("src") !== address) {
      this.tipPicture.hidden = false;
      this.tipPicture.src = address;
    }
  }
}
