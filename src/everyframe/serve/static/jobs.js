// Adding videos: uploads, then encode jobs on the server, each with its progress, in a panel at the edge.

import { asSentence, getJson, request, upload } from "./api.js";
import { clock, count, el, iconButton } from "./dom.js";

const AT_ONCE = 2; // uploads; the server queues the encoding itself
const FINAL = ["done", "failed", "cancelled"];

export class Jobs {
  /** actions: added(job) when a video is in the archive, open(video, name), announce(text). */
  constructor(root, actions) {
    this.root = root;
    this.actions = actions;
    this.waiting = [];
    this.uploading = 0;
    this.list = el("ol");
    this.heading = el("h2", {}, "Adding videos");
    this.closeButton = iconButton("close", "Hide the finished ones", () => this.#tidy());
    root.append(el("header", {}, this.heading, this.closeButton), this.list);
    this.items = new Set();
    addEventListener("beforeunload", (event) => this.uploading && event.preventDefault());
  }

  /** Take up the jobs that were running before this page was loaded. */
  async resume() {
    const answer = await getJson("/api/jobs").catch(() => []);
    for (const job of Array.isArray(answer) ? answer : answer.jobs) {
      if (!FINAL.includes(job.state)) this.#follow(this.#item(job.name), job);
    }
  }

  /** largest: bytes that the server takes. */
  add(files, largest = Infinity) {
    for (const file of files) {
      const item = this.#item(file.name);
      if (file.size <= largest) this.waiting.push([file, item]);
      else this.#finish(item, "failed", `The file is larger than the ${size(largest)} that this server takes.`);
    }
    this.#next();
  }

  #next() {
    while (this.uploading < AT_ONCE && this.waiting.length) this.#upload(...this.waiting.shift());
  }

  #item(name) {
    const text = el("p", { class: "muted" }, "Waiting");
    const bar = el("progress", { max: 1, value: 0, "aria-label": `Progress of ${name}` });
    const cancel = iconButton("close", `Cancel ${name}`, () => item.stop());
    const row = el("li", { class: "job" }, el("div", {}, el("p", { class: "job-name" }, name), text, bar), cancel);
    const item = { name, text, bar, cancel, row, final: false };
    item.stop = () => {
      this.waiting = this.waiting.filter(([, each]) => each !== item);
      this.#finish(item, "cancelled", "Cancelled.");
    };
    this.items.add(item);
    this.list.append(row);
    this.root.hidden = false;
    this.#syncHeading();
    return item;
  }

  async #upload(file, item) {
    this.uploading += 1;
    const form = new FormData();
    form.append("file", file, file.name);
    item.text.textContent = "Uploading";
    const { promise, cancel } = upload("/api/encode", form, (share) => {
      item.bar.value = share;
      item.text.textContent = share < 1 ? `Uploading, ${Math.floor(100 * share)} %` : "Uploaded, being checked";
    });
    item.stop = cancel;
    try {
      this.#follow(item, await promise);
    } catch (error) {
      if (error.name === "AbortError") this.#finish(item, "cancelled", "Cancelled.");
      else this.#finish(item, "failed", error.message);
    } finally {
      this.uploading -= 1;
      this.#next();
    }
  }

  /** Show the job's progress until it ends. */
  #follow(item, job) {
    const address = `/api/jobs/${job.job}`;
    item.bar.removeAttribute("value");
    item.text.textContent = "Waiting for its turn";
    item.stop = async () => {
      item.cancel.disabled = true;
      try {
        await request(address, { method: "DELETE" });
      } catch (error) {
        item.cancel.disabled = false;
        item.text.textContent = error.message;
      }
    };
    const source = new EventSource(job.events ?? `${address}/events`);
    item.source = source;
    source.addEventListener("progress", (event) => this.#progress(item, JSON.parse(event.data)));
    source.addEventListener("error", () => this.#brokenOff(item, address));
  }

  /** The stream ended without a last word: the browser connects again by itself unless the server said no. */
  async #brokenOff(item, address) {
    if (item.final || item.asking) return;
    item.asking = true;
    try {
      this.#progress(item, await getJson(address));
    } catch (error) {
      if (error.offline) item.text.textContent = "The server does not answer; trying again";
      else this.#finish(item, "failed", error.status === 404 ? "The server was started anew and knows nothing of it." : error.message);
    } finally {
      item.asking = false;
    }
  }

  #progress(item, job) {
    if (item.final) return;
    if (job.state === "done") {
      this.#finish(item, "done", "In the archive.");
      if (job.video) {
        item.row.append(
          el("button", { type: "button", class: "quiet", onclick: () => this.actions.open(job.video, job.name) }, "Play"),
        );
      }
      this.actions.added(job);
    } else if (job.state === "failed") this.#finish(item, "failed", asSentence(job.error ?? "it could not be encoded"));
    else if (job.state === "cancelled") this.#finish(item, "cancelled", "Cancelled.");
    else if (job.state === "queued") item.text.textContent = "Waiting for its turn";
    else if (job.state === "adding") {
      item.bar.value = 1;
      item.text.textContent = "Being put into the archive";
    } else {
      if (job.progress > 0) item.bar.value = job.progress;
      else item.bar.removeAttribute("value");
      const whole = job.duration ? ` of ${clock(job.duration)}` : "";
      item.text.textContent = job.frames
        ? `Encoding, ${clock(job.seconds)}${whole}, ${count(job.frames, "frame")}`
        : "Encoding, reading the model";
    }
  }

  #finish(item, state, text) {
    if (item.final) return;
    item.final = true;
    item.source?.close();
    item.row.classList.add(state);
    item.text.textContent = text;
    item.bar.remove();
    item.cancel.remove();
    this.#syncHeading();
    this.actions.announce(text.includes(item.name) ? text : `${item.name}: ${text}`);
  }

  #syncHeading() {
    const open = [...this.items].filter((item) => !item.final).length;
    this.heading.textContent = open ? `Adding ${count(open, "video")}` : "Added videos";
    this.closeButton.hidden = open === this.items.size;
  }

  #tidy() {
    for (const item of this.items) {
      if (!item.final) continue;
      item.row.remove();
      this.items.delete(item);
    }
    this.root.hidden = !this.items.size;
    this.#syncHeading();
  }
}

const size = (bytes) => (bytes >= 1e9 ? `${+(bytes / 1e9).toPrecision(3)} GB` : `${+(bytes / 1e6).toPrecision(3)} MB`);
