// The page: which videos wait, which ones the server works on, what the server serves, and the API key if it wants one.

import { classify, explain, getModel, getSample, getSampleNames, setKey } from "./api.js";
import { Card, element } from "./card.js";

const AT_ONCE = 2; // one is sent while the other is decoded
const RETRY_MS = 5000;
const MAX_UNFOLDED = 24; // a longer list of classes starts folded

const find = (id) => document.getElementById(id);
const waiting = [];
let numRunning = 0;
let isLocked = false;
let served = null;
let retryTimer = 0;

function add(files) {
  const cards = files.map((file) => new Card(file, { again: enqueue, cancel, remove, explain: explainCard }));
  find("results").prepend(...cards.map((card) => card.node));
  for (const card of cards) {
    card.open = files.length === 1;
    enqueue(card);
  }
}

function enqueue(card) {
  card.showWaiting();
  waiting.push(card);
  pump();
}

function pump() {
  while (!isLocked && numRunning < AT_ONCE && waiting.length) {
    numRunning += 1;
    run(waiting.shift()).finally(() => {
      numRunning -= 1;
      pump();
    });
  }
}

async function run(card) {
  const { signal } = card; // a second try has another one
  try {
    const answer = await classify(await card.read(), (share) => card.showProgress(share), signal);
    announce(card.showAnswer(answer));
    if (answer.model.version !== served?.version) load();
  } catch (problem) {
    if (problem.status === 401) {
      card.showWaiting();
      waiting.unshift(card);
      if (!isLocked) askForKey();
    } else {
      announce(card.showProblem(problem));
    }
  }
}

async function explainCard(card) {
  const { signal } = card;
  try {
    announce(card.showWeights(await explain(await card.read(), signal)));
  } catch (problem) {
    if (!signal.aborted) announce(card.showUnexplained(problem)); // otherwise the user has removed the card
  }
}

function cancel(card) {
  const place = waiting.indexOf(card);
  if (place >= 0) waiting.splice(place, 1);
  card.abort();
}

function remove(card) {
  const next = card.node.nextElementSibling ?? card.node.previousElementSibling;
  card.close();
  (next?.querySelector("summary") ?? find("files")).focus();
}

function announce(text) {
  find("announcement").textContent = text;
}

/** Asks which model is served, again and again until the server answers; its answer also proves that the key is right. */
async function load() {
  clearTimeout(retryTimer);
  try {
    served = await getModel();
    showModel(served);
    if (!find("samples").dataset.known) showSamples(await getSampleNames());
    showProblem("");
    unlock();
  } catch (problem) {
    if (problem.status === 401) return askForKey();
    showProblem(problem.message);
    if (problem.mayPass) retryTimer = setTimeout(load, RETRY_MS);
  }
}

function showModel({ name, version, class_names: classNames, num_frames: numFrames, explains }) {
  document.body.classList.toggle("explains", explains);
  find("model").textContent = `${name} · version ${version}`;
  find("task").textContent = `The model looks at ${numFrames} frames and tells ${classNames.length} classes apart.`;
  const [summary, list] = find("classes").children;
  summary.textContent = `The ${classNames.length} classes it knows`;
  list.replaceChildren(...classNames.map((className) => element("li", className)));
  if (find("classes").hidden) find("classes").open = classNames.length <= MAX_UNFOLDED;
  find("classes").hidden = false;
}

function showSamples(names) {
  const buttons = names.map((name, number) => {
    const button = element("button", name);
    button.addEventListener("click", () => addSample(number, name));
    const item = element("li");
    item.append(button);
    return item;
  });
  find("samples").querySelector("ul").replaceChildren(...buttons);
  find("samples").hidden = !names.length;
  find("samples").dataset.known = "yes";
}

async function addSample(number, name) {
  try {
    add([await getSample(number, name)]);
  } catch (problem) {
    showProblem(problem.message);
  }
}

function showProblem(text) {
  find("problem").textContent = text;
  find("problem").hidden = !text;
}

function askForKey() {
  isLocked = true;
  find("key-form").hidden = false;
  find("key-problem").hidden = !find("key").value;
  find("key").focus();
  find("key").select();
}

function unlock() {
  isLocked = false;
  if (find("key-form").contains(document.activeElement)) find("files").focus();
  find("key-form").hidden = true;
  find("key").value = "";
  pump();
}

find("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  setKey(find("key").value.trim());
  load();
});
find("files").addEventListener("change", ({ target }) => {
  add([...target.files]);
  target.value = ""; // so that the user can choose the same file again
});
for (const kind of ["dragover", "dragleave", "drop"]) {
  window.addEventListener(kind, (event) => { // anywhere on the page: otherwise the browser would leave it and open the video
    event.preventDefault();
    find("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files.length) add([...event.dataTransfer.files]);
  });
}
load();
