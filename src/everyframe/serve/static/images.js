// Pictures to search by: where they come from, and what the server knows of them.

import { ApiError, getJson, withParameters } from "./api.js";

const READ_BY_SERVER = ["image/png", "image/jpeg", "image/webp", "image/gif", "image/bmp"];
const LARGE_BYTES = 4e6;
const LARGE_SIDE = 1600; // pixels; models look at 224 to 512

/** key -> {blob, name, url, known}: `known` is the server's name for it while it remembers the picture. */
const held = new Map();
let last = 0;

export const isImage = (file) => file.type.startsWith("image/");

/** Take a picture in; returns the key for the state. */
export async function hold(file) {
  const blob = await prepared(file);
  const key = `image-${Date.now().toString(36)}-${(last += 1)}`;
  held.set(key, { blob, name: file.name || "pasted image", url: URL.createObjectURL(blob), known: "" });
  return key;
}

export const heldImage = (key) => held.get(key);

/** What the server cannot read or would find too large is drawn again, smaller, as PNG or JPEG. */
async function prepared(file) {
  const readable = READ_BY_SERVER.includes(file.type);
  if (readable && file.size <= LARGE_BYTES) return file;
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    return file; // not a picture the browser can read: the server says what is wrong with it
  }
  const scale = Math.min(1, LARGE_SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  const drawn = await new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.92));
  return drawn ?? file;
}

/** Search with a picture. It is sent once; later the server is asked by the name it gave, while it remembers. */
export async function searchByImage(key, parameters, signal) {
  const picture = held.get(key);
  if (!picture) throw new ApiError(410, "The picture is no longer here. Choose it again.");
  if (picture.known) {
    try {
      return await getJson(withParameters("/api/search", { ...parameters, image: picture.known }), { signal });
    } catch (error) {
      if (![404, 410, 422].includes(error.status)) throw error;
      picture.known = "";
    }
  }
  const form = new FormData();
  form.append("image", picture.blob, picture.name);
  const answer = await getJson(withParameters("/api/search/image", parameters), { method: "POST", body: form, signal });
  picture.known = answer.image ?? "";
  return answer;
}
