// Asks the server. Only this module's memory holds the API key.

const AWAY = "The server cannot be reached, or it closed the connection. Check that it runs, then try again.";

let key = "";

/** Why there is no answer: the server's own sentence if it gave one. */
export class Problem extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status; // 0: no answer at all
  }

  get mayPass() {
    return this.status === 0 || this.status === 408 || this.status === 429 || this.status >= 500;
  }
}

export function setKey(text) {
  key = text;
}

export async function getModel() {
  return (await get("v1/model")).json();
}

export async function getSampleNames() {
  return (await (await get("samples")).json()).samples;
}

export async function getSample(number, name) {
  const blob = await (await get(`samples/${number}`)).blob();
  return new File([blob], name, { type: blob.type });
}

/** Returns the answer for a video, and the frames that the model saw. */
export function classify(file, onProgress, signal) {
  return predict(file, "frames=1&view=1", onProgress, signal);
}

/** Returns which frames of a video decided. */
export async function explain(file, signal) {
  return (await predict(file, "top_k=1&explain=1", () => {}, signal)).explanation;
}

/** Returns an answer, with the seconds measured here. XMLHttpRequest, unlike fetch, reports the progress. */
function predict(file, query, onProgress, signal) {
  return new Promise((resolve, reject) => {
    const cancelled = () => reject(new Problem("Cancelled."));
    if (signal.aborted) return cancelled();
    const request = new XMLHttpRequest();
    const began = performance.now();
    let sent = began;
    const seconds = (from, to) => (to - from) / 1000;
    request.upload.addEventListener("progress", ({ loaded, total }) => onProgress(loaded / total));
    request.upload.addEventListener("load", () => {
      sent = performance.now();
      onProgress(1);
    });
    request.addEventListener("load", () => {
      if (request.status !== 200) return reject(problemOf(request.status, request.responseText));
      const answer = JSON.parse(request.responseText);
      resolve({ ...answer, uploadSeconds: seconds(began, sent), totalSeconds: seconds(began, performance.now()) });
    });
    request.addEventListener("error", () => reject(new Problem(AWAY)));
    request.addEventListener("abort", cancelled);
    signal.addEventListener("abort", () => request.abort());
    request.open("POST", `v1/predict?${query}`);
    request.setRequestHeader("Content-Type", "application/octet-stream");
    for (const [name, value] of Object.entries(keyHeaders())) request.setRequestHeader(name, value);
    request.send(file);
  });
}

async function get(path) {
  let response;
  try {
    response = await fetch(path, { headers: keyHeaders() });
  } catch {
    throw new Problem(AWAY);
  }
  if (!response.ok) throw problemOf(response.status, await response.text());
  return response;
}

function keyHeaders() {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

function problemOf(status, text) {
  try {
    return new Problem(JSON.parse(text).error.message, status);
  } catch {
    return new Problem(`The server, or a proxy in front of it, answered with status ${status} and gave no reason.`, status);
  }
}
