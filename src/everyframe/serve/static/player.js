// The player: plays a video from a moment on, with the timeline under it.

import { getJson, withParameters } from "./api.js";
import { clock, day, el, icon, iconButton, setIcon } from "./dom.js";
import { originalThere, previewMade } from "./media.js";
import { Timeline } from "./timeline.js";

export class Player {
  /**
   * actions: close(), like(video, seconds, name), curve() -> parameters of the current query or null,
   * moments(video) -> the moments found in it.
   */
  constructor(dialog, actions) {
    this.dialog = dialog;
    this.actions = actions;
    this.id = "";
    this.moments = [];
    this.#build();
    this.#listen();
  }

  get isOpen() {
    return this.dialog.open;
  }

  /** Show a video from `at` seconds on. `hint`: what is known already, a moment of the results or a video. */
  open(id, at, hint = {}) {
    const same = this.dialog.open && this.id === id;
    if (!this.dialog.open) this.dialog.showModal();
    if (same) {
      this.#goto(at);
      return;
    }
    this.#forget();
    this.id = id;
    this.at = at;
    this.curveData = null;
    this.title.textContent = hint.name ?? "Video";
    this.about.textContent = "";
    this.time.textContent = "";
    this.play.disabled = false;
    this.timeline.clear();
    this.timeline.setDuration(hint.duration ?? 0);
    this.video.poster = `/api/videos/${id}/thumbnail?t=${at}`;
    this.#setMoments(this.actions.moments(id));
    this.loading = new AbortController();
    this.#message("");
    if (hint.playable === false) this.#preview();
    else this.#source(`/media/${id}`);
    this.#record(this.loading.signal);
    this.#loadCurve(this.loading.signal);
    this.play.focus({ preventScroll: true });
  }

  close() {
    this.#forget();
    if (this.dialog.open) this.dialog.close();
  }

