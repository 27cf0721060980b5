"use strict";
// Texts of the index are set as text, never as HTML; the page loads nothing but this service's own answers.
const at = id => document.getElementById(id);
const make = (tag, className, text) => {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
};
const number = new Intl.NumberFormat("en");
const ACTING = /[\u0000-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ufeff\u2028\u2029]/g;
const shown = text => text.replace(ACTING, letter => "\\u" + letter.charCodeAt(0).toString(16).padStart(4, "0"));
let indexes = [], limits = null, by = null, asked = 0, token = sessionStorage.getItem("alignvl-token") || "";
// by: null (words), {file, url} or {id}

const headers = () => token ? {authorization: "Bearer " + token} : {};

async function call(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, {...options, headers: {...headers(), ...options.headers}});
  } catch {
    throw new Error("The service does not answer; is it running?");
  }
  if (answer.status === 401) {
    at("locked-why").textContent = token ? "That was not the one. It is kept until this tab is closed." : "It is kept until this tab is closed.";
    if (!at("locked").open) at("locked").showModal();
    throw new Error("A token is wanted.");
  }
  if (!answer.ok) {
    const told = await answer.json().catch(() => null);
    throw new Error(told ? told.error.reason : "The service answered " + answer.status);
  }
  return answer;
}

function say(text, isWrong = false) {
  at("status").textContent = text;
  at("status").classList.toggle("wrong", isWrong);
}

async function showPicture(image, path, fallback) {
  image.addEventListener("error", () => fallback(), {once: true});
  if (!token) { image.src = path; return; }
  try {
    const url = URL.createObjectURL(await (await call(path)).blob());
    image.addEventListener("load", () => URL.revokeObjectURL(url), {once: true});
    image.src = url;
  } catch { fallback(); }
}

const index = () => indexes.find(one => one.name === at("index").value) || indexes[0];

function tellIndex() {
  const one = index();
  at("about-line").textContent = `${number.format(one.images)} pictures, ${number.format(one.captions)} captions, found with run ${shown(one.run)}`;
  const facts = {
    Index: one.name, Run: one.run, "Vision encoder": one.vision, "Text encoder": one.text, Split: one.split,
    Scores: one.measure, Pictures: `${one.factory.image}, ${one.scores.image}`, Captions: `${one.factory.text}, ${one.scores.text}`,
    Loaded: new Date(one.loaded).toLocaleString(), ...(one.problem ? {Problem: one.problem} : {}),
  };
  at("facts").replaceChildren(...Object.entries(facts).flatMap(([name, value]) => [make("dt", "", name), make("dd", "", shown(value))]));
}

async function open() {
  const told = await (await call("/indexes")).json();
  indexes = told.indexes;
  limits = told.limits;
  at("text").maxLength = limits.text;
  at("index").replaceChildren(...indexes.map(one => new Option(shown(one.name), one.name)));
  document.querySelector(".pick").hidden = indexes.length < 2;
  fromAddress();
}

const of = () => document.querySelector("input[name=of]:checked").value;
const choose = gallery => { document.querySelector(`input[name=of][value=${gallery}]`).checked = true; };

function setBy(what) {
  if (by && by.url) URL.revokeObjectURL(by.url);
  by = what;
  at("by").hidden = !by;
  at("by-picture").removeAttribute("src");
  at("text").placeholder = by ? "and words, if any" : "Describe a picture";
  if (!by) return;
  at("by-name").textContent = by.file ? by.file.name : shown(by.id);
  if (by.file) { by.url = URL.createObjectURL(by.file); at("by-picture").src = by.url; }
  else showPicture(at("by-picture"), thumbnail(by.id), () => {});
}

const thumbnail = (id, edge) => `/thumbnails/${encodeURIComponent(id)}?index=${encodeURIComponent(index().name)}` + (edge ? `&edge=${edge}` : "");

function request() {
  const wanted = new URLSearchParams({index: index().name, of: of(), k: at("k").value}), words = at("text").value.trim();
  if (at("without").value.trim()) wanted.set("subtract", at("without").value.trim());
  if (at("group").checked && of() === "image") wanted.set("group_duplicates", "true");
  if (by && words) wanted.set("add", words);
  if (+at("least").value > 0) wanted.set("threshold", at("least").value);
  if (by && by.file) return [`/search/image?${wanted}`, {method: "POST", body: by.file, headers: {"content-type": "application/octet-stream"}}];
  if (by) return [`/search/like/${encodeURIComponent(by.id)}?${wanted}`, {}];
  wanted.set("text", words);
  return [`/search?${wanted}`, {}];
}

