// Ties the page together: state <-> address bar, search, player, videos, jobs.

import { ApiError, getJson, withParameters } from "./api.js";
import { $, amount, count, drawIcons, el, plainClick, speed, toast } from "./dom.js";
import { acceptFiles } from "./drop.js";
import { heldImage, hold, searchByImage } from "./images.js";
import { Jobs } from "./jobs.js";
import { Player } from "./player.js";
import { Results } from "./results.js";
import { SearchBox } from "./searchbox.js";
import { addressOf, asks, EMPTY, filterParameters, filtersSet, queryTexts, readState, searchKey } from "./state.js";
import { tiles } from "./tiles.js";
import { askForToken } from "./token.js";
import { Videos } from "./videos.js";

const PAGE = 24; // moments asked for at first, and more with each "More"
const MOST = 200;
const ONE_TEXT = 3000; // milliseconds between letters of one entry of the history
const BUSY_AFTER = 150; // milliseconds; a quick answer should not flicker
const RETRY = 2500;

drawIcons();

let state = fromAddress();
let status = null;
let shown = ""; // key of the results on the page
let grouped = false; // whether they are shown by video
let top = PAGE;
let searching = new AbortController();
let typedAt = -Infinity; // when the newest entry of the history was typed; for a while, typing on replaces it
let retry;
const names = new Map(); // video -> promise of its name

const results = new Results($("content"), {
  link: (moment) => addressOf({ ...state, video: moment.video, at: moment.start.toFixed(2) }),
  open: (moment) => openVideo(moment.video, moment.start, moment),
  like: moreLike,
});
const box = new SearchBox({
  change: (values, options) => go(values, options),
  submit(text) {
    if (text !== state.text) go({ text });
    else search({ again: true });
    typedAt = -Infinity;
  },
  down: () => results.focusFirst(),
  nameOf,
});
const player = new Player($("player"), {
  close: closeVideo,
  like: moreLike,
  moments: (video) => results.of(video),
  curve() {
    if (!asks(state)) return null;
    const image = state.image ? heldImage(state.image)?.known : "";
    if (state.image && !image) return null;
    return { q: queryTexts(state), like: state.like, image, collection: state.collection };
  },
});
const videos = new Videos({
  open(record) {
    videos.dialog.close();
    openVideo(record.video, 0, record);
  },
  changed: refresh,
  canRemove: () => Boolean(status?.can_add),
});
const jobs = new Jobs($("jobs"), {
  added: refresh,
  open: (video, name) => openVideo(video, 0, { name }),
  announce: (text) => ($("spoken").textContent = text),
});

// --- state

/** The state that the address bar and the history hold; a reload lets go of pictures. */
function fromAddress() {
  const read = readState();
  return heldImage(read.image) ? read : { ...read, image: "" };
}

/** Change the state. `typed`: part of a search being typed, which is one entry of the history, not one per letter. */
function go(values, { typed = false } = {}) {
  const next = { ...state, ...values };
  const now = performance.now();
  const replace = typed && now - typedAt < ONE_TEXT;
  typedAt = typed ? now : -Infinity;
  if (addressOf(next) === addressOf(state) && next.image === state.image) return;
  const kept = { image: next.image, opened: Boolean(next.video) && !state.video };
  state = next;
  if (replace) history.replaceState(kept, "", addressOf(state));
  else history.pushState(kept, "", addressOf(state));
  show();
}

addEventListener("popstate", () => {
  typedAt = -Infinity;
  state = fromAddress();
  show();
});

function show() {
  box.show(state);
  const words = queryTexts(state).join(" + ");
  document.title = words ? `${words} · everyframe` : "everyframe";
  document.body.classList.toggle("home", !asks(state));
  if (state.video) player.open(state.video, Number(state.at) || 0, known(state.video, state.at));
  else player.close();
  if (!asks(state)) home();
  else if (searchKey(state) !== shown) {
    top = PAGE;
    search();
  } else if (results.moments.length && state.group !== grouped) showMoments();
}

function openVideo(video, at, hint) {
  if (hint?.name) names.set(video, Promise.resolve(hint.name));
  go({ video, at: at.toFixed(2) });
}

