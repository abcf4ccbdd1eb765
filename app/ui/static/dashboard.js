// Makes pages live. Everything can be read without it: it only looks at the same page again when something happened.
"use strict";

const AT_MOST_EVERY = 400; // milliseconds between two looks
const AGAIN_AFTER = 5000; // milliseconds until a refused stream is asked for again
const main = document.querySelector("main");
const connection = document.querySelector("#connection");
const announcer = document.querySelector("#announcer");
const skew = Date.parse(document.documentElement.dataset.now) - Date.now(); // ages are told by the service's clock
let looking = false, again = false, timer = null, stream = null, refused = false;

document.documentElement.classList.add("scripts");

function say(text, lost = false) {
  if (!connection) return;
  connection.hidden = !text;
  connection.classList.toggle("lost", lost);
  if (connection.textContent !== text) connection.textContent = text;
}

const lost = () => say("Connection lost, trying again", true);

async function look() {
  if (looking) { again = true; return; }
  looking = true;
  try {
    const response = await fetch(location.href, { credentials: "same-origin", cache: "no-store" });
    if (response.redirected) { location.assign(response.url); return; } // the session has ended
    if (response.ok) {
      if (!main.dataset.events || stream?.readyState === EventSource.OPEN) say(stream ? "Live" : "");
      renew(new DOMParser().parseFromString(await response.text(), "text/html"));
    } else if (response.status >= 500) lost();
  } catch { lost(); /* the next event or tick looks again */ }
  await new Promise(done => setTimeout(done, AT_MOST_EVERY));
  looking = false;
  if (again) { again = false; look(); }
}

// As duration in app/ui/formats.py.
function duration(seconds) {
  if (seconds < 10) return seconds > 0 ? `${seconds.toFixed(1)} seconds` : "0 seconds";
  const plural = (number, name) => `${number} ${name}${number === 1 ? "" : "s"}`;
  const steps = [[86400, "day"], [3600, "hour"], [60, "minute"], [1, "second"]];
  const i = steps.findIndex(([size]) => seconds >= size), [size, name] = steps[i], whole = Math.floor(seconds / size);
  const rest = i < 2 ? Math.floor(seconds % size / steps[i + 1][0]) : 0;
  return plural(whole, name) + (whole < 10 && rest ? ` ${plural(rest, steps[i + 1][1])}` : "");
}

function ago(moment) {
  const seconds = (Date.now() + skew - moment) / 1000;
  if (seconds < 0) return `in ${duration(seconds < -60 ? Math.ceil(-seconds / 60) * 60 : Math.max(10, -seconds))}`;
  return seconds < 10 ? "just now" : `${duration(seconds)} ago`;
}

// Ages grow while a page is open; who points at one sees the time itself, in UTC and as it is here.
function tell(root) {
  for (const time of root.querySelectorAll("time")) {
    const moment = new Date(time.dateTime), text = ago(moment);
    if (!time.matches(".absolute") && time.textContent !== text) time.textContent = text;
    const here = moment.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "medium" });
    const title = `${moment.toISOString().slice(0, 19).replace("T", " ")} UTC`;
    time.title = moment.getTimezoneOffset() ? `${title}; ${here} here` : title;
  }
}

// Where the focus was, in what comes instead: by its id, its <details>, or what it says.
function successor(held, newer) {
  if (held.id) return newer.querySelector(`#${CSS.escape(held.id)}`);
  if (held.matches("details[id] > summary")) return newer.querySelector(`#${CSS.escape(held.parentElement.id)} > summary`);
  const says = one => [one.localName, one.textContent, one.getAttribute("aria-label"), one.getAttribute("href")].join();
  return [...newer.querySelectorAll(held.localName)].find(one => says(one) === says(held));
}

// What is left of a job shrinks while a page is open, as core/contract/forecast.py has it.
function countDown(seconds) {
  for (const part of document.querySelectorAll("[data-left]")) {
    const before = Number(part.dataset.left), fraction = Number(part.dataset.fraction);
    const whole = before / Math.max(1 - fraction, 1e-6), left = Math.max(0, before - seconds);
    if (fraction >= 1) continue;
    part.dataset.left = left;
    part.dataset.fraction = part.querySelector("progress").value = 1 - left / whole;
    const says = left >= 1 ? `about ${duration(left)} left` : "nearly done";
    part.querySelector(".figures").textContent = `${Math.floor(100 * (1 - left / whole))} % · ${says}`;
  }
}

function renew(fresh) {
  tell(document);
  tell(fresh);
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
  if (announcer.textContent !== said) announcer.textContent = said;
  for (const name of ["poll", "events"]) {
    const now = fresh.querySelector("main")?.dataset[name];
    if (now === undefined) delete main.dataset[name]; else main.dataset[name] = now;
  }
  goOn();
}

function follow(address) {
  const own = stream = new EventSource(address);
  const happened = event => {
    look();
    if (["job.succeeded", "job.failed", "job.cancelled"].includes(event.type)) { own.close(); stream = null; say(""); }
  };
  for (const kind of ["created", "started", "phase", "block", "warning", "requeued", "cancel_requested", "retried",
    "succeeded", "failed", "cancelled"]) own.addEventListener(`job.${kind}`, happened);
  own.addEventListener("open", () => { say("Live"); look(); });
  own.addEventListener("error", () => {
    lost();
    if (own.readyState !== EventSource.CLOSED) return; // the browser tries again by itself
    stream = null;
    refused = true;
    look();
    setTimeout(() => { refused = false; goOn(); }, AGAIN_AFTER);
  });
}

// Whatever the page asks for by now: a stream of events, or a look every few seconds.
function goOn() {
  if (main.dataset.events && !stream && !refused) follow(main.dataset.events);
  clearTimeout(timer);
  const tick = async () => { if (!document.hidden) await look(); goOn(); };
  if (main.dataset.poll) timer = setTimeout(tick, Number(main.dataset.poll));
}

// Another tab may have changed it meanwhile, and a page that the browser kept may be old.
const back = () => { tell(document); if (main.dataset.again !== undefined) look(); };
document.addEventListener("visibilitychange", () => { if (!document.hidden) back(); });
window.addEventListener("pageshow", event => { if (event.persisted) back(); });
setInterval(() => tell(document), 15000);
setInterval(() => countDown(1), 1000);
tell(document);
goOn();

document.addEventListener("click", async event => {
  const button = event.target.closest("button.copy");
  if (!button) return;
  const text = button.closest(".command").querySelector("pre").textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
    announcer.textContent = "Copied";
  } catch {
    getSelection().selectAllChildren(button.closest(".command").querySelector("pre"));
    button.textContent = "Selected: press Ctrl-C";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
});
document.querySelector("[role=alert][tabindex]")?.focus();
