// The page: the queue of recordings, the options, and the result that is shown.

import { barTimes } from "./bars.js";
import { Parts, pitchName } from "./parts.js";
import { Player } from "./player.js";
import { Roll, clock } from "./roll.js";
import * as source from "./source.js";

const KINDS = { mid: "MIDI", musicxml: "MusicXML", json: "JSON", csv: "CSV" };
// endings of recordings' names, as mt3_common/formats/find_audio.py has them: "Etude No.1" stays whole
const ENDINGS =
  /(?<=.)\.(wav|wave|bwf|aiff?|aifc|au|snd|caf|rf64|w64|flac|mp2|mp3|og[ga]|opus|m4[abv]|mp4|aac|aax|ac3|amr|ape|tta|voc|wm[av]|wv|dsf|dff|flv|3g[p2]|avi|mk[av]|mov|mpe?g|web[am])$/i;
// rows of the list of notes
const MOST_ROWS = 2000;

const $ = (id) => document.getElementById(id);
const player = new Player((time) => showTime(time), source.decode);
const roll = new Roll($("roll"), { seek: (time) => player.seek(time), loop: (range) => setLoop(range), view: describeView });
// of each recording: file, state ('waiting', 'running', 'done', 'failed'), notes, strips, parts, result, its list item
const queue = [];
let info = null;
let shown = null;
// files may be chosen before the source has said what it is
let beReady;
const ready = new Promise((resolve) => (beReady = resolve));

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function tell(text) {
  $("status").textContent = text;
}

function remembered(name, value) {
  try {
    if (value !== undefined) localStorage.setItem(`mt3.${name}`, value);
    return localStorage.getItem(`mt3.${name}`);
  } catch {
    return null;
  }
}

// --- options

function buildOptions() {
  const chosen = (remembered("instruments") || "").split(",");
  for (const family of info.instruments ? [...info.families, info.drums] : []) {
    const box = element("input", { type: "checkbox", value: family, checked: chosen.includes(family) });
    $("families").append(element("label", {}, box, ` ${family}`));
  }
  $("families").hidden = !info.instruments;
  $("hold").parentElement.hidden = !info.hold;
  $("hold").checked = info.hold && remembered("hold") === "1";
  if (!info.beats) $("tempo-kind").querySelector("[value=auto]").remove();
  if (!info.finds_meter) $("meter").querySelector("[value=auto]").remove();
  $("tempo-kind").value = remembered("tempo-kind") || "";
  $("tempo").value = remembered("tempo") || "120";
  Object.assign($("tempo"), { min: info.slowest, max: info.fastest });
  $("meter").value = remembered("meter") || "";
  // as where another page of this address could do more
  if ($("meter").selectedIndex < 0) $("meter").value = "";
  const changed = () => {
    $("tempo-label").hidden = $("tempo-kind").value !== "number";
    remembered("instruments", chosenFamilies().join(","));
    remembered("hold", $("hold").checked ? "1" : "0");
    remembered("tempo-kind", $("tempo-kind").value);
    remembered("tempo", $("tempo").value);
    remembered("meter", $("meter").value);
  };
  $("options").addEventListener("change", changed);
  $("tempo-label").hidden = $("tempo-kind").value !== "number";
}

function chosenFamilies() {
  return [...$("families").querySelectorAll("input:checked")].map((box) => box.value);
}

function settings() {
  const kind = $("tempo-kind").value;
  const asked = { instruments: chosenFamilies().join(","), hold: $("hold").checked ? "1" : "0", meter: $("meter").value };
  asked.tempo = kind === "number" ? $("tempo").value : kind;
  return Object.fromEntries(Object.entries(asked).filter(([, value]) => value));
}

// --- queue

function addFiles(files) {
  for (const file of files) {
    const item = { file, state: "waiting", notes: [], strips: [], settings: settings(), parts: new Parts(info.programs) };
    const open = element("button", { type: "button", className: "name", textContent: file.name });
    open.addEventListener("click", () => show(item));
    item.label = element("span", { className: "state", textContent: "waiting" });
    item.bar = element("progress", { hidden: true });
    item.bar.setAttribute("aria-label", `Progress of ${file.name}`);
    const remove = element("button", { type: "button", textContent: "Remove" });
    remove.setAttribute("aria-label", `Remove ${file.name}`);
    remove.addEventListener("click", () => removeItem(item));
    item.row = element("li", {}, open, item.bar, item.label, remove);
    $("queue").append(item.row);
    queue.push(item);
  }
  work();
}

