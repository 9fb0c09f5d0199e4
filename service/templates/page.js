"use strict";
// The page of serve.py: sends what its forms say to the API, shows what comes back, and keeps a history of the session.

const texts = JSON.parse(document.getElementById("texts").dataset.texts);
const KEPT = "serve-history", MOST_KEPT = 30;

function say(key, values = {}) {
  return texts[key].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

// What the page says of an error of the API; its own message is in English.
function explain({code, message}) {
  return new Error((texts.errors[code] || texts.errors.other).replace("{message}", () => message));
}

async function post(path, body, signal) {
  const options = {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body), signal};
  const answer = await fetch(path, options).catch((error) => {
    throw error.name === "AbortError" ? error : explain({code: "unreachable"});
  });
  if (answer.ok) return answer;
  throw explain((await answer.json()).error);
}

// Calls `tell` with each server-sent event; its last line ends with an empty one.
async function readEvents(answer, tell) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const {done, value} = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = JSON.parse(part.split("\n").find((line) => line.startsWith("data: ")).slice(6));
      if (data.error) throw explain(data.error);
      tell(data);
    }
  }
}

function local(number) {
  return number.toLocaleString(document.documentElement.lang);
}

function showSliders() {
  for (const slider of document.querySelectorAll(".slider")) {
    const input = slider.querySelector("input"), output = slider.querySelector("output");
    const show = () => { output.value = local(Number(input.value)); };
    input.addEventListener("input", show);
    input.form.addEventListener("reset", () => setTimeout(show));
    show();
  }
}

function sendByKeys(form) {
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
}

// The browser can only show what is wrong with a field that is in sight.
function openAtFaults(form) {
  form.addEventListener("invalid", (event) => {
    const folded = event.target.closest("details");
    if (folded) folded.open = true;
  }, true);
}

// Images

function readSettings(form) {
  const settings = {
    prompt: form.prompt.value, seed: Number(form.seed.value), n: Number(form.n.value),
    size: `${form.size.value}x${form.size.value}`, steps: Number(form.steps.value), lora: {},
  };
  if (form.negative_prompt) settings.negative_prompt = form.negative_prompt.value; // a model may have neither
  if (form.guidance_scale) settings.guidance_scale = Number(form.guidance_scale.value);
  for (const slider of form.querySelectorAll("input[data-lora]")) {
    if (Number(slider.value)) settings.lora[slider.name] = Number(slider.value);
  }
  return settings;
}

function writeSettings(form, settings, isCompared) {
  for (const name of ["prompt", "negative_prompt", "seed", "n", "steps", "guidance_scale"]) {
    if (form[name]) form[name].value = settings[name];
  }
  form.size.value = parseInt(settings.size, 10);
  form.lock.checked = true;
  if (form.compare) form.compare.checked = isCompared;
  for (const slider of form.querySelectorAll("input[data-lora]")) {
    slider.value = settings.lora[slider.name] || 0;
    slider.dispatchEvent(new Event("input"));
  }
}

// A label within a sentence.
function word(key) {
  return say(key).toLowerCase();
}

function describe(settings) {
  const loras = Object.entries(settings.lora).map(([name, weight]) => `${name} ${local(weight)}`);
  const words = [`${word("seed")} ${settings.seed}`, settings.size, `${settings.steps} ${word("steps")}`];
  if ("guidance_scale" in settings) words.push(`${word("guidance")} ${local(settings.guidance_scale)}`);
  words.push(...loras);
  if (settings.negative_prompt) words.push(`${word("negative")}: ${settings.negative_prompt}`);
  return words.join(" · ");
}

function addImage(box, {url, label}, prompt) {
  const figure = document.createElement("figure"), image = new Image(), caption = document.createElement("figcaption");
  image.alt = prompt;
  image.src = url;
  image.onerror = () => {
    const gone = document.createElement("div");
    gone.className = "missing";
    gone.textContent = say("expired");
    image.replaceWith(gone);
  };
  caption.textContent = label;
  figure.append(image, caption);
  box.append(figure);
}

function showEntry(form, {settings, images, isCompared}) {
  const entry = document.getElementById("entry").content.cloneNode(true).firstElementChild;
  const box = entry.querySelector(".abreast"), [words, actions] = entry.querySelectorAll("p");
  box.style.setProperty("--columns", Math.min(4, images.length));
  for (const image of images) addImage(box, image, settings.prompt);
  words.textContent = `${settings.prompt} – ${describe(settings)}`;
  actions.querySelector("button").addEventListener("click", () => {
    writeSettings(form, settings, isCompared);
    form.prompt.focus();
  });
  document.getElementById("history").prepend(entry);
}

function readHistory() {
  try {
    return JSON.parse(sessionStorage.getItem(KEPT)) || [];
  } catch {
    return [];
  }
}

function keepEntry(entry) {
  const kept = [entry, ...readHistory()].slice(0, MOST_KEPT);
  sessionStorage.setItem(KEPT, JSON.stringify(kept));
}

