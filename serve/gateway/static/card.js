// One video on the page: waiting, on its way, answered or refused. Foreign text enters the page only by textContent.

import { Problem } from "./api.js";

const STAGES = [ // where the time goes, in order
  ["upload", "Upload"],
  ["decode", "Decode"],
  ["queue", "Queue"],
  ["model", "Model"],
  ["rest", "Network, rest"],
];

const SURE_FROM = 2 / 3;
// If the probabilities hold, more than one of three answers below this is wrong. And since all probabilities sum to 1, at
// or above it the best class is at least twice as probable as any other.

export function element(tag, text = "", className = "") {
  const node = document.createElement(tag);
  node.textContent = text;
  node.className = className;
  return node;
}

export class Card {
  #controller = new AbortController();
  #clip = null;
  #pictures = [];
  #url = "";

  /** `again`, `cancel`, `remove` and `explain` are called with the card when the user presses that button. */
  constructor(file, { again, cancel, remove, explain }) {
    this.file = file;
    this.node = document.getElementById("card").content.firstElementChild.cloneNode(true);
    this.#find(".name").textContent = file.name;
    this.#find("progress").ariaLabel = `Upload of ${file.name}`;
    const buttons = [["again", "Try again", again], ["cancel", "Cancel", cancel], ["remove", "Remove", remove]];
    for (const [name, label, action] of buttons) {
      const button = this.#find(`.${name}`);
      button.ariaLabel = `${label}: ${file.name}`;
      button.addEventListener("click", () => action(this));
    }
    const why = this.#find(".explain");
    why.addEventListener("click", () => {
      if (why.ariaDisabled === "true") return; // disabled in words only, so that it keeps the focus
      this.#showWhy("Asking the server…", "");
      why.ariaDisabled = "true";
      explain(this);
    });
    this.#find("details").addEventListener("toggle", () => this.#url || this.#showVideo());
    this.#find(".scrubber input").addEventListener("input", ({ target }) => this.#select(Number(target.value)));
  }

  get signal() {
    return this.#controller.signal;
  }

  set open(wanted) {
    this.#find("details").open = wanted;
  }

  /** Returns the file, after checking that it can be read. */
  async read() {
    try {
      await this.file.slice(0, 1).arrayBuffer();
    } catch {
      throw new Problem("The file cannot be read: it is a folder, or it was moved or changed. Choose it again.", 400);
    }
    return this.file;
  }

  showWaiting() {
    this.#controller = new AbortController();
    this.#show("waiting", "Waiting");
  }

  showProgress(share) {
    this.#find("progress").value = share;
    const words = share < 1 ? `Uploading, ${Math.floor(100 * share)}%` : "Uploaded; the server is working on it";
    this.#show("running", words);
  }

  abort() {
    this.#controller.abort();
    this.showProblem(new Problem("Cancelled."));
  }

  /** Shows why there is no answer, and returns it as a sentence. */
  showProblem(problem) {
    this.#show("failed", problem.message);
    this.#find(".again").hidden = !problem.mayPass;
    return `${this.file.name}: ${problem.message}`;
  }

