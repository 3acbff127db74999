"use strict";

const find = (id) => document.getElementById(id);
let lastFile = null;

function element(tag, text) {
  const node = document.createElement(tag);
  node.textContent = text ?? "";
  return node;
}

function say(text, isError = false) {
  find("message").textContent = text;
  find("message").classList.toggle("error", isError);
}

function showAnswer({ model, predictions, clip, frames }) {
  find("predictions").replaceChildren(...predictions.map(({ class: name, probability }) => {
    const percent = `${(100 * probability).toFixed(1)} %`;
    const row = element("li");
    const bar = element("i");
    bar.style.width = percent.replace(" ", "");
    const track = element("div");
    track.append(bar);
    row.append(element("span", name), element("span", percent), track);
    return row;
  }));
  find("frames").replaceChildren(...frames.map((jpeg, i) => {
    const figure = element("figure");
    const image = new Image();
    image.src = `data:image/jpeg;base64,${jpeg}`;
    image.alt = `frame ${clip.frame_indices[i]}`;
    figure.append(image, element("figcaption", clip.frame_indices[i]));
    return figure;
  }));
  find("facts").textContent = `The model saw ${frames.length} of ${clip.num_frames} frames, ` +
    `${clip.width_px} × ${clip.height_px}, ${clip.duration_seconds.toFixed(1)} s · ` +
    `${model.name}, version ${model.version}`;
  find("answer").hidden = false;
}

async function classify(file) {
  lastFile = file;
  find("answer").hidden = true;
  say(`Looking at ${file.name} …`);
  const key = find("key").value; // kept in memory only
  const headers = { "Content-Type": "application/octet-stream", ...(key && { Authorization: `Bearer ${key}` }) };
  try {
    const response = await fetch("v1/predict?frames=1", { method: "POST", body: file, headers });
    if (response.status === 401) find("key-row").hidden = false;
    const answer = await response.json();
    if (!response.ok) return say(answer.error.message, true);
    say(file.name);
    showAnswer(answer);
  } catch {
    say("The server does not answer.", true);
  }
}

find("file").addEventListener("change", (event) => event.target.files[0] && classify(event.target.files[0]));
find("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (lastFile) classify(lastFile);
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  find("drop").addEventListener(kind, (event) => {
    event.preventDefault();
    find("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files[0]) classify(event.dataTransfer.files[0]);
  });
}
