"use strict";
const key = "corrections-" + PAGE.id, pieces = [...document.querySelectorAll(".piece")];
const part = (piece, name) => piece.querySelector(name);

// {digest: {text}} of what was judged; a text of null leaves the piece out.
function judged() {
  const found = {};
  for (const piece of pieces) {
    const text = part(piece, "textarea").value.trim();
    if (part(piece, ".omit").checked) found[piece.dataset.digest] = { text: null };
    else if (part(piece, ".right").checked && text) found[piece.dataset.digest] = { text };
  }
  return found;
}

function update() {
  const found = judged();
  for (const piece of pieces) piece.classList.toggle("out", part(piece, ".omit").checked);
  document.getElementById("count").textContent = `${Object.keys(found).length} of ${pieces.length} judged`;
  try { localStorage.setItem(key, JSON.stringify(found)); } catch { document.getElementById("unkept").hidden = false; }
}

function recall() {
  let kept = {};
  try { kept = JSON.parse(localStorage.getItem(key)) || {}; } catch { /* nothing readable was kept */ }
  for (const piece of pieces) {
    const one = kept[piece.dataset.digest];
    if (!one) continue;
    if (one.text === null) part(piece, ".omit").checked = true;
    else { part(piece, "textarea").value = one.text; part(piece, ".right").checked = true; }
  }
}

function save() {
  const found = judged();
  const corrections = pieces.filter(piece => found[piece.dataset.digest])
    .map(piece => ({ id: piece.dataset.id, digest: piece.dataset.digest, ...found[piece.dataset.digest] }));
  const text = JSON.stringify({ version: 1, page: PAGE.id, saved: new Date().toISOString(), corrections }, null, 1);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  link.download = `corrections-${PAGE.id}.json`;
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
}

pieces.forEach((piece, at) => {
  const text = part(piece, "textarea"), right = part(piece, ".right"), omit = part(piece, ".omit"), sound = part(piece, "audio");
  text.oninput = () => { right.checked = true; omit.checked = false; update(); };
  right.onchange = () => { if (right.checked) omit.checked = false; update(); };
  omit.onchange = () => { if (omit.checked) right.checked = false; update(); };
  sound.onplay = () => { for (const other of pieces) if (other !== piece) part(other, "audio").pause(); };
  text.onkeydown = event => {
    if (event.key !== "Enter" || event.isComposing) return;
    event.preventDefault();
    right.checked = true;
    omit.checked = false;
    update();
    sound.pause();
    const next = pieces[at + 1];
    if (!next) return document.getElementById("save").focus();
    part(next, "textarea").focus();
    part(next, "audio").play().catch(() => {});  // a browser may refuse; the player is there
  };
});
document.getElementById("save").onclick = save;
recall();
update();
