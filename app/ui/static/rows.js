// Uploads rows in place, with the images that they name put inside on the way; presets; the plan beside the fields.
// Without it the forms work as they stand, and rows are uploaded on their own page.
"use strict";

const IMAGE = { png: "image/png", jpg: "image/jpeg", jpeg: "image/jpeg", webp: "image/webp", gif: "image/gif" };
const isPath = source => typeof source === "string" && source && !source.startsWith("data:") &&
  !source.includes("://") && source.length < 1000;

// Every ending of a chosen file's path → the file: rows name it from their own folder, which nobody tells us.
function endings(files) {
  const found = new Map();
  for (const file of files) {
    const parts = (file.webkitRelativePath || file.name).split("/");
    for (let from = 0; from < parts.length; from++) {
      const ending = parts.slice(from).join("/");
      found.set(ending, found.has(ending) && from > 1 ? null : file); // of two alike neither is taken
    }
  }
  return found;
}

// Where a row names images: [holder, key].
function* sources(row) {
  for (const name of ["image", "images"]) {
    if (Array.isArray(row[name])) for (const index of row[name].keys()) yield [row[name], index];
    else if (row[name]) yield [row, name];
  }
  for (const turn of row.messages ?? row.conversations ?? []) {
    if (!Array.isArray(turn?.content)) continue;
    for (const part of turn.content) {
      if (part && ["image", "image_url", undefined].includes(part.type)) {
        for (const key of ["image", "path", "url", "image_url"]) if (part[key]) { yield [part, key]; break; }
      }
    }
  }
}

const dataUri = file => new Promise((done, failed) => {
  const reader = new FileReader();
  reader.onload = () => done(reader.result);
  reader.onerror = () => failed(reader.error);
  reader.readAsDataURL(new Blob([file], { type: IMAGE[file.name.split(".").pop().toLowerCase()] ?? file.type }));
});

async function* rowsOf(file) {
  const beginning = (await file.slice(0, 1024).text()).replace(/^\uFEFF/, "").trimStart();
  if (beginning.startsWith("[")) { yield* JSON.parse(await file.text()); return; }
  let rest = "";
  const reader = file.stream().pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { value, done } = await reader.read();
    const lines = (rest + (value ?? "")).split("\n");
    rest = done ? "" : lines.pop();
    for (const line of lines) if (line.trim()) yield JSON.parse(line);
    if (done) return;
  }
}

// The file as it is when no row names an image, or when it cannot be read here: the service says what is wrong with it.
async function withImages(file, images, say) {
  if (/\.(parquet|gz)$/i.test(file.name)) return file;
  const known = endings(images), written = [], missing = [];
  let embedded = 0, count = 0;
  try {
    for await (const row of rowsOf(file)) {
      count += 1;
      for (const [holder, key] of sources(row)) {
        if (!isPath(holder[key]) || holder[key].length > 400) continue;
        const image = known.get(holder[key].replace(/^\.\//, ""));
        if (!image) { missing.push(`row ${count}: ${holder[key]}`); continue; }
        holder[key] = await dataUri(image);
        embedded += 1;
        say(`${embedded} images put inside`);
      }
      written.push(new Blob([JSON.stringify(row) + "\n"])); // the browser keeps large blobs on disk
    }
  } catch (error) {
    if (error instanceof SyntaxError) return file;
    throw error;
  }
  if (missing.length && images.length) {
    const more = missing.length > 1 ? ` (and ${missing.length - 1} more like it)` : "";
    throw new Error(`${missing[0]} is not in the folder${more}`);
  }
  return embedded ? new File(written, file.name) : file;
}

function send(form, say) {
  return new Promise((done, failed) => {
    const request = new XMLHttpRequest();
    request.open("POST", "/datasets?next=/jobs/new");
    request.upload.onprogress = event => say(event.loaded < event.total
      ? `${Math.floor(100 * event.loaded / event.total)} % sent` : "the service checks the rows");
    request.onerror = () => failed(new Error("the connection broke; try again"));
    request.onload = () => {
      const made = new URL(request.responseURL).searchParams.get("dataset");
      if (request.status < 400 && made) { done(made); return; }
      const page = new DOMParser().parseFromString(request.responseText, "text/html");
      failed(new Error(page.querySelector("[role=alert]")?.textContent.trim().replace(/\s+/g, " ") || "refused"));
    };
    request.send(form);
  });
}

// On the form of a job: rows are sent from here, and what was typed stays.
const place = document.querySelector("[data-upload]");
if (place) {
  const status = place.querySelector("[data-says]");
  const say = text => { status.textContent = text; };
  place.querySelector("button").addEventListener("click", async event => {
    const [file] = place.querySelector("[data-file]").files, button = event.currentTarget;
    if (!file) { say("Choose a file first."); return; }
    button.disabled = true;
    status.classList.remove("bad");
    try {
      const form = new FormData();
      form.append("csrf", document.querySelector("[name=csrf]").value);
      form.append("name", file.name.slice(0, 120));
      form.append("file", await withImages(file, [...place.querySelector("[data-images]").files], say), file.name);
      const made = await send(form, say), select = document.querySelector("[name='calibration.dataset']");
      select.add(new Option(file.name, made, true, true), 1);
      select.dispatchEvent(new Event("change", { bubbles: true }));
      say("Uploaded, checked and chosen.");
    } catch (error) {
      status.classList.add("bad");
      say(error.message);
    }
    button.disabled = false;
  });
}

// On the page of datasets the form itself goes out, with the rows exchanged where they name images.
for (const form of document.querySelectorAll("form[data-rows]")) {
  form.addEventListener("submit", async event => {
    const input = form.querySelector("[name=file]"), images = form.querySelector("[data-images]").files;
    const status = form.querySelector("[data-says]");
    if (!images.length || form.dataset.ready) return;
    event.preventDefault();
    try {
      const whole = await withImages(input.files[0], [...images], text => { status.textContent = text; });
      const carried = new DataTransfer();
      carried.items.add(whole);
      input.files = carried.files;
      form.dataset.ready = "yes";
      form.requestSubmit();
    } catch (error) { status.textContent = error.message; }
  });
}

const job = document.querySelector("form[data-job]");
for (const button of document.querySelectorAll("[data-preset]")) {
  button.addEventListener("click", () => {
    for (const [name, value] of Object.entries(JSON.parse(button.dataset.preset))) {
      const field = job.elements[name];
      if (field) field.value = value;
    }
    job.dispatchEvent(new Event("change", { bubbles: true }));
  });
}

// The plan, again after each change: only where both inputs are named, and no more often than somebody types.
const shown = document.querySelector("[data-plan]");
if (job && shown) {
  let timer = null, asked = 0;
  job.addEventListener("change", () => {
    clearTimeout(timer);
    timer = setTimeout(async () => {
      const body = new FormData(job), mine = ++asked;
      if (!body.get("model.id") || !(body.get("calibration.dataset") || body.get("calibration.hub"))) return;
      body.set("do", "live");
      const answer = await fetch("/jobs/new", { method: "POST", body: new URLSearchParams(body) }).catch(() => null);
      if (!answer || mine !== asked) return;
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const plan = page.querySelector("#plan") ?? page.querySelector("main [role=alert]");
      if (plan) shown.replaceChildren(document.importNode(plan, true));
    }, 600);
  });
}