  /** Shows the answer, and returns the best class, or that the model is unsure, as a sentence. */
  showAnswer({ model, predictions, clip, frames, view, timing, uploadSeconds, totalSeconds }) {
    const isSure = predictions[0].probability >= SURE_FROM;
    const named = predictions.slice(0, isSure ? 1 : 2).map(({ class: name, probability }) => `${name}, ${percent(probability)}`);
    const verdict = isSure ? named[0] : `Unsure: ${named.join(", or ")}`;
    this.#clip = clip;
    this.#pictures = frames.map((jpeg) => `data:image/jpeg;base64,${jpeg}`);
    this.#show("answered", "");
    this.node.dataset.sure = isSure ? "yes" : "no";
    this.#find(".verdict").textContent = verdict;
    this.#find(".unsure").hidden = isSure;
    this.#find(".unsure").textContent = isSure ? "" : doubt(predictions[0].probability);
    this.#find(".predictions").replaceChildren(...predictions.map(bar));
    this.#find(".frames").replaceChildren(...this.#pictures.map((picture, i) => this.#frame(picture, view[i], i)));
    this.#find(".scrubber input").max = frames.length - 1;
    this.#showTimes(timing, uploadSeconds, totalSeconds);
    this.#find(".properties").replaceChildren(...properties({ model, clip, numBytes: this.file.size, numFrames: frames.length }));
    this.#find(".answer").hidden = false;
    this.#mark(0);
    if (!this.#find(".stage video")) this.#showPicture(0);
    return `${this.file.name}: ${verdict}`;
  }

  /** Draws under each frame how much it decided, and returns which one decided most, as a sentence. */
  showWeights({ class: best, against, lead, frame_weights: weights }) {
    const largest = Math.max(...weights.map(Math.abs));
    [...this.#find(".frames").children].forEach((item, i) => item.append(weight(weights[i], weights[i] / largest || 0)));
    const strongest = weights.indexOf(Math.max(...weights));
    const left = lead - weights[strongest];
    const decided = weights[strongest] > lead / (2 * weights.length); // half of an even share
    const sentence = (decided ? "" : "No single frame decided. ") +
      `The strongest evidence for ${best} is ${this.#labels(strongest).join(", ")}: without it, the lead over ${against} ` +
      `falls from ${logits(lead)} to ${logits(left)} logits${left < 0 ? ", and the answer is another one" : ""}.`;
    this.#find(".scale").textContent =
      `Bars to the right: the lead of ${best} falls by so much if the model does not see the frame. To the left: it rises.`;
    const button = this.#find(".explain");
    const hadFocus = button === document.activeElement;
    this.#showWhy(button.textContent, sentence);
    button.hidden = true;
    this.#find(".scale").hidden = false;
    if (hadFocus) this.#find(".reason").focus();
    return `${this.file.name}: ${sentence}`;
  }

  /** Shows why it is not known which frames decided, and returns it as a sentence. */
  showUnexplained(problem) {
    this.#showWhy("Which frames decided?", problem.message);
    return `${this.file.name}: ${problem.message}`;
  }

  close() {
    this.#controller.abort();
    URL.revokeObjectURL(this.#url);
    this.node.remove();
  }

  #find(selector) {
    return this.node.querySelector(selector);
  }

  #show(state, words) {
    const hadFocus = this.#find(".state").contains(document.activeElement);
    this.node.dataset.state = state;
    this.#find(".words").textContent = words;
    const isOver = state === "answered" || state === "failed";
    this.#find("progress").hidden = this.#find(".cancel").hidden = isOver;
    this.#find(".again").hidden = true;
    this.#find(".remove").hidden = !isOver;
    if (state === "waiting") this.#find("progress").value = 0;
    if (hadFocus) this.#find(isOver ? "summary" : ".cancel").focus(); // the element that had the focus may be gone
  }

  #showWhy(label, reason) {
    const button = this.#find(".explain");
    button.textContent = label;
    button.ariaDisabled = null;
    this.#find(".reason").textContent = reason;
    this.#find(".reason").hidden = !reason;
  }

  /** Shows the video itself if the browser can play it; otherwise the frames. */
  #showVideo() {
    this.#url = URL.createObjectURL(this.file);
    const video = document.createElement("video");
    Object.assign(video, { controls: true, muted: true, playsInline: true, preload: "auto", src: this.#url });
    video.ariaLabel = `Preview of ${this.file.name}`;
    const giveUp = () => {
      video.remove();
      if (this.#clip) this.#select(Number(this.#find(".scrubber input").value));
    };
    video.addEventListener("error", giveUp);
    video.addEventListener("loadedmetadata", () => video.videoWidth || giveUp());
    video.addEventListener("timeupdate", () => this.#clip && !video.paused && this.#follow(video.currentTime));
    this.#find(".stage").replaceChildren(video);
  }

  #showPicture(i) {
    const picture = new Image();
    picture.src = this.#pictures[i];
    picture.alt = this.#labels(i).join(", ");
    this.#find(".stage").replaceChildren(picture);
  }

  #follow(seconds) {
    this.#mark(Math.max(0, this.#clip.frame_indices.findLastIndex((index) => this.#seconds(index) <= seconds)));
  }

  /** Returns a frame of the video and, beside it, what the model got of it. */
  #frame(picture, png, i) {
    const item = element("li");
    const pair = element("div", "", "pair");
    pair.append(sized(picture, "whole"), sized(`data:image/png;base64,${png}`, "view", ({ naturalWidth: side }) => {
      this.#find(".note").textContent = `Left: the frame of the video. Right: what enters the model, ${side} × ${side} pixels.`;
    }));
    const [index, seconds] = this.#labels(i);
    item.append(pair, element("span", index), " ", element("span", seconds));
    item.addEventListener("click", () => this.#select(i)); // with the keyboard: use the scrubber
    return item;
  }

  #select(i) {
    const video = this.#find(".stage video");
    if (video) {
      video.pause();
      video.currentTime = this.#seconds(this.#clip.frame_indices[i] + 0.5); // the middle of the frame
    } else {
      this.#showPicture(i);
    }
    this.#mark(i);
  }

