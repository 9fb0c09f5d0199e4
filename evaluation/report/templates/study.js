"use strict";
const $ = id => document.getElementById(id);
const count = STUDY.images.length, key = "study-" + STUDY.id;
const fresh = () => ({
  // Distinguishes two downloads by one person from two people of one name.
  session: Array.from(crypto.getRandomValues(new Uint8Array(8)), byte => byte.toString(16).padStart(2, "0")).join(""),
  rater: "", started: null, at: -1, answers: {},
});
let state = fresh(), shown = 0;

function keep() {
  try { localStorage.setItem(key, JSON.stringify(state)); } catch { $("unkept").hidden = false; }
}

function recall() {
  try {
    const kept = JSON.parse(localStorage.getItem(key));
    if (kept && kept.session && kept.answers) state = { ...fresh(), ...kept };
  } catch { /* nothing readable was kept: start from the beginning */ }
}

const answer = () => state.answers[state.at] || {};
const whole = one => Boolean(one && one.rating && one.guess);
const rated = () => Object.values(state.answers).filter(whole).length;

function show(at) {
  state.at = Math.max(-1, Math.min(at, count));
  keep();
  for (const [id, on] of [["start", state.at < 0], ["rate", state.at >= 0 && state.at < count], ["done", state.at === count]]) $(id).hidden = !on;
  if (!$("rate").hidden) {
    $("image").src = STUDY.images[state.at];
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
  for (const button of document.querySelectorAll("[data-rating]")) button.setAttribute("aria-pressed", Number(button.dataset.rating) === answer().rating);
  for (const button of document.querySelectorAll("[data-guess]")) button.setAttribute("aria-pressed", button.dataset.guess === answer().guess);
  $("place").textContent = `${state.at + 1} of ${count}`;
  $("bar").value = rated();
  $("next").disabled = !whole(answer());
}

function put(what) {
  const at = state.at, before = answer(), done = whole(before);
  state.answers[at] = { ...before, ...what, seconds: done ? before.seconds : (before.seconds || 0) + (Date.now() - shown) / 1000 };
  shown = Date.now();
  keep();
  draw();
  // The first time both are answered, go on; a changed mind stays where it is. The pause lets the choice be seen.
  if (!done && whole(answer())) setTimeout(() => { if (state.at === at) forward(); }, 180);
}

function forward() {
  if (whole(answer())) show(state.at + 1);
}

function download() {
  state.rater = $("name").value.trim();
  const answers = Object.entries(state.answers).filter(([, one]) => whole(one)).map(([at, one]) => (
    { item: Number(at) + 1, rating: one.rating, guess: one.guess, seconds: Math.round(one.seconds * 10) / 10 }));
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
  const pressed = event.key.toLowerCase();
  if ("12345".includes(pressed) && pressed) put({ rating: Number(pressed) });
  else if (pressed === "r") put({ guess: "real" });
  else if (pressed === "g") put({ guess: "generated" });
  else if (pressed === "arrowleft" || pressed === "backspace") show(state.at - 1);
  else if (pressed === "arrowright") forward();
  else return;
  event.preventDefault();
});
for (const button of document.querySelectorAll("[data-rating]")) button.onclick = () => put({ rating: Number(button.dataset.rating) });
for (const button of document.querySelectorAll("[data-guess]")) button.onclick = () => put({ guess: button.dataset.guess });
$("back").onclick = () => show(state.at - 1);
$("next").onclick = forward;
$("stop").onclick = () => show(count);
$("again").onclick = () => {
  const open = STUDY.images.findIndex((_, at) => !whole(state.answers[at]));
  show(open < 0 ? count - 1 : open);
};
$("name").oninput = () => { state.rater = $("name").value.trim(); keep(); };
$("name").onkeydown = event => { if (event.key === "Enter" && !event.isComposing) $("begin").click(); };
$("begin").onclick = () => { state.started ||= new Date().toISOString(); show(0); };
$("download").onclick = download;
recall();
$("name").value = state.rater;
show(state.at);