function removeItem(item) {
  item.abort?.abort();
  queue.splice(queue.indexOf(item), 1);
  item.row.remove();
  if (shown === item) {
    player.stop();
    shown = null;
    $("result").hidden = true;
    if (queue.length) show(queue.find((other) => other.state === "done") || queue[0]);
  }
  $("files").focus();
}

async function work() {
  if (queue.some((item) => item.state === "running")) return;
  const item = queue.find((other) => other.state === "waiting");
  if (!item) return;
  item.state = "running";
  item.abort = new AbortController();
  if (!shown || shown.state !== "done" || !player.isPlaying) show(item);
  item.label.textContent = "sending";
  Object.assign(item.bar, { hidden: false });
  try {
    for await (const event of source.transcribe(item.file, item.settings, item.abort.signal)) take(item, event);
  } catch (error) {
    if (error.name !== "AbortError") fail(item, error.message);
    else item.state = "removed";
  }
  item.bar.hidden = true;
  work();
}

function fail(item, message) {
  item.state = "failed";
  item.label.textContent = message;
  item.label.classList.add("bad");
  item.label.setAttribute("role", "alert");
}

function take(item, event) {
  if (event.type === "waiting") {
    item.label.textContent = `waiting: ${event.place} in front`;
  } else if (event.type === "loading") {
    item.label.textContent = "loading the network";
  } else if (event.type === "beats") {
    item.label.textContent = "finding the beats";
  } else if (event.type === "progress") {
    showProgress(item, event);
  } else if (event.type === "strip") {
    item.strips.push(event);
    if (shown === item) roll.addStrip(event);
  } else if (event.type === "notes") {
    item.notes.push(...event.notes);
    item.parts.count(event.notes);
    if (shown === item) {
      roll.addNotes(event.notes);
      showParts();
      giveNotes();
    }
  } else if (event.type === "error") {
    fail(item, event.message);
  } else if (event.type === "end") {
    item.result = event;
    item.state = "done";
    item.label.textContent = summary(item);
    tell(`${item.file.name}: ${summary(item)}`);
    if (shown === item) showResult();
  }
}

function showProgress(item, { done, total }) {
  item.first ??= { time: performance.now(), done };
  if (total) Object.assign(item.bar, { max: total, value: done });
  const passed = (performance.now() - item.first.time) / 1000;
  const rate = (done - item.first.done) / passed;
  const left = total && rate > 0 && passed > 1 ? `, about ${Math.max(1, Math.round((total - done) / rate))} s left` : "";
  item.label.textContent = `${done} of ${total ?? "?"} segments${left}`;
}

function plural(count, noun) {
  return `${count} ${noun}${count === 1 ? "" : "s"}`;
}

function summary(item) {
  return `${plural(item.notes.length, "note")}, ${plural(item.parts.all.length, "instrument")}, ${item.result.duration.toFixed(1)} s`;
}

// --- result

async function show(item) {
  shown = item;
  for (const other of queue) other.row.setAttribute("aria-current", other === item);
  $("result").hidden = false;
  $("result-title").textContent = item.file.name;
  roll.clear(item.parts);
  setLoop(null);
  for (const strip of item.strips) roll.addStrip(strip);
  if (item.notes.length) roll.addNotes(item.notes);
  showParts();
  showResult();
  showTime(0);
  const isOpen = await player.open(item.file);
  if (shown !== item) return;
  giveNotes();
  $("mix").disabled = !isOpen;
  if (!isOpen) tell(`The browser cannot play ${item.file.name}; its notes can be heard.`);
  $("play").disabled = false;
  showTime(player.now);
}

function giveNotes() {
  const sorted = [...shown.notes].sort((a, b) => a.onset - b.onset);
  const end = sorted.reduce((most, note) => Math.max(most, note.offset), shown.result?.duration ?? 0);
  const wasAt = player.next === undefined ? null : player.notes[player.next];
  player.setNotes(sorted, shown.parts, end);
  if (player.isPlaying) player.next = wasAt ? Math.max(0, sorted.indexOf(wasAt)) : sorted.findIndex((note) => note.onset > player.now);
  if (player.next < 0) player.next = sorted.length;
  $("position").max = player.duration;
}