  #mark(i) {
    const scrubber = this.#find(".scrubber input");
    scrubber.value = i;
    scrubber.ariaValueText = this.#find(".scrubber output").textContent = this.#labels(i).join(" · ");
    [...this.#find(".frames").children].forEach((item, j) => item.classList.toggle("current", j === i));
  }

  #labels(i) {
    const index = this.#clip.frame_indices[i];
    return [`frame ${index}`, `${this.#seconds(index).toFixed(2)} s`];
  }

  #seconds(index) {
    return (this.#clip.duration_seconds * index) / this.#clip.num_frames;
  }

  #showTimes({ decode_seconds: decode, queue_seconds: queue, model_seconds: model }, measured, total) {
    const outside = Math.max(0, total - decode - queue - model);
    const upload = Math.min(measured, outside); // Chromium reports the end of an upload up to 0.1 s late
    const times = { upload, decode, queue, model, rest: outside - upload };
    this.#find(".total").textContent = duration(total);
    this.#find(".split").replaceChildren(...STAGES.map(([name]) => {
      const part = element("i", "", name);
      part.style.flexGrow = 1e6 * times[name]; // if they summed to less than 1, the bar would not be full
      return part;
    }));
    this.#find(".legend").replaceChildren(...STAGES.map(([name, label]) => pair(label, duration(times[name]), name)));
  }
}

function doubt(probability) {
  const numWrong = Math.round(100 * (1 - probability));
  return `The model is unsure: if its probabilities hold, ${numWrong} of 100 such answers are wrong.`;
}

/** Returns a picture that gets as high as those beside it. */
function sized(source, className, onLoad = () => {}) {
  const image = new Image();
  image.className = className;
  image.alt = "";
  image.addEventListener("load", () => {
    image.style.flexGrow = image.naturalWidth / image.naturalHeight;
    onLoad(image);
  });
  image.src = source;
  return image;
}

function bar({ class: className, probability }) {
  const row = element("li");
  const track = element("div");
  const fill = element("i");
  fill.style.width = `${100 * probability}%`;
  track.append(fill);
  row.append(element("span", className), element("span", percent(probability)), track);
  return row;
}

/** Returns a bar from the middle, to the right if the weight is above 0, and the weight as text. */
function weight(value, share) {
  const row = element("div", "", "weight");
  const track = element("div");
  const fill = element("i", "", share < 0 ? "below" : "");
  fill.style.width = `${50 * Math.abs(share)}%`;
  track.append(fill);
  row.append(element("span", "weight ", "unseen"), element("span", value > 0.005 ? `+${logits(value)}` : logits(value)), track);
  return row;
}

/** Returns logits with a true minus sign and without a minus zero. */
function logits(value) {
  return value.toFixed(2).replace("-0.00", "0.00").replace("-", "−");
}

function properties({ model, clip, numBytes, numFrames }) {
  return [
    pair("Model", `${model.name}, version ${model.version}`),
    pair("Video", `${clip.width_px} × ${clip.height_px}, ${clip.duration_seconds.toFixed(2)} s, ${size(numBytes)}`),
    pair("Frames", `${numFrames} of ${clip.num_frames} seen`),
    pair("Frame rate", clip.fps ? `${Number(clip.fps.toFixed(2))} per second` : "not stated"),
    ...(clip.damage.length ? [pair("Damaged", clip.damage.join(", ").replaceAll("_", " "))] : []),
  ];
}

function pair(term, description, className = "") {
  const group = element("div", "", className);
  group.append(element("dt", term), element("dd", description));
  return group;
}

function percent(probability) {
  return probability > 0 && probability < 0.001 ? "< 0.1%" : `${(100 * probability).toFixed(1)}%`;
}

function duration(seconds) {
  return seconds < 0.9995 ? `${(1000 * seconds).toFixed(seconds < 0.00995 ? 1 : 0)} ms` : `${seconds.toFixed(2)} s`;
}

function size(numBytes) {
  return numBytes < 1e6 ? `${Math.ceil(numBytes / 1e3)} kB` : `${(numBytes / 1e6).toFixed(1)} MB`;
}