async function search({keepAddress = false} = {}) {
  const words = at("text").value.trim();
  if (!by && !words) { at("results").replaceChildren(); at("notes").replaceChildren(); at("start").hidden = false; say(""); return; }
  if (!keepAddress) toAddress();
  const mine = ++asked;
  at("start").hidden = true;
  at("results").classList.add("busy");
  try {
    const start = performance.now();
    const answer = await (await call(...request())).json();
    if (mine !== asked) return;  // a later search is under way
    show(answer, performance.now() - start);
  } catch (problem) {
    if (mine !== asked) return;
    at("results").replaceChildren();
    say(problem.message, true);
  } finally {
    if (mine === asked) at("results").classList.remove("busy");
  }
}

function show(answer, took) {
  const [result] = answer.results, thing = answer.of === "image" ? "picture" : "caption";
  at("results").className = answer.of;
  at("results").replaceChildren(...result.hits.map(hit => card(hit, result.best, answer.of)));
  at("notes").replaceChildren(...answer.notes.map(note => make("li", "", shown(note))));
  const measure = (answer.scores === "exact" ? "" : "approximate ") + answer.measure;
  const count = result.hits.length;
  if (count) say(`${count} ${thing}${count > 1 ? "s" : ""} by ${measure}, in ${took < 9.5 ? took.toFixed(1) : Math.round(took)} ms`);
  else if (result.best !== null) say(`No ${thing} scores ${(+at("least").value).toFixed(2)} or more; the best one has ${result.best.toFixed(3)}`);
  else say(`No ${thing} found`);
}

function card(hit, best, gallery) {
  const made = make("li"), name = shown(hit.caption || hit.id);
  const picture = make("button", "picture"), image = make("img");
  picture.type = "button";
  picture.setAttribute("aria-label", `Result ${hit.rank}: ${name}`);
  image.alt = "";
  image.loading = "lazy";
  picture.append(image);
  picture.dataset.id = hit.id;
  picture.addEventListener("click", () => openItem(hit.id));
  showPicture(image, hit.thumbnail, () => image.replaceWith(make("span", "gone", "picture not at hand")));
  const under = make("div", "under"), caption = make("p", "caption", name), meter = make("div", "meter");
  caption.dir = "auto";
  if (!hit.caption) caption.classList.add("none");
  caption.title = name;
  const bar = make("span", "bar"), part = make("i");
  part.style.width = `${best > 0 ? Math.round(100 * Math.min(1, Math.max(0, hit.score / best))) : 0}%`;
  bar.append(part);
  meter.append(bar, make("span", "", hit.score.toFixed(3)));
  const foot = make("div", "foot"), like = make("button", "like", "More like this");
  like.type = "button";
  like.setAttribute("aria-label", `More like this, result ${hit.rank}: ${name}`);
  like.addEventListener("click", () => more(hit.id));
  foot.append(like);
  if (hit.count > 1 && !hit.duplicates.length) foot.append(make("span", "", `${hit.count} copies`));
  under.append(caption, meter, foot);
  if (hit.duplicates.length) {
    const alike = make("details", "alike"), named = hit.duplicates.map(id => {
      const open = make("button", "like", shown(id));
      open.type = "button";
      open.addEventListener("click", () => openItem(id));
      return open;
    });
    alike.append(make("summary", "", `${number.format(hit.count - 1)} more alike`), ...named);
    if (named.length < hit.count - 1) alike.append(make("span", "", `and ${number.format(hit.count - 1 - named.length)} more`));
    under.append(alike);
  }
  made.append(picture, make("span", "rank", hit.rank), under);
  return made;
}

function more(id, gallery = "image") {
  if (at("item").open) at("item").close();
  setBy({id});
  at("text").value = "";
  choose(gallery);
  search();
  at("results").focus({preventScroll: true});
  scrollTo({top: 0});
}

async function openItem(id) {
  try {
    const item = await (await call(`/items/${encodeURIComponent(id)}?index=${encodeURIComponent(index().name)}`)).json();
    at("item-title").textContent = shown(item.captions[0] || item.id);
    at("item-missing").textContent = item.missing;
    const image = at("item-picture");
    image.hidden = !item.has_picture;
    image.removeAttribute("src");
    if (item.has_picture) showPicture(image, thumbnail(id, 512), () => { image.hidden = true; at("item-missing").textContent = "picture not at hand"; });
    at("item-captions").replaceChildren(...item.captions.map(text => {
      const line = make("li"), ask = make("button", "", shown(text));
      ask.type = "button";
      ask.dir = "auto";
      ask.title = "Search with this caption";
      ask.addEventListener("click", () => { at("item").close(); setBy(null); at("text").value = text; choose("image"); search(); });
      line.append(ask);
      return line;
    }));
    at("item-facts").textContent = `${shown(item.id)}${item.copies > 1 ? `, ${item.copies} copies` : ""}, SHA-256 ${item.sha256.slice(0, 12)}…`;
    at("item-like").onclick = () => more(id);
    at("item-words").onclick = () => more(id, "text");
    at("item").showModal();
  } catch (problem) { say(problem.message, true); }
}

