// Makes pages live. Everything can be read without it: it only looks at the same page again when something happened.
"use strict";

const AT_MOST_EVERY = 400; // milliseconds between two looks
const main = document.querySelector("main");
const connection = document.querySelector("#connection");
let looking = false, again = false;

document.documentElement.classList.add("scripts");

async function look() {
  if (looking) { again = true; return; }
  looking = true;
  try {
    const response = await fetch(location.href, { credentials: "same-origin", cache: "no-store" });
    if (response.redirected) { location.assign(response.url); return; } // the session has ended
    if (response.ok) renew(new DOMParser().parseFromString(await response.text(), "text/html"));
  } catch { /* the service is away; the next event or tick looks again */ }
  await new Promise(done => setTimeout(done, AT_MOST_EVERY));
  looking = false;
  if (again) { again = false; look(); }
}

// Where the focus was, in what comes instead: by its id, its <details>, or what it says.
function successor(held, newer) {
  if (held.id) return newer.querySelector(`#${CSS.escape(held.id)}`);
  if (held.matches("details[id] > summary")) return newer.querySelector(`#${CSS.escape(held.parentElement.id)} > summary`);
  const says = one => [one.localName, one.textContent, one.getAttribute("aria-label"), one.getAttribute("href")].join();
  return [...newer.querySelectorAll(held.localName)].find(one => says(one) === says(held));
}

function renew(fresh) {
  for (const part of document.querySelectorAll("[data-part]")) {
    const newer = fresh.querySelector(`[data-part="${part.dataset.part}"]`);
    const open = [...part.querySelectorAll("details[open]")].map(one => one.id);
    for (const one of newer?.querySelectorAll("details") ?? []) if (open.includes(one.id)) one.open = true;
    if (!newer || newer.isEqualNode(part)) continue;
    const held = part.contains(document.activeElement) ? successor(document.activeElement, newer) : null;
    part.replaceWith(document.adoptNode(newer));
    held?.focus({ preventScroll: true });
  }
  document.title = fresh.title;
  const said = document.querySelector("[data-announce]")?.textContent ?? "";
  const announcer = document.querySelector("#announcer");
  if (announcer && announcer.textContent !== said) announcer.textContent = said;
}

function follow(address) {
  const stream = new EventSource(address);
  const say = text => { connection.hidden = !text; connection.textContent = text; };
  const happened = event => {
    look();
    if (["job.succeeded", "job.failed", "job.cancelled"].includes(event.type)) { stream.close(); say(""); }
  };
  for (const kind of ["created", "started", "phase", "block", "warning", "requeued", "cancel_requested", "retried",
    "succeeded", "failed", "cancelled"]) stream.addEventListener(`job.${kind}`, happened);
  stream.addEventListener("open", () => { say("Live"); look(); });
  stream.addEventListener("error", () => {
    say(stream.readyState === EventSource.CLOSED ? "" : "Connection lost, trying again");
    if (stream.readyState === EventSource.CLOSED) look();
  });
}

if (main.dataset.events) follow(main.dataset.events);
if (main.dataset.poll) setInterval(() => { if (!document.hidden) look(); }, Number(main.dataset.poll));

document.addEventListener("click", async event => {
  const button = event.target.closest("button.copy");
  if (!button) return;
  const text = button.closest(".command").querySelector("pre").textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(button.closest(".command").querySelector("pre"));
    button.textContent = "Selected: press Ctrl-C";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
});
document.querySelector("[role=alert][tabindex]")?.focus();