// The images of one request, in order; `tell` gets the share of the steps that are done.
async function makeImages(settings, label, signal, tell) {
  const made = [], body = {...settings, stream: true, response_format: "url"};
  await readEvents(await post("/v1/images/generations", body, signal), (event) => {
    if (event.type === "image_generation.queued") tell(0, event.ahead);
    if (event.type === "image_generation.progress") tell(event.step / event.steps, 0);
    if (event.type === "image_generation.completed") {
      const path = new URL(event.url).pathname;
      made[event.index] = {url: path, label: `${label} ${event.seed}`};
    }
  });
  return made;
}

// What was composed before makes room for what is composed now; words of one's own stay.
function replaceEnd(text, composed, fresh) {
  const old = composed.findLast((one) => one && text.endsWith(one)) || "";
  const own = text.slice(0, text.length - old.length);
  return own.trim() && !old ? `${own.trimEnd()}, ${fresh}` : own + fresh;
}

function startImages(form) {
  const status = form.querySelector("[role=status]"), bar = form.querySelector("progress");
  const stop = form.querySelector(".stop"), [send] = form.querySelectorAll("button:not([type])");
  for (const entry of readHistory().reverse()) showEntry(form, entry);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (send.disabled) return; // Ctrl+Enter, while it works
    if (!form.lock.checked) form.seed.value = crypto.getRandomValues(new Uint32Array(1))[0] % 999999000;
    const settings = readSettings(form), work = new AbortController();
    const sides = [[settings, say("seed")]], isCompared = Boolean(form.compare?.checked);
    if (isCompared) sides.push([{...settings, lora: {}}, `${say("without")} ${word("seed")}`]);
    const shares = sides.map(() => 0);
    stop.onclick = () => work.abort();
    [send.disabled, stop.hidden, bar.hidden, bar.value] = [true, false, false, 0];
    status.textContent = say("working");
    try {
      const made = await Promise.all(sides.map(([one, label], side) => makeImages(one, label, work.signal, (share, ahead) => {
        shares[side] = share;
        bar.value = shares.reduce((a, b) => a + b) / shares.length;
        if (ahead) status.textContent = say("ahead", {n: ahead});
      })));
      const images = made.length === 1 ? made[0] : made[0].flatMap((one, index) => [one, made[1][index]]);
      keepEntry({settings, images, isCompared});
      showEntry(form, {settings, images, isCompared});
      status.textContent = say("done");
    } catch (error) {
      work.abort();
      status.textContent = error.name === "AbortError" ? say("stopped") : error.message;
    }
    [send.disabled, stop.hidden, bar.hidden] = [false, true, true];
  });
  const composed = [form.prompt.defaultValue];
  let asked = 0; // an answer that comes after a later one's is of a choice that holds no more
  for (const picker of form.querySelectorAll(".pickers")) {
    picker.addEventListener("change", async () => {
      const number = ++asked;
      const chosen = Object.fromEntries([...picker.querySelectorAll("select")].map((one) => [one.name, one.value]));
      try {
        const answer = await post("/page/prompt", {lora: picker.dataset.lora, attributes: chosen});
        const {prompt} = await answer.json();
        if (number < asked) return;
        form.prompt.value = replaceEnd(form.prompt.value, composed, prompt);
        composed.push(prompt);
      } catch (error) {
        status.textContent = error.message;
      }
    });
  }
}

// Speech

// Fields that the chosen voice has not learnt are hidden, and not sent.
function offerManners(form) {
  const takes = form.voice.selectedOptions[0].dataset.takes.split(" ");
  for (const field of form.querySelectorAll("[data-manner]")) {
    field.disabled = field.closest("label").hidden = !takes.includes(field.name);
  }
}

function startSpeech(form) {
  const status = form.querySelector("[role=status]"), player = document.querySelector("#speech audio");
  const [send] = form.querySelectorAll("button");
  form.voice.addEventListener("change", () => offerManners(form));
  offerManners(form);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (send.disabled) return;
    const body = {
      input: form.input.value, voice: form.voice.value, speed: Number(form.speed.value), seed: Number(form.seed.value),
      response_format: "wav",
    };
    for (const field of form.querySelectorAll("[data-manner]:enabled")) {
      if (field.value) body[field.name] = field.type === "number" ? Number(field.value) : field.value;
    }
    [send.disabled, status.textContent] = [true, say("working")];
    try {
      const sound = await (await post("/v1/audio/speech", body)).blob();
      URL.revokeObjectURL(player.src);
      player.src = URL.createObjectURL(sound);
      player.hidden = false;
      status.textContent = say("done");
      await player.play();
    } catch (error) {
      if (error.name !== "NotAllowedError") status.textContent = error.message; // the browser wants a click first
    }
    send.disabled = false;
  });
}

showSliders();
for (const [id, start] of [["image-form", startImages], ["speech-form", startSpeech]]) {
  const form = document.getElementById(id);
  if (form) {
    sendByKeys(form);
    openAtFaults(form);
    start(form);
  }
}
