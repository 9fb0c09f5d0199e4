"use strict";
// Replaces what has changed of the runs that are shown, every few seconds; a sound that plays goes on.

const EVERY = 5000;
const status = document.querySelector("[role=status]"), shown = document.getElementById("runs");

function showTime() {
  const updated = document.getElementById("updated"), time = new Date().toLocaleTimeString(document.documentElement.lang);
  updated.textContent = updated.dataset.text.replace("{time}", time);
}

function isPlaying(section) {
  return [...section.querySelectorAll("audio")].some((one) => !one.paused);
}

async function update() {
  if (document.hidden) return;
  try {
    const answer = await fetch("/watch/runs");
    if (!answer.ok || answer.redirected) throw new Error(answer.status);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const sections = [...page.body.children].map((fresh) => {
      const old = fresh.id && document.getElementById(fresh.id);
      return old && (old.dataset.version === fresh.dataset.version || isPlaying(old)) ? old : fresh;
    });
    const isSame = sections.length === shown.children.length && sections.every((one, i) => one === shown.children[i]);
    if (!isSame) shown.replaceChildren(...sections);
    status.textContent = "";
    showTime();
  } catch {
    status.textContent = status.dataset.lost;
  }
}

showTime();
setInterval(update, EVERY);
document.addEventListener("visibilitychange", update);