function withFile(file) {
  if (!file) return;
  if (file.size > limits.body) { say(`That file has ${number.format(file.size)} bytes; ${number.format(limits.body)} are taken.`, true); return; }
  setBy({file});
  at("text").value = "";
  search();
}

function toAddress() {
  if (by && by.file) return;  // a picture of the user's own has no address
  const state = new URLSearchParams({...(by ? {like: by.id} : {}), q: at("text").value.trim(), of: of(), k: at("k").value});
  if (at("without").value.trim()) state.set("without", at("without").value.trim());
  if (indexes.length > 1) state.set("index", index().name);
  if (+at("least").value > 0) state.set("least", at("least").value);
  if (at("group").checked) state.set("group", "1");
  const next = "#" + state;
  if (next !== location.hash) history.pushState(null, "", next);
}

function fromAddress() {
  const state = new URLSearchParams(location.hash.slice(1));
  if (state.has("index") && indexes.some(one => one.name === state.get("index"))) at("index").value = state.get("index");
  if (["image", "text"].includes(state.get("of"))) choose(state.get("of"));
  if ([...at("k").options].some(one => one.value === state.get("k"))) at("k").value = state.get("k");
  at("least").value = state.get("least") || 0;
  at("group").checked = state.has("group");
  tellLeast();
  tellIndex();
  setBy(state.get("like") ? {id: state.get("like")} : null);
  at("text").value = state.get("q") || "";
  at("without").value = state.get("without") || "";
  search({keepAddress: true});
}

const tellLeast = () => { at("least-said").textContent = +at("least").value > 0 ? (+at("least").value).toFixed(2) : "any"; };

at("ask").addEventListener("submit", event => { event.preventDefault(); search(); });
at("without").addEventListener("change", () => search());
at("choose").addEventListener("click", () => at("file").click());
at("file").addEventListener("change", () => { withFile(at("file").files[0]); at("file").value = ""; });
at("by-remove").addEventListener("click", () => { setBy(null); at("text").focus(); search(); });
at("index").addEventListener("change", () => { tellIndex(); if (by && by.id) setBy(null); search(); });
at("k").addEventListener("change", () => search());
at("group").addEventListener("change", () => search());
at("least").addEventListener("input", tellLeast);
at("least").addEventListener("change", () => { tellLeast(); search(); });
for (const one of document.querySelectorAll("input[name=of]")) one.addEventListener("change", () => search());
at("item-close").addEventListener("click", () => at("item").close());
at("item").addEventListener("click", event => { if (event.target === at("item")) at("item").close(); });
at("unlock").addEventListener("submit", event => {
  event.preventDefault();
  token = at("token").value.trim();
  sessionStorage.setItem("alignvl-token", token);
  at("locked").close();
  open().catch(problem => say(problem.message, true));
});
addEventListener("popstate", fromAddress);
addEventListener("paste", event => withFile([...event.clipboardData.files].find(file => file.type.startsWith("image/"))));
addEventListener("dragover", event => { if ([...event.dataTransfer.types].includes("Files")) { event.preventDefault(); at("drop").hidden = false; } });
addEventListener("dragleave", event => { if (!event.relatedTarget) at("drop").hidden = true; });
addEventListener("drop", event => {
  if (![...event.dataTransfer.types].includes("Files")) return;
  event.preventDefault();
  at("drop").hidden = true;
  withFile(event.dataTransfer.files[0]);
});
addEventListener("keydown", event => {
  const isTyping = event.target.matches("input, select, textarea") || document.querySelector("dialog[open]");
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/") { event.preventDefault(); at("text").focus(); at("text").select(); return; }
  const cards = [...at("results").querySelectorAll(".picture")], here = cards.indexOf(event.target.closest("li")?.querySelector(".picture"));
  if (event.key.toLowerCase() === "m" && here >= 0) { more(cards[here].dataset.id); return; }
  const columns = cards.length ? cards.filter(one => one.getBoundingClientRect().top === cards[0].getBoundingClientRect().top).length : 1;
  const step = {ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns}[event.key];
  if (!step || !cards.length || (here < 0 && !at("results").contains(event.target))) return;
  const next = here < 0 ? 0 : here + step;
  if (next >= 0 && next < cards.length) { event.preventDefault(); cards[next].focus(); }
});
open().catch(problem => say(problem.message, true));
