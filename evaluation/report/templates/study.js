"use strict";
const $ = id => document.getElementById(id);
const count = STUDY.items.length, key = "study-" + STUDY.id;
const fresh = () => ({
  // Distinguishes two downloads by one person from two people of one name.
  session: Array.from(crypto.getRandomValues(new Uint8Array(8)), byte => byte.toString(16).padStart(2, "0")).join(""),
  rater: "", started: null, at: -1, answers: {},
});
let state = fresh(), shown = 0;

const choices = [...document.querySelectorAll("[data-rating], [data-guess], [data-preference]")];
function chosen(button) {
  const { rating, guess, preference } = button.dataset;
  return rating ? { rating: Number(rating) } : guess ? { guess } : { preference };
}

// The sounds of an item one after the other, from their beginnings.
function play() {
  const sounds = [...document.querySelectorAll("audio[src]")];
  for (const [place, sound] of sounds.entries()) {
    sound.pause();
    sound.currentTime = 0;
    sound.onended = () => { if (sounds[place + 1]) sounds[place + 1].play(); };
  }
  sounds[0].play();
}

function keep() {
  try { localStorage.setItem(key, JSON.stringify(state)); } catch { $("unkept").hidden = false; }
}

function recall() {
  try {
    const kept = JSON.parse(localStorage.getItem(key));
    if (kept && kept.session && kept.answers) state = { ...fresh(), ...kept };
  } catch { /* nothing readable was kept: start from the beginning */ }
}

// An item is a list of addresses: one is rated, two are compared.
const asked = at => STUDY.items[at].length > 1 ? ["preference"] : ["rating", "guess"];
const answer = () => state.answers[state.at] || {};
const whole = at => asked(at).every(name => (state.answers[at] || {})[name]);
const rated = () => STUDY.items.filter((_, at) => whole(at)).length;

function show(at) {
  state.at = Math.max(-1, Math.min(at, count));
  keep();
  for (const [id, on] of [["start", state.at < 0], ["rate", state.at >= 0 && state.at < count], ["done", state.at === count]]) $(id).hidden = !on;
  if (!$("rate").hidden) {
    for (const stage of document.querySelectorAll("[data-stage]")) {
      const address = STUDY.items[state.at][stage.dataset.stage];
      stage.parentElement.hidden = !address;
      if (address) stage.src = address;
      else stage.removeAttribute("src");
    }
    for (const group of document.querySelectorAll("[data-asks]")) group.hidden = !asked(state.at).includes(group.dataset.asks);
    shown = Date.now();
    draw();
  } else if (!$("done").hidden) {
    const left = count - rated();
    $("thanks").textContent = left ? "Stopped early" : "Thank you";
    $("summary").textContent = `${rated()} of ${count} images rated.` + (left ? " You can go on now or later in this browser." : "");
  }
  window.scrollTo(0, 0);
}

function draw() {
  for (const button of choices) button.setAttribute("aria-pressed", Object.entries(chosen(button)).every(([name, value]) => answer()[name] === value));
  $("place").textContent = `${state.at + 1} of ${count}`;
  $("bar").value = rated();
  $("next").disabled = !whole(state.at);
}

function put(what) {
  const at = state.at, before = answer(), done = whole(at);
  state.answers[at] = { ...before, ...what, seconds: done ? before.seconds : (before.seconds || 0) + (Date.now() - shown) / 1000 };
  shown = Date.now();
  keep();
  draw();
  // The first time all is answered, go on; a changed mind stays where it is. The pause lets the choice be seen.
  if (!done && whole(at)) setTimeout(() => { if (state.at === at) forward(); }, 180);
}

function forward() {
  if (whole(state.at)) show(state.at + 1);
}

function download() {
  state.rater = $("name").value.trim();
  const answers = Object.entries(state.answers).filter(([at]) => whole(at)).map(([at, one]) => (
    { item: Number(at) + 1, ...Object.fromEntries(asked(at).map(name => [name, one[name]])), seconds: Math.round(one.seconds * 10) / 10 }));
  const result = { version: 1, study: STUDY.id, session: state.session, rater: state.rater, started: state.started, saved: new Date().toISOString(), answers };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(result, null, 1)], { type: "application/json" }));
  const name = state.rater.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-|-$/g, "") || state.session;
  link.download = `ratings-${STUDY.id}-${name}.json`;
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

document.addEventListener("keydown", event => {
  if ($("rate").hidden || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  const pressed = event.key.toLowerCase(), choice = choices.find(button => button.dataset.key === pressed && !button.parentElement.hidden);
  if (choice) put(chosen(choice));
  else if (pressed === "p" && document.querySelector("audio")) play();
  else if (pressed === "arrowleft" || pressed === "backspace") show(state.at - 1);
  else if (pressed === "arrowright") forward();
  else return;
  event.preventDefault();
});
for (const button of choices) button.onclick = () => put(chosen(button));
$("back").onclick = () => show(state.at - 1);
$("next").onclick = forward;
$("stop").onclick = () => show(count);
$("again").onclick = () => {
  const open = STUDY.items.findIndex((_, at) => !whole(at));
  show(open < 0 ? count - 1 : open);
};
$("name").oninput = () => { state.rater = $("name").value.trim(); keep(); };
$("name").onkeydown = event => { if (event.key === "Enter" && !event.isComposing) $("begin").click(); };
$("begin").onclick = () => { state.started ||= new Date().toISOString(); show(0); };
$("download").onclick = download;
recall();
$("name").value = state.rater;
show(state.at);
