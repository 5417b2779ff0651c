// What the page shows is one value, and the address bar holds it: back, forward, reload and links work.

/**
 * texts: descriptions that are combined, all but the one in the search box, which is `text`.
 * like: "VIDEO@SECONDS". image: key of a picture this page holds; not in the address, a link could not carry it.
 * min, max: minutes, as typed. per: moments of one video. video, at: what the player shows, and from which second.
 */
export const EMPTY = Object.freeze({
  texts: [],
  text: "",
  like: "",
  image: "",
  path: "",
  after: "",
  before: "",
  min: "",
  max: "",
  per: "3",
  collection: "",
  group: false,
  video: "",
  at: "",
});

const PLAIN = ["like", "path", "after", "before", "min", "max", "per", "collection", "video", "at"];
export const FILTERS = ["path", "after", "before", "min", "max", "per", "collection"];

export function readState(address = location.search, kept = history.state) {
  const parameters = new URLSearchParams(address);
  const state = { ...EMPTY, image: kept?.image ?? "" };
  const texts = parameters.getAll("q");
  state.text = texts.pop() ?? "";
  state.texts = texts.filter((text) => text.trim());
  for (const name of PLAIN) state[name] = parameters.get(name) ?? EMPTY[name];
  if (!["1", "3", "all"].includes(state.per)) state.per = EMPTY.per;
  state.group = parameters.get("group") === "1";
  return state;
}

export function addressOf(state) {
  const parameters = new URLSearchParams();
  for (const text of state.texts) parameters.append("q", text);
  if (state.text || state.texts.length) parameters.append("q", state.text);
  for (const name of PLAIN) if (state[name] !== EMPTY[name]) parameters.set(name, state[name]);
  if (state.group) parameters.set("group", "1");
  const text = parameters.toString();
  return text ? `/?${text}` : "/";
}

/** Whether there is anything to search for. */
export function asks(state) {
  return Boolean(queryTexts(state).length || state.like || state.image);
}

export function queryTexts(state) {
  return [...state.texts, state.text].map((text) => text.trim()).filter(Boolean);
}

/** What decides the results: two states with equal keys have the same. */
export function searchKey(state) {
  return JSON.stringify([queryTexts(state), state.like, state.image, ...FILTERS.map((name) => state[name])]);
}

export function filtersSet(state) {
  return FILTERS.filter((name) => state[name] !== EMPTY[name]).length;
}

/** The filters, as the server names them. */
export function filterParameters(state) {
  const seconds = (minutes) => (minutes === "" || Number.isNaN(Number(minutes)) ? "" : Number(minutes) * 60);
  return {
    path: state.path.trim(),
    after: state.after,
    before: state.before && `${state.before}T23:59:59Z`, // the day itself counts
    min_seconds: seconds(state.min),
    max_seconds: seconds(state.max),
    per_video: state.per === "all" ? 100 : state.per,
    collection: state.collection,
  };
}
