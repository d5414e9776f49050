// The driver's page: this browser's own position over the HTTPS door. What was not acknowledged stays in the queue,
// over reloads too, and goes out when the network is back.

import { Dots, makeMap } from "/assets/map.js";

const QUEUE = "wayfix.queue", CREDENTIAL = "wayfix.credential", QUEUE_MAX = 20000, BATCH_MAX = 500, EVERY_MS = 4000;
const byId = (id) => document.getElementById(id);
const state = { credential: "", queue: [], sent: 0, busy: false, failures: 0, watch: null, map: null, dots: null, lock: null, newest: null, isFollowed: false };
globalThis.wayfix = state;

function keep() { localStorage.setItem(QUEUE, JSON.stringify(state.queue)); }

function say(text) { byId("say").textContent = text; }

function onPosition({ coords, timestamp }) {
  const fix = { lat: coords.latitude, lng: coords.longitude, timestamp: Math.round(timestamp), accuracy: Math.round(coords.accuracy) };
  if (Number.isFinite(coords.heading)) fix.heading = coords.heading;
  if (Number.isFinite(coords.speed)) fix.speed = coords.speed;
  state.queue.push(fix);
  // A queue that is full is thinned, every second of its older half: the way stays known, less finely.
  if (state.queue.length > QUEUE_MAX && !state.busy) state.queue = state.queue.filter((_, i) => i > QUEUE_MAX / 2 || i % 2 === 0);
  keep();
  byId("accuracy").textContent = `${fix.accuracy} m`;
  state.newest = fix;
  show();
  draw();
}

/** The own dot, as soon as there is both a map and a position. */
function show() {
  const fix = state.newest;
  if (!fix || !state.dots) return;
  state.dots.put("me", { lng: fix.lng, lat: fix.lat, heading: fix.heading ?? null, freshness: "live" });
  if (!state.isFollowed) state.map.jumpTo({ center: [fix.lng, fix.lat], zoom: 15.5 });
  state.isFollowed = true;
}

function onRefused(error) {
  say(error.code === 1 ? "This browser does not let the page know where you are. Allow it in the site's settings."
    : error.code === 2 ? "No position can be had at the moment; waiting." : "The position takes long; waiting.");
}

async function send() {
  if (state.busy || !state.queue.length || !state.credential) return;
  state.busy = true;
  const batch = state.queue.slice(0, BATCH_MAX);
  try {
    const answer = await fetch("/api/v1/tracking/locations", {
      method: "POST", body: JSON.stringify(batch), keepalive: batch.length < 100,
      headers: { "content-type": "application/json", authorization: `Bearer ${state.credential}` },
    });
    if (answer.status === 401 || answer.status === 403) return leave("This credential is not valid any more.");
    const body = await answer.json().catch(() => ({}));
    if (answer.status === 202 || answer.status === 400) {
      // Only what was answered leaves the queue. A batch that can never be read would block all behind it.
      state.queue.splice(0, batch.length);
      state.sent += body.accepted ?? 0;
      const refused = body.rejected?.length ?? 0;
      say(answer.status === 400 ? `The server could not read a batch: ${body.detail ?? ""}` : refused ? `${refused} of the last ${batch.length} were not good enough (${body.rejected[0].reason}).` : "");
      state.failures = 0;
      keep();
    } else {
      state.failures += 1;
      say(`The server asks to wait (${answer.status}).`);
    }
  } catch {
    state.failures += 1;
    say("No connection. Your way is kept here and sent later.");
  } finally {
    state.busy = false;
    draw();
  }
}

function draw() {
  byId("sent").textContent = state.sent;
  byId("waiting").textContent = state.queue.length;
  byId("badge").className = `badge ${state.failures ? "lost" : "live"}`;
  byId("badge").textContent = state.failures ? "No connection" : "Live";
}

async function start(credential) {
  if (!navigator.geolocation || !isSecureContext) return refuse("A browser tells its position only to pages opened over https or on this machine itself. Open the https address of this server.");
  state.credential = credential;
  state.queue = JSON.parse(localStorage.getItem(QUEUE) || "[]");
  sessionStorage.setItem(CREDENTIAL, credential);
  byId("enter").hidden = true;
  byId("driving").hidden = false;
  byId("minimap").hidden = false;
  state.watch = navigator.geolocation.watchPosition(onPosition, onRefused, { enableHighAccuracy: true, maximumAge: 1000, timeout: 20000 });
  state.timer = setInterval(send, EVERY_MS);
  addEventListener("online", send);
  state.lock = await navigator.wakeLock?.request("screen").catch(() => null);
  draw();
  try {
    state.map = await makeMap("map");
    state.dots = new Dots(state.map);
    show();
  } catch { byId("minimap").hidden = true; }
}

function leave(reason) {
  navigator.geolocation.clearWatch(state.watch);
  clearInterval(state.timer);
  state.lock?.release();
  sessionStorage.removeItem(CREDENTIAL);
  byId("enter").hidden = false;
  byId("driving").hidden = true;
  byId("minimap").hidden = true;
  if (reason) refuse(reason);
}

function refuse(text) { byId("refused").textContent = text; byId("refused").hidden = false; }

byId("form").addEventListener("submit", (event) => { event.preventDefault(); byId("refused").hidden = true; start(byId("credential").value.trim()); });
byId("stop").addEventListener("click", async () => { await send(); leave(""); });

// A link carries the credential behind the '#', which browsers never send to a server.
const linked = decodeURIComponent(location.hash.slice(1));
if (linked) history.replaceState(null, "", location.pathname);
byId("credential").value = linked || sessionStorage.getItem(CREDENTIAL) || "";
