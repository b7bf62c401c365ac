// Images of a question: read from files, scaled down where they are large, and drawn.
//
// An image is { id, name, url, width, height, fileWidth, fileHeight }. `url` is a data: URL of what
// is sent and kept, `width` and `height` are its size, and the file's own size comes last.

import { byId, checkedNames, dataUrl, el, newId } from "./dom.js";

const MAX_SIDE = 2048; // pixels
const MAX_BYTES = 1_500_000; // of an image that is sent
const MAX_FILE_BYTES = 50_000_000;
const SENT_TYPES = ["image/png", "image/jpeg", "image/webp", "image/gif"];
const DATA_URL = /^data:image\/(png|jpeg|webp|gif);base64,[A-Za-z0-9+/]+={0,2}$/;

// An SVG file is text for a model.
export const isPicture = (file) => file.type.startsWith("image/") && file.type !== "image/svg+xml";

// Throws an Error for people.
export async function readPicture(file) {
  if (file.size > MAX_FILE_BYTES) throw new Error(`${file.name} is larger than 50 MB.`);
  const bitmap = await createImageBitmap(file).catch(() => {
    throw new Error(
      `This browser cannot read ${file.name} as an image. PNG, JPEG, WebP and GIF files work.`,
    );
  });
  const { width: fileWidth, height: fileHeight } = bitmap;
  const scale = Math.min(1, MAX_SIDE / Math.max(fileWidth, fileHeight));
  const isSentAsIs = scale === 1 && file.size <= MAX_BYTES && SENT_TYPES.includes(file.type);
  const width = Math.max(1, Math.round(fileWidth * scale));
  const height = Math.max(1, Math.round(fileHeight * scale));
  const blob = isSentAsIs ? file : await redraw(bitmap, width, height, file.type);
  bitmap.close();
  const url = await dataUrl(blob);
  return { id: newId(), name: file.name, url, width, height, fileWidth, fileHeight };
}

// A PNG stays one, unless it gets large: a screenshot has sharp edges, a photo has not.
async function redraw(bitmap, width, height, type) {
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  const encode = (as) => new Promise((resolve) => canvas.toBlob(resolve, as, 0.9));
  if (type === "image/png") {
    const png = await encode("image/png");
    if (png.size <= MAX_BYTES) return png;
  }
  context.globalCompositeOperation = "destination-over"; // JPEG would make what is clear black
  context.fillStyle = "white";
  context.fillRect(0, 0, width, height);
  return encode("image/jpeg");
}

// An image from a file that someone else may have written. Null if it is none.
export function checkPicture(image) {
  const size = (value) => (Number.isInteger(value) && value > 0 ? value : 0);
  if (typeof image?.url !== "string" || !DATA_URL.test(image.url)) return null;
  return {
    ...checkedNames(image, "image"),
    url: image.url,
    width: size(image.width),
    height: size(image.height),
    fileWidth: size(image.fileWidth),
    fileHeight: size(image.fileHeight),
  };
}

// "4032 × 3024, sent as 2048 × 1536"
export function sizeText({ width, height, fileWidth, fileHeight }) {
  if (!width || !fileWidth) return "";
  const size = `${fileWidth} × ${fileHeight}`;
  return width === fileWidth ? size : `${size}, sent as ${width} × ${height}`;
}

// A small image. A click shows it in full.
export function pictureNode(image) {
  const title = [image.name, sizeText(image)].filter(Boolean).join(", ");
  if (!image.url) return el("span", { class: "file", title }, `${image.name} (not kept)`);
  return el(
    "button",
    { class: "picture", title, onclick: () => show(image, title) },
    el("img", { src: image.url, alt: image.name }),
  );
}

function show(image, title) {
  byId("picture").replaceChildren(el("img", { src: image.url, alt: image.name }));
  byId("picture-title").textContent = title;
  byId("picture-dialog").showModal();
}