function showParts() {
  $("chips").replaceChildren(
    ...shown.parts.all.map((part) => {
      const colour = element("span", { className: "colour" });
      colour.style.background = part.colour;
      const toggle = (property, text, verb) => {
        const button = element("button", { type: "button", textContent: text });
        button.setAttribute("aria-pressed", part[property]);
        button.setAttribute("aria-label", `${verb} ${part.name}`);
        button.dataset.control = `${property} ${part.key}`;
        button.addEventListener("click", () => togglePart(part, property));
        return button;
      };
      const chip = element("li", {}, colour, `${part.name} (${part.notes}) `, toggle("muted", "M", "Mute"), toggle("solo", "S", "Solo"));
      chip.classList.toggle("silent", !shown.parts.isHeard(part.key));
      return chip;
    }),
  );
}

function togglePart(part, property) {
  part[property] = !part[property];
  const focus = document.activeElement?.dataset?.control;
  showParts();
  if (focus) $("chips").querySelector(`[data-control="${focus}"]`)?.focus();
  player.hear();
  roll.draw();
}

function showResult() {
  $("saves").replaceChildren();
  $("list").hidden = !shown.result;
  $("list").open = false;
  if (!shown.result) return;
  roll.bars = shown.result.tempo ? barTimes(shown.result.tempo, shown.result.duration) : [];
  roll.draw();
  for (const kind of info.files) {
    const button = element("button", { type: "button", textContent: `Save ${KINDS[kind]}` });
    button.addEventListener("click", () => saveFile(kind));
    $("saves").append(button);
  }
  const picture = element("button", { type: "button", textContent: "Save picture" });
  picture.addEventListener("click", async () => {
    const { file } = shown;
    download(await roll.picture(), file.name, "png");
  });
  $("saves").append(picture);
  giveNotes();
  showTime(player.now);
}

// In words, for those who do not see the picture.
function describeView() {
  const label = `Notes over the spectrogram, ${clock(roll.begin)} to ${clock(roll.end)}: ${plural(roll.notes.length, "note")}`;
  if ($("roll").getAttribute("aria-label") !== label) $("roll").setAttribute("aria-label", label);
}

async function saveFile(kind) {
  // another recording may be shown when this one's file is there
  const { file, notes, result } = shown;
  const { metadata, duration, segments, invalid, dropped, tempo } = result;
  try {
    download(await source.save(kind, { notes, metadata, duration, segments, invalid, dropped, tempo }), file.name, kind);
  } catch (error) {
    tell(error.message);
  }
}