function closeVideo() {
  if (history.state?.opened) history.back();
  else {
    state = { ...state, video: "", at: "" };
    history.replaceState({ image: state.image }, "", addressOf(state));
    show();
  }
}

function known(video, at) {
  const moments = results.of(video);
  return moments.find((moment) => moment.start.toFixed(2) === at) ?? moments[0];
}

function moreLike(video, seconds, name) {
  names.set(video, Promise.resolve(name));
  const kept = { path: state.path, after: state.after, before: state.before, min: state.min, max: state.max };
  go({ ...EMPTY, ...kept, per: state.per, collection: state.collection, group: state.group, like: `${video}@${seconds.toFixed(2)}` });
  scrollTo({ top: 0 });
}

function nameOf(video) {
  if (!names.has(video)) {
    const asked = getJson(`/api/videos/${video}`).then((record) => record.name);
    asked.catch(() => names.delete(video));
    names.set(video, asked);
  }
  return names.get(video);
}

// --- search

async function search({ again = false } = {}) {
  const key = searchKey(state);
  clearTimeout(retry);
  searching.abort();
  searching = new AbortController();
  const { signal } = searching;
  const busy = setTimeout(() => results.busy(true), BUSY_AFTER);
  shown = key;
  try {
    const answer = await ask(signal);
    if (signal.aborted) return;
    if (again && results.moments.length && JSON.stringify(answer.moments) === JSON.stringify(results.moments)) results.busy(false);
    else found(answer);
  } catch (error) {
    if (error.name === "AbortError") return;
    shown = "";
    failed(error);
  } finally {
    clearTimeout(busy);
  }
}

function ask(signal) {
  const parameters = { q: queryTexts(state), like: state.like, top, ...filterParameters(state) };
  if (state.image) return searchByImage(state.image, parameters, signal);
  return getJson(withParameters("/api/search", parameters), { signal });
}

function found({ moments, took_ms: took, note }) {
  results.moments = moments;
  for (const moment of moments) names.set(moment.video, Promise.resolve(moment.name));
  const many = new Set(moments.map((moment) => moment.video)).size;
  const where = many > 1 ? ` in ${count(many, "video")}` : "";
  say(moments.length ? `${count(moments.length, "moment")}${where}, took ${speed(took)}` : `Nothing found, took ${speed(took)}`);
  $("note").hidden = !note;
  $("note").textContent = note ?? "";
  $("group").hidden = moments.length < 2;
  showMoments();
}

function showMoments() {
  if (results.moments.length) {
    grouped = state.group;
    results.show(results.moments, state.group);
    if (results.moments.length >= top && top < MOST) {
      results.root.append(button("More moments", more, "plain more"));
    }
    return;
  }
  if (filtersSet(state)) {
    results.state("nothing", "Nothing found", "No moment passes the filters.", button("Clear filters", () => $("clear-filters").click()));
  } else if (status && !status.videos) emptyArchive();
  else results.state("nothing", "Nothing found", "Try other words: what can be seen, rather than what it means.");
}

async function more({ target }) {
  const before = results.moments.length;
  target.disabled = true;
  top = Math.min(MOST, top + PAGE);
  await search();
  results.links[before]?.focus();
}

function failed(error) {
  $("note").hidden = true;
  $("group").hidden = true;
  say("");
  if (error.status === 401) return; // the token is being asked for
  if (error.offline) return gone();
  const image = state.image && heldImage(state.image) === undefined;
  const again = button("Try again", resume);
  if (image) results.state("problem", "The picture is gone", error.message, button("Choose a picture", () => $("image-file").click()));
  else if (error.status >= 500) results.state("problem", "That did not work", error.message, again);
  else results.state("problem", "Please change the search", error.message);
}

/** Until the server is back: say so, and look again from time to time. */
function gone() {
  results.state(
    "gone",
    "The server is gone",
    "It does not answer; it may have been stopped. This page goes on as soon as it is back.",
    button("Try again", resume),
  );
  clearTimeout(retry);
  retry = setTimeout(resume, RETRY);
}

async function resume() {
  clearTimeout(retry);
  try {
    status = await getJson("/api/status");
  } catch (error) {
    return failed(error);
  }
  showStatus();
  shown = "";
  show();
}

// --- home, status, token

