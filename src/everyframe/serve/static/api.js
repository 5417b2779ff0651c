// Requests to the server. Every failure is an ApiError whose message is a sentence to show.

export class ApiError extends Error {
  /** status: of the answer; 0 where no answer came. */
  constructor(status, message) {
    super(message);
    this.status = status;
  }

  get offline() {
    return this.status === 0;
  }
}

export const GONE = "The server does not answer. It may have been stopped.";

/** An AbortError is passed on as it is: whoever aborted knows. */
export async function request(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { credentials: "same-origin", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, GONE);
  }
  if (response.ok) return response;
  const error = new ApiError(response.status, await sentence(response));
  if (response.status === 401) document.dispatchEvent(new CustomEvent("token-wanted", { detail: error.message }));
  throw error;
}

/** What an answer that is an error says. */
export async function sentence(response) {
  try {
    return detailOf(await response.json(), response);
  } catch {
    // Not JSON: a proxy's answer.
  }
  return detailOf(null, response);
}

/** The server writes "the query is empty; type something"; on the page that is a sentence of its own. */
export function asSentence(text) {
  const begun = /^[a-z]+[\s,;:]/.test(text) ? text[0].toUpperCase() + text.slice(1) : text;
  return /[.!?]$/.test(begun) ? begun : `${begun}.`;
}

function detailOf(answer, { status, statusText }) {
  const detail = answer?.detail;
  if (typeof detail === "string") return asSentence(detail);
  if (Array.isArray(detail) && detail[0]?.msg) return asSentence(detail[0].msg);
  return asSentence(`The server answered ${status} ${statusText}`.trim());
}

export async function getJson(path, options) {
  const response = await request(path, options);
  try {
    return await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, "The connection to the server broke off.");
  }
}

/** Upload with progress, which fetch does not tell. `onprogress` gets 0 to 1. Returns {promise, cancel}. */
export function upload(path, form, onprogress) {
  const wire = new XMLHttpRequest();
  const promise = new Promise((resolve, reject) => {
    wire.open("POST", path);
    wire.responseType = "text";
    wire.upload.onprogress = (event) => event.lengthComputable && onprogress(event.loaded / event.total);
    wire.onabort = () => reject(new DOMException("cancelled", "AbortError"));
    wire.onerror = () => reject(new ApiError(0, "The upload broke off: the server refused it or does not answer."));
    wire.onload = () => {
      let answer = null;
      try {
        answer = JSON.parse(wire.responseText);
      } catch {
        // A proxy's page; the status says enough.
      }
      if (answer && wire.status >= 200 && wire.status < 300) resolve(answer);
      else reject(new ApiError(wire.status, detailOf(answer, wire)));
    };
    wire.send(form);
  });
  return { promise, cancel: () => wire.abort() };
}

/** Add a parameter for every value that is set; lists repeat it. */
export function withParameters(path, values) {
  const parameters = new URLSearchParams();
  for (const [name, value] of Object.entries(values)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== undefined && one !== null && one !== "") parameters.append(name, one);
    }
  }
  const text = parameters.toString();
  return text ? `${path}?${text}` : path;
}
