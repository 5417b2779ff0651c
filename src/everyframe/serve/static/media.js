// What the server has of a video: the original, or a preview that it makes for browsers.

import { request } from "./api.js";

const POLL = 700; // milliseconds
const FIRST_BYTE = { Range: "bytes=0-0" };

/** Rejects with the server's sentence where the original cannot be had. */
export async function originalThere(video, signal) {
  const answer = await request(`/media/${video}`, { headers: FIRST_BYTE, signal });
  answer.body?.cancel();
}

/** Have the server make the preview, and wait for it; `onprogress` gets 0 to 1. */
export async function previewMade(video, signal, onprogress) {
  for (;;) {
    const answer = await request(`/media/${video}/preview`, { headers: FIRST_BYTE, signal });
    if (answer.status !== 202) {
      answer.body?.cancel();
      return;
    }
    const { progress } = await answer.json();
    if (progress > 0) onprogress(progress);
    await new Promise((resolve) => setTimeout(resolve, POLL));
  }
}