async function home() {
  searching.abort();
  searching = new AbortController();
  const { signal } = searching;
  shown = "";
  say("");
  $("note").hidden = true;
  $("group").hidden = true;
  if (!results.root.querySelector(".recent")) results.clear();
  try {
    if (!status) await firstStatus;
    if (!status.videos) return emptyArchive();
    const { videos: list } = await getJson("/api/videos?limit=12", { signal });
    if (signal.aborted) return;
    for (const record of list) names.set(record.video, Promise.resolve(record.name));
    const link = (record) => addressOf({ ...state, video: record.video, at: "0.00" });
    results.clear(...tiles(list, link, (record) => openVideo(record.video, 0, record)));
  } catch (error) {
    if (error.name !== "AbortError" && !signal.aborted) failed(error);
  }
}

function emptyArchive() {
  const add = status.can_add ? [button("Add videos", () => $("video-files").click(), "primary")] : [];
  results.state(
    "empty",
    "The archive is empty",
    status.can_add
      ? "Add videos here, or drop them anywhere on this page. A folder of them is quicker with: everyframe index FOLDER"
      : "Fill it with: everyframe index FOLDER",
    ...add,
  );
}

async function readStatus() {
  status = await getJson("/api/status");
  showStatus();
}

function showStatus() {
  $("add-videos").hidden = !status.can_add;
  box.setCollections(status.collections);
  const { index } = status;
  const kind = !index ? "" : index.building ? "index being built" : index.kind === "exact" ? "exact search" : `${index.kind} index`;
  const parts = [count(status.videos, "video"), amount(status.hours * 3600), count(status.frames, "frame"), kind, status.model];
  $("foot").replaceChildren(
    el("p", {}, parts.filter(Boolean).join(" · ")),
    el("p", {}, `everyframe ${status.version} · `, el("a", { href: "/docs" }, "API")),
  );
}

/** After videos came or went. */
async function refresh() {
  try {
    await readStatus();
  } catch {
    return; // the next search says what is wrong
  }
  if (asks(state)) search({ again: true });
  else home();
}

document.addEventListener("token-wanted", (event) => {
  player.close();
  askForToken(results, event.detail);
});

// --- the rest of the page

function say(text) {
  $("count").textContent = text;
}

function button(text, onclick, kind = "plain") {
  return el("button", { type: "button", class: kind, onclick }, text);
}

async function useImage(file) {
  go({ text: "", texts: [], like: "", image: await hold(file), video: "", at: "" });
}

function addVideos(files) {
  jobs.add(files, status?.max_upload);
}

acceptFiles({
  image: useImage,
  videos: addVideos,
  canAdd: () => Boolean(status?.can_add),
  refuse: toast,
});

$("pick-image").addEventListener("click", () => $("image-file").click());
$("add-videos").addEventListener("click", () => $("video-files").click());
$("image-file").addEventListener("change", ({ target }) => {
  if (target.files.length) useImage(target.files[0]);
  target.value = "";
});
$("video-files").addEventListener("change", ({ target }) => {
  addVideos([...target.files]);
  target.value = "";
});
$("open-videos").addEventListener("click", () => videos.open());
$("open-keys").addEventListener("click", () => $("keys").showModal());
$("theme").addEventListener("click", () => window.everyframeTheme.toggle());
$("brand").addEventListener("click", (event) => {
  if (!plainClick(event)) return;
  event.preventDefault();
  go({ ...EMPTY });
  box.focus();
});
for (const dialog of document.querySelectorAll("dialog.sheet")) {
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
}

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.target.closest("input, select, textarea")) return;
  if (event.key === "/") {
    event.preventDefault();
    box.focus();
  } else if (event.key === "?") {
    event.preventDefault();
    $("keys").showModal();
  } else if (event.key === "ArrowDown" && event.target === document.body) {
    event.preventDefault();
    results.focusFirst();
  } else if (event.key === "Escape") box.focus();
});

box.show(state);
if (filtersSet(state)) box.showFilters(true);
if (matchMedia("(pointer: fine)").matches && !state.video) $("query").focus();
const firstStatus = readStatus();
show();
firstStatus
  .then(() => status.can_add && jobs.resume())
  .catch((error) => {
    if (error instanceof ApiError && error.offline) failed(error);
  });