  /** Stop everything that belongs to the video shown so far. */
  #forget() {
    this.loading?.abort();
    this.id = "";
    this.preview = false;
    this.failed = false;
    this.record = null;
    this.video.pause();
    this.video.removeAttribute("src");
    this.video.removeAttribute("poster");
    this.video.load();
  }

  #build() {
    this.title = el("h2", { id: "player-title" });
    this.about = el("p", { class: "muted" });
    this.video = el("video", { playsInline: true, preload: "auto", tabIndex: -1 });
    this.notice = el("div", { class: "notice", role: "status" });
    this.notice.hidden = true;
    this.stage = el("div", { class: "stage" }, this.video, this.notice);
    this.timeline = new Timeline({
      onseek: (seconds) => this.#seek(seconds),
      thumbnail: (seconds) => `/api/videos/${this.id}/thumbnail?t=${seconds}`,
    });
    this.play = iconButton("play", "Play", () => this.#toggle());
    this.play.classList.add("main");
    this.before = iconButton("previous", "Previous moment (P)", () => this.#step(-1));
    this.after = iconButton("next", "Next moment (N)", () => this.#step(1));
    this.time = el("span", { class: "time" });
    this.sound = iconButton("sound", "Sound (M)", () => (this.video.muted = !this.video.muted));
    this.loop = this.#toggleButton("loop", "Loop moment", () => this.#syncLoop());
    this.kinds = this.#toggleButton("kinds", "Frame kinds", (on) => this.timeline.showKinds(on));
    this.kinds.title = "Which frames were computed in full (I), in part (P) or copied (C)";
    this.similar = iconButton("similar", "More like the frame on screen (L)", () => this.#like(), { text: "More like this" });
    this.full = iconButton("expand", "Full screen (F)", () => this.#fullscreen());
    this.list = el("ol", { class: "found", "aria-label": "Moments found in this video" });
    const closeButton = iconButton("close", "Close (Esc)", () => this.actions.close());
    this.dialog.append(
      el("header", { class: "player-head" }, el("div", {}, this.title, this.about), closeButton),
      this.stage,
      el(
        "div",
        { class: "controls" },
        el("div", { class: "cluster" }, this.before, this.play, this.after, this.time),
        el("div", { class: "cluster" }, this.sound, this.loop, this.kinds, this.similar, this.full),
      ),
      this.timeline.root,
      this.list,
    );
  }

  #toggleButton(name, label, change) {
    const button = iconButton(name, label, () => {
      const on = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", String(on));
      change(on);
    }, { text: label });
    button.classList.add("toggle");
    button.setAttribute("aria-pressed", "false");
    return button;
  }

  #listen() {
    const { video } = this;
    video.addEventListener("loadedmetadata", () => {
      if (!this.duration && Number.isFinite(video.duration)) this.timeline.setDuration(video.duration);
      video.currentTime = Math.min(this.at, Math.max(0, (video.duration || this.at) - 0.05));
      this.#start();
    });
    video.addEventListener("error", () => video.getAttribute("src") && this.#broken());
    video.addEventListener("click", () => this.#toggle());
    for (const name of ["play", "pause", "ended"]) video.addEventListener(name, () => this.#syncPlay());
    video.addEventListener("volumechange", () => setIcon(this.sound, video.muted ? "muted" : "sound"));
    video.addEventListener("seeked", () => {
      if (this.wanted !== undefined) {
        const to = this.wanted;
        this.wanted = undefined;
        this.#seek(to);
      }
      this.#tick();
    });
    video.addEventListener("timeupdate", () => this.#tick());
    const frame = () => {
      if (this.dialog.open && !video.paused) this.#tick();
      if (this.dialog.open) requestAnimationFrame(frame);
    };
    video.addEventListener("play", () => requestAnimationFrame(frame));
    this.dialog.addEventListener("cancel", (event) => {
      event.preventDefault();
      this.actions.close();
    });
    this.dialog.addEventListener("click", (event) => event.target === this.dialog && this.actions.close());
    this.dialog.addEventListener("keydown", (event) => this.#keys(event));
  }

  get duration() {
    return this.timeline.duration;
  }

  // --- source

  #source(address) {
    this.video.src = address;
    this.video.load();
  }

  async #start() {
    try {
      await this.video.play();
    } catch (error) {
      if (error.name !== "NotAllowedError") return;
      // The browser plays sound only after a click on this page: begin without.
      this.video.muted = true;
      await this.video.play().catch(() => {});
    }
  }

  async #record(signal) {
    try {
      const record = await getJson(`/api/videos/${this.id}`, { signal });
      this.record = record;
      this.title.textContent = record.name;
      this.about.textContent = [
        clock(Math.round(record.duration)),
        record.width && record.height ? `${record.width} × ${record.height}` : "",
        record.codec,
        day(record.date),
      ].filter(Boolean).join(" · ");
      this.timeline.setDuration(record.duration);
      this.#drawCurve();
      if (record.playable === false && !this.preview && !this.failed) this.#preview();
    } catch (error) {
      if (error.name !== "AbortError") this.#fail(error.message);
    }
  }

  async #loadCurve(signal) {
    const parameters = this.actions.curve();
    if (!parameters) return;
    try {
      const data = await getJson(withParameters(`/api/videos/${this.id}/curve`, parameters), { signal });
      this.curveData = data;
      this.timeline.setDuration(data.duration);
      if (data.moments.length) this.#setMoments(data.moments);
      this.#drawCurve();
    } catch (error) {
      // The video plays without its curve; whatever is wrong with the server shows elsewhere.
      if (error.name !== "AbortError") console.warn(`no similarity curve: ${error.message}`);
    }
  }

  #drawCurve() {
    const data = this.curveData;
    if (!data || !this.duration) return;
    this.timeline.setCurve(data.times, data.scores);
    this.timeline.setKinds(data.roles, data.times);
  }

  /** The element cannot play it: because it is gone, or because of its codec. */
  async #broken() {
    const { signal } = this.loading;
    if (this.failed) return undefined; // and the page says why
    if (this.preview) return this.#fail("The preview cannot be played by this browser.");
    try {
      await originalThere(this.id, signal);
    } catch (error) {
      return error.name === "AbortError" ? undefined : this.#fail(error.message);
    }
    return this.#preview();
  }

  /** Have the server make a copy that the browser can play, and wait for it. */
  async #preview() {
    this.preview = true;
    this.video.removeAttribute("src");
    this.video.load();
    const { signal } = this.loading;
    const bar = el("progress", { max: 1, "aria-label": "Making a preview" });
    this.#message("Your browser cannot play this file as it is. Making a preview.", bar);
    try {
      await previewMade(this.id, signal, (progress) => (bar.value = progress));
    } catch (error) {
      if (error.name !== "AbortError") this.#fail(error.message);
      return;
    }
    this.#message("");
    this.#source(`/media/${this.id}/preview`);
  }

  #fail(text) {
    this.failed = true;
    this.play.disabled = true;
    this.video.removeAttribute("src");
    this.video.load();
    this.#message(text);
    this.notice.prepend(icon("warning"));
  }

  #message(text, ...more) {
    this.notice.hidden = !text;
    this.notice.replaceChildren(...(text ? [el("p", {}, text), ...more] : []));
  }

  // --- moments

  #setMoments(moments) {
    this.moments = [...moments].sort((a, b) => a.start - b.start);
    this.list.replaceChildren(
      ...this.moments.map((moment) =>
        el(
          "li",
          {},
          el(
            "button",
            { type: "button", class: "quiet", onclick: () => this.#goto(moment.start) },
            `${clock(moment.start)} – ${clock(moment.end)}`,
            el("span", { class: "muted number" }, moment.score.toFixed(3)),
          ),
        ),
      ),
    );
    this.#activate(this.#momentAt(this.at));
    this.before.disabled = this.after.disabled = !this.moments.length;
  }

  #momentAt(seconds) {
    return this.moments.find((moment) => moment.start - 0.05 <= seconds && seconds < moment.end);
  }

  #activate(moment) {
    this.active = moment;
    this.timeline.setMoments(this.moments, moment);
    this.moments.forEach((each, i) => {
      const button = this.list.children[i]?.firstChild;
      if (each === moment) button?.setAttribute("aria-current", "true");
      else button?.removeAttribute("aria-current");
    });
    this.loop.disabled = !moment;
  }

  #step(by) {
    if (!this.moments.length) return;
    const now = this.video.currentTime;
    // A step back from within a moment goes to its own start first, as players do.
    const to =
      by > 0
        ? this.moments.find((moment) => moment.start > now + 0.1) ?? this.moments[0]
        : this.moments.findLast((moment) => moment.start < now - 1.5) ?? this.moments.at(-1);
    this.#goto(to.start);
  }

  #goto(seconds) {
    this.at = seconds;
    this.#seek(seconds);
    if (this.video.paused && this.video.readyState) this.#start();
  }

  // --- time

  /** One seek at a time: while the browser is at one, the newest wish waits. */
  #seek(seconds) {
    this.#activate(this.#momentAt(seconds));
    this.timeline.setTime(seconds);
    if (!this.video.readyState) {
      this.at = seconds;
      return;
    }
    if (this.video.seeking) this.wanted = seconds;
    else this.video.currentTime = seconds;
  }

  #tick() {
    const { video } = this;
    if (!video.readyState) return;
    const now = video.currentTime;
    if (this.loop.getAttribute("aria-pressed") === "true" && this.active && !video.seeking && (now >= this.active.end || video.ended)) {
      video.currentTime = this.active.start;
      if (video.paused) this.#start();
      return;
    }
    if (!video.seeking && this.wanted === undefined) this.timeline.setTime(now);
    this.time.textContent = `${clock(now)} / ${clock(this.duration)}`;
  }

  #syncLoop() {
    if (!this.active) this.#activate(this.#momentAt(this.video.currentTime));
  }

  #toggle() {
    if (!this.video.getAttribute("src")) return;
    if (this.video.paused) this.#start();
    else this.video.pause();
  }

  #syncPlay() {
    const paused = this.video.paused;
    setIcon(this.play, paused ? "play" : "pause");
    this.play.setAttribute("aria-label", paused ? "Play" : "Pause");
    this.play.title = paused ? "Play (Space)" : "Pause (Space)";
  }

  #like() {
    this.actions.like(this.id, this.video.readyState ? this.video.currentTime : this.at, this.title.textContent);
  }

  #fullscreen() {
    if (document.fullscreenElement) document.exitFullscreen();
    else this.dialog.requestFullscreen?.().catch(() => this.video.webkitEnterFullscreen?.());
  }

  #keys(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const onButton = event.target.closest("button");
    if ((event.key === " " || event.key === "Enter") && onButton) return; // presses the button
    const step = event.shiftKey ? 10 : 1;
    const action = {
      " ": () => this.#toggle(),
      k: () => this.#toggle(),
      n: () => this.#step(1),
      p: () => this.#step(-1),
      o: () => this.loop.click(),
      m: () => this.sound.click(),
      f: () => this.#fullscreen(),
      l: () => this.#like(),
      ArrowLeft: () => this.#seek(Math.max(0, this.video.currentTime - step)),
      ArrowRight: () => this.#seek(Math.min(this.duration, this.video.currentTime + step)),
    }[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!action) return;
    event.preventDefault();
    event.stopPropagation();
    action();
  }
}