function download(blob, recording, kind) {
  const link = element("a", { href: URL.createObjectURL(blob), download: `${recording.replace(ENDINGS, "")}.${kind}` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
  tell(`saved ${link.download}`);
}

function listNotes() {
  if (!$("list").open) return;
  const notes = [...shown.notes].sort((a, b) => a.onset - b.onset);
  const cells = (note) => [note.onset.toFixed(2), note.offset.toFixed(2), pitchName(note), note.is_drum ? "drums" : info.programs[note.program]];
  $("rows").replaceChildren(
    ...notes.slice(0, MOST_ROWS).map((note) => element("tr", {}, ...cells(note).map((text) => element("td", { textContent: text })))),
  );
  if (notes.length > MOST_ROWS) {
    const more = element("td", { colSpan: 4, textContent: `and ${notes.length - MOST_ROWS} more: save them as CSV` });
    $("rows").append(element("tr", {}, more));
  }
}

// --- sound

function showTime(time) {
  $("time").textContent = `${clock(time)} of ${clock(player.duration)}`;
  Object.assign($("position"), { max: player.duration, value: time });
  $("position").setAttribute("aria-valuetext", `${time.toFixed(1)} seconds`);
  $("play").textContent = player.isPlaying ? "Pause" : "Play";
  roll.moveTo(time, player.isPlaying);
}

async function playOrPause() {
  if ($("play").disabled) return;
  if (player.isPlaying) player.stop();
  else await player.play();
  showTime(player.now);
}

function setLoop(range) {
  player.setRange(range && range[1] - range[0] > 0.1 ? range : null);
  roll.range = player.range;
  $("loop").setAttribute("aria-pressed", Boolean(player.range));
  roll.draw();
}

function setMix(value) {
  $("mix").value = value;
  player.setMix(value / 100);
}

// --- controls

$("files").addEventListener("change", () => {
  const files = [...$("files").files];
  $("files").value = "";
  ready.then(() => addFiles(files));
});
for (const name of ["dragenter", "dragover"]) {
  addEventListener(name, (event) => {
    event.preventDefault();
    $("drop").classList.add("over");
  });
}
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) $("drop").classList.remove("over");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  const files = [...event.dataTransfer.files];
  ready.then(() => addFiles(files));
});
$("play").addEventListener("click", playOrPause);
$("position").addEventListener("input", () => player.seek(Number($("position").value)));
$("mix").addEventListener("input", () => setMix($("mix").value));
$("loop").addEventListener("click", () => setLoop(player.range ? null : [roll.begin, roll.end]));
$("zoom-in").addEventListener("click", () => roll.zoom(0.5));
$("zoom-out").addEventListener("click", () => roll.zoom(2));
$("fit").addEventListener("click", () => roll.fit());
$("list").addEventListener("toggle", listNotes);
$("help").addEventListener("click", () => $("keys").showModal());
$("theme").addEventListener("click", () => {
  const isDark = document.documentElement.dataset.theme
    ? document.documentElement.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = remembered("theme", isDark ? "light" : "dark") || (isDark ? "light" : "dark");
});

const KEYS = {
  " ": () => playOrPause(),
  ArrowLeft: (event) => player.seek(player.now - (event.shiftKey ? 1 : 5)),
  ArrowRight: (event) => player.seek(player.now + (event.shiftKey ? 1 : 5)),
  Home: () => player.seek(0),
  End: () => player.seek(player.duration),
  "+": () => roll.zoom(0.5),
  "=": () => roll.zoom(0.5),
  "-": () => roll.zoom(2),
  0: () => roll.fit(),
  "[": () => setLoop([player.now, player.range && player.range[1] > player.now ? player.range[1] : player.duration]),
  "]": () => setLoop([player.range && player.range[0] < player.now ? player.range[0] : 0, player.now]),
  Escape: () => setLoop(null),
  r: () => setMix(0),
  n: () => setMix(100),
  b: () => setMix(50),
  s: () => shown.result && saveFile("mid"),
  "?": () => $("keys").showModal(),
};

$("shortcuts").checked = remembered("shortcuts") !== "0";
$("shortcuts").addEventListener("change", () => remembered("shortcuts", $("shortcuts").checked ? "1" : "0"));

addEventListener("keydown", (event) => {
  // WCAG 2.1.4: who speaks to the computer, or trembles, hits single keys unawares
  if (!$("shortcuts").checked) return;
  const isControl = event.target.closest("input, select, button, summary, dialog, [tabindex]");
  if (event.ctrlKey || event.metaKey || event.altKey || $("keys").open) return;
  if (isControl && (event.key === " " || event.key.startsWith("Arrow") || ["Home", "End"].includes(event.key))) return;
  if (event.target.closest("input[type=number]")) return;
  if (!shown && event.key !== "?") return;
  const digit = /^Digit([1-9])$/.exec(event.code);
  if (digit && shown) {
    const part = shown.parts.all[Number(digit[1]) - 1];
    if (part) togglePart(part, event.shiftKey ? "solo" : "muted");
  } else if (KEYS[event.key]) {
    event.preventDefault();
    KEYS[event.key](event);
  }
});

const theme = remembered("theme");
if (theme) document.documentElement.dataset.theme = theme;
try {
  info = await source.about();
  $("model").textContent = info.checkpoint;
  $("notice").textContent = info.notice;
  $("notice").hidden = !info.notice;
  buildOptions();
  beReady();
  $("drop").querySelector("span").textContent = `${source.PROMISE} Up to ${info.megabytes} MB and ${info.minutes} minutes each.`;
} catch (error) {
  tell(error.message);
  $("files").disabled = true;
}
