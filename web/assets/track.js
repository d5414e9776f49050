// The customer's page: one delivery, its dot, its status and an arrival time with how sure it is.

import { ago, call, clock, isOlder, journalWords, judge, STATUS_ORDER, STATUS_WORDS } from "/assets/api.js";
import { Dots, LngLatBounds, makeMap, showPlan, showStops } from "/assets/map.js";
import { Stream } from "/assets/stream.js";

const token = decodeURIComponent(location.pathname.split("/").pop());
const byId = (id) => document.getElementById(id);
const state = { view: null, offset: 0, line: true, journal: new Map(), map: null, dots: null, framed: false };
globalThis.wayfix = state;

const serverNow = () => Date.now() + state.offset;

function onFrame(frame) {
  if (frame.type === "snapshot") {
    state.offset = frame.server_time - Date.now();
    state.view = frame;
    for (const entry of frame.journal) state.journal.set(entry.number, entry);
    if (frame.position) onPosition(frame.position); else state.dots?.remove("driver");
    if (state.map) { showStops(state.map, frame.stops); showPlan(state.map, frame.plan); look(); }
  } else if (frame.type === "position") onPosition(frame);
  else if (frame.type === "eta") state.view.eta = frame;
  else if (frame.type === "status") {
    state.journal.set(frame.number, frame);
    if (frame.kind === "status") state.view.status = frame.status;
    if (frame.kind === "assigned") { state.view.driver = frame.driver; state.view.position = null; state.view.eta = null; state.dots?.remove("driver"); }
  } else if (frame.type === "stale" && state.view) {
    state.view.silent = frame.cause ?? state.view.silent;
  }
  draw();
}

function onPosition(position) {
  position.heard = serverNow();
  // By event time alone: an older position never takes the dot back.
  if (state.view.position && isOlder(position, state.view.position)) return;
  state.view.position = position;
  const { freshness } = judge(position, limits(), serverNow());
  if (freshness !== "unavailable") state.dots?.put("driver", { ...position, freshness });
}

const limits = () => ({ stale: state.view.stale_after_ms, unavailable: state.view.unavailable_after_ms });
const isOver = () => ["delivered", "failed"].includes(state.view.status);

/** Shows all that matters once; after that the map is the customer's. */
function look() {
  if (state.framed || !state.view) return;
  const bounds = new LngLatBounds();
  for (const stop of state.view.stops) bounds.extend([stop.lng, stop.lat]);
  if (state.view.position) bounds.extend([state.view.position.lng, state.view.position.lat]);
  if (bounds.isEmpty()) return;
  const wide = innerWidth >= 760;
  state.map.fitBounds(bounds, { duration: 0, maxZoom: 16, padding: { top: 60, right: 50, bottom: wide ? 60 : innerHeight * 0.5, left: wide ? 420 : 50 } });
  state.framed = !!state.view.position;
}

function draw() {
  const view = state.view;
  if (!view) return;
  document.title = `${view.reference || "Your delivery"}: ${STATUS_WORDS[view.status]}`;
  byId("reference").textContent = view.reference || `Delivery ${view.delivery}`;
  byId("status").textContent = STATUS_WORDS[view.status];
  const at = STATUS_ORDER.indexOf(view.status);
  byId("bar").className = `bar ${view.status}`;
  byId("bar").replaceChildren(...STATUS_ORDER.map((_, i) => Object.assign(document.createElement("li"), { className: i <= at || view.status === "failed" ? "done" : "" })));
  drawArrival(view);
  drawFreshness(view);
  const entries = [...state.journal.values()].sort((a, b) => b.number - a.number);
  byId("journal").hidden = entries.length === 0;
  byId("journal").replaceChildren(...entries.map((entry) => {
    const row = document.createElement("li");
    row.append(Object.assign(document.createElement("span"), { textContent: journalWords(entry) }), Object.assign(document.createElement("time"), { textContent: clock(entry.at) }));
    return row;
  }));
}

function drawArrival(view) {
  const box = byId("arrival"), window = byId("window");
  // An arrival time is as old as the position it was made from.
  const isLost = view.position && judge(view.position, limits(), serverNow()).freshness === "unavailable";
  const eta = isLost ? null : view.eta;
  const stop = eta && view.stops[eta.stop];
  if (isOver()) {
    box.textContent = view.status === "delivered" ? "Delivered" : "Not delivered";
    window.textContent = "";
  } else if (eta) {
    const minutes = Math.max(0, Math.round((eta.arrival - serverNow()) / 60000));
    box.innerHTML = "";
    box.append(minutes < 1 ? "Now" : String(minutes), Object.assign(document.createElement("small"), { textContent: minutes < 1 ? "" : " min" }));
    const where = stop?.kind === "pickup" ? "At the pickup" : "Arrives";
    window.textContent = `${where} ${clock(eta.arrival)}, most likely ${clock(eta.p10)}–${clock(eta.p90)}`
      + (eta.basis === "straight_line" ? " (as the crow flies)" : "");
  } else {
    box.textContent = view.driver == null ? "No driver yet" : "…";
    window.textContent = view.driver == null ? "The arrival time follows once a driver has it." : "";
  }
}

function drawFreshness(view) {
  const badge = byId("freshness"), note = byId("note");
  badge.hidden = isOver() || view.driver == null;
  const { freshness, age } = judge(view.position, limits(), serverNow());
  state.dots?.fade("driver", isOver() ? "unavailable" : freshness);
  badge.className = `badge ${state.line ? freshness : "lost"}`;
  badge.textContent = !state.line ? "Reconnecting" : freshness === "live" ? "Live"
    : age == null ? "No position yet" : freshness === "last_seen" ? `Last seen ${ago(age)} ago` : "Position unavailable";
  const words = isOver() ? "" : !state.line ? "The connection was lost. What you see may be old."
    : view.degraded ? "Shown from memory while the live view comes back."
    : view.silent === "back_end" ? "We have trouble on our side; the driver may well be on his way."
    : view.silent === "driver" && freshness !== "live" ? "The driver's phone has no signal at the moment." : "";
  note.hidden = !words;
  note.textContent = words;
}

function refuse(error) {
  byId("arrival").textContent = error.status === 401 || error.status === 404 ? "This link is not valid" : "Something went wrong";
  byId("window").textContent = error.status ? "" : error.message;
}

try {
  const link = await call("/tracking/link", { token });
  new Stream(`/tracking/${link.delivery}`, token, onFrame, (line) => { state.line = line; draw(); });
  setInterval(draw, 1000);
} catch (error) {
  refuse(error);
}

try {
  state.map = await makeMap("map");
  state.dots = new Dots(state.map);
  if (state.view) {
    showStops(state.map, state.view.stops);
    showPlan(state.map, state.view.plan);
    if (state.view.position) state.dots.put("driver", { ...state.view.position, freshness: judge(state.view.position, limits(), serverNow()).freshness });
    look();
  }
} catch (error) {
  byId("map").textContent = "";
  console.info(`no map: ${error.message}`);
}
