// Files that are dropped anywhere on the page, or pasted.

import { $, icon } from "./dom.js";

const VIDEO_NAMES = /\.(mp4|m4v|mov|mkv|webm|avi|ts|m2ts|mts|mpg|mpeg|vob|flv|ogv|ogg|wmv|asf)$/i;

export const isVideo = (file) => file.type.startsWith("video/") || (!file.type.startsWith("image/") && VIDEO_NAMES.test(file.name));

/** actions: image(file), videos(files), canAdd(), refuse(text). */
export function acceptFiles(actions) {
  const overlay = $("drop");
  const text = $("drop-text");
  let depth = 0; // dragenter and dragleave come for every element on the way

  const carriesFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");
  const hide = () => {
    depth = 0;
    overlay.hidden = true;
  };

  addEventListener("dragenter", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    depth += 1;
    const types = [...event.dataTransfer.items].map((item) => item.type);
    const images = types.length && types.every((type) => type.startsWith("image/"));
    overlay.querySelector(".icon").replaceWith(icon(images || !actions.canAdd() ? "image" : "film"));
    if (images || !actions.canAdd()) text.textContent = "Drop an image to search by it";
    else text.textContent = types.every((type) => type.startsWith("video/")) ? "Drop videos to add them" : "Drop an image to search by it, or videos to add them";
    overlay.hidden = false;
  });
  addEventListener("dragover", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    event.dataTransfer.dropEffect = "copy";
  });
  addEventListener("dragleave", (event) => {
    if (!carriesFiles(event)) return;
    depth -= 1;
    if (depth <= 0) hide();
  });
  addEventListener("drop", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    hide();
    take([...event.dataTransfer.files]);
  });
  document.addEventListener("paste", (event) => {
    const file = [...(event.clipboardData?.files ?? [])].find((each) => each.type.startsWith("image/"));
    if (!file) return;
    event.preventDefault();
    actions.image(file);
  });

  function take(files) {
    const videos = files.filter(isVideo);
    const image = files.find((file) => file.type.startsWith("image/"));
    if (videos.length && actions.canAdd()) actions.videos(videos);
    else if (videos.length && !image) actions.refuse("This server takes no new videos.");
    if (image) actions.image(image);
    else if (!videos.length && files.length) actions.refuse(`${files[0].name} is neither an image nor a video.`);
  }
}
