// The dispatcher's page: all live drivers and deliveries of one tenant, each with its age; one opened at a time.

import { ago, call, clock, isOlder, journalWords, STATUS_WORDS as CUSTOMER_WORDS } from "/assets/api.js";
import { Dots, LngLatBounds, makeMap, showPlan, showStops } from "/assets/map.js";
import { Stream } from "/assets/stream.js";

const STATUS_WORDS = { ...CUSTOMER_WORDS, picked_up: "On the way" };
const byId = (id) => document.getElementById(id);
const make = (tag, properties, ...children) => { const e = Object.assign(document.createElement(tag), properties); e.append(...children); return e; };
const state = { key: "", drivers: new Map(), deliveries: new Map(), names: new Map(), chosen: null, opened: null, watch: null, offset: 0, line: false, framed: false, map: null, dots: null, placing: null };
globalThis.wayfix = state;

const serverNow = () => Date.now() + state.offset;
const api = (path, options = {}) => call(path, { token: state.key, ...options });

function onFrame(frame) {
  if (frame.type === "snapshot") {
    state.offset = frame.server_time - Date.now();
    for (const id of state.drivers.keys()) state.dots?.remove(id);
    state.drivers.clear();
    state.deliveries.clear();
    frame.drivers.forEach(takeDriver);
    frame.deliveries.forEach(takeDelivery);
  } else if (frame.type === "driver") takeDriver(frame);
  else if (frame.type === "delivery") takeDelivery(frame);
  else if (frame.type === "left") {
    if (frame.driver != null) { state.drivers.delete(frame.driver); state.dots?.remove(frame.driver); } else state.deliveries.delete(frame.delivery);
  }
  dirty();
}

function takeDriver(driver) {
  const known = state.drivers.get(driver.driver);
  if (known?.position && driver.position && isOlder(driver.position, known.position)) driver.position = known.position;
  driver.came = serverNow();
  state.drivers.set(driver.driver, driver);
  if (driver.position && state.dots) state.dots.put(driver.driver, { ...driver.position, freshness: look(driver) });
}

function takeDelivery(delivery) {
  if (["delivered", "failed"].includes(delivery.status)) state.deliveries.delete(delivery.delivery);
  else state.deliveries.set(delivery.delivery, { ...state.deliveries.get(delivery.delivery), ...delivery });
}

/** A dispatcher sees old positions too, drawn grey. */
function look(driver) {
  const age = serverNow() - (driver.freshness === "live" ? driver.came : driver.position.event_time);
  return state.line && driver.freshness === "live" && age < 30000 ? "live" : "last_seen";
}

/** Ids are text of digits, because they may be above what JavaScript counts to. */
const byNumber = (a, b) => a.length - b.length || (a < b ? -1 : a > b ? 1 : 0);

let drawing = 0;
function dirty() { drawing ||= setTimeout(() => { drawing = 0; draw(); }, 250); }

/** Shows all drivers once; after that the map is the dispatcher's. */
function lookAtAll(drivers) {
  const placed = drivers.filter((d) => d.position);
  if (state.framed || !state.map || !placed.length) return;
  const bounds = new LngLatBounds();
  for (const d of placed) bounds.extend([d.position.lng, d.position.lat]);
  state.map.fitBounds(bounds, { padding: 90, maxZoom: 14.5, duration: 0 });
  state.framed = true;
}

function draw() {
  const drivers = [...state.drivers.values()];
  lookAtAll(drivers);
  const live = drivers.filter((d) => d.position && look(d) === "live").length;
  for (const d of drivers) if (d.position) state.dots?.fade(d.driver, look(d));
  const count = (value, word) => make("p", {}, make("b", { textContent: value }), make("span", { textContent: word }));
  byId("counts").replaceChildren(count(state.deliveries.size, "deliveries"), count(drivers.length, "drivers"), count(live, "live"), count(drivers.length - live, "silent"));
  byId("line").className = `badge ${state.line ? "live" : "lost"}`;
  byId("line").textContent = state.line ? "Live" : "Reconnecting";
  const wanted = byId("filter").value.trim().toLowerCase();
  const rows = [...state.deliveries.values()].filter((d) => !wanted || words(d).includes(wanted)).sort((a, b) => byNumber(a.delivery, b.delivery)).slice(0, 400).map(row);
  byId("rows").replaceChildren(...(rows.length ? rows : [make("li", { className: "empty", textContent: wanted ? "Nothing fits." : "No delivery is under way." })]));
}

const words = (d) => `${d.reference} ${d.delivery} ${STATUS_WORDS[d.status]} ${name(d.driver)}`.toLowerCase();
const name = (driver) => (driver == null ? "no driver" : state.names.get(driver) ?? `driver ${driver}`);
const title = (d) => d.reference || `Delivery ${d.delivery}`;

const VEHICLE_WORDS = { moped: ", by moped", bicycle: ", by bicycle", foot: ", on foot" };

function row(d) {
  const driver = state.drivers.get(d.driver);
  const age = driver?.position ? serverNow() - driver.position.event_time : null;
  // An arrival time is as old as the position it was made from.
  const isOld = age > 120000 && driver.freshness !== "live";
  const minutes = d.eta && !isOld ? Math.max(0, Math.round((d.eta.arrival - serverNow()) / 60000)) : null;
  const item = make("li", { tabIndex: 0, className: d.delivery === state.opened?.delivery ? "chosen" : "" },
    make("span", { className: "status", textContent: title(d) }),
    make("span", { className: "eta", textContent: minutes == null ? "" : minutes < 1 ? "now" : `${minutes} min` }),
    make("span", { className: "small soft", textContent: `${STATUS_WORDS[d.status]} · ${name(d.driver)}${VEHICLE_WORDS[driver?.vehicle] ?? ""}` }),
    make("span", { className: "small soft age", textContent: age != null && age > 30000 && driver.freshness !== "live" ? `${ago(age)} ago` : "" }));
  item.onclick = () => open(d.delivery);
  item.onkeydown = (event) => { if (event.key === "Enter") open(d.delivery); };
  return item;
}

/** Watches one delivery as its customer would, with the plan and the journal. */
function open(id) {
  close();
  const d = state.deliveries.get(id);
  state.opened = { delivery: id, view: null };
  state.dots?.choose(d?.driver ?? null);
  state.watch = new Stream(`/tracking/${id}`, state.key, (frame) => onDetail(id, frame), () => {});
  dirty();
}

function close() {
  state.watch?.close();
  state.watch = null;
  state.opened = null;
  state.dots?.choose(null);
  byId("detail").hidden = true;
  if (state.map) { showPlan(state.map, null); showStops(state.map, []); }
  dirty();
}

function onDetail(id, frame) {
  if (state.opened?.delivery !== id) return;
  const view = frame.type === "snapshot" ? (state.opened.view = frame) : state.opened.view;
  if (!view) return;
  if (frame.type === "snapshot" && state.map) {
    showStops(state.map, frame.stops);
    showPlan(state.map, frame.plan);
    state.dots.choose(frame.driver);
    const at = frame.position ?? frame.stops.at(-1);
    if (at && !state.opened.shown) { state.map.easeTo({ center: [at.lng, at.lat], zoom: Math.max(13.5, state.map.getZoom()) }); state.opened.shown = true; }
  }
  if (frame.type === "status") { view.journal.push(frame); if (frame.kind === "status") view.status = frame.status; if (frame.kind === "assigned") view.driver = frame.driver; }
  if (frame.type === "eta") view.eta = frame;
  if (frame.type === "position") view.position = frame;
  drawDetail(view);
}

function drawDetail(view) {
  const p = view.position;
  const box = byId("detail");
  box.hidden = false;
  const link = make("button", { className: "button", textContent: "Open customer page", onclick: openCustomerPage });
  box.replaceChildren(
    make("button", { className: "close", textContent: "×", title: "Close", ariaLabel: "Close", onclick: close }),
    make("h2", { textContent: title(view), style: "font-size:17px;padding-right:20px" }),
    make("p", { className: "status", textContent: STATUS_WORDS[view.status] }),
    make("p", { className: "small soft", textContent: view.eta ? `${view.stops[view.eta.stop]?.kind === "pickup" ? "At the pickup" : "Arrives"} ${clock(view.eta.arrival)} (${clock(view.eta.p10)}–${clock(view.eta.p90)})` : "No arrival time yet" }),
    make("p", { className: "small soft", textContent: p ? `${name(view.driver)} · ${p.speed == null ? "" : `${Math.round(p.speed * 3.6)} km/h · `}${p.progress ? `${(p.progress.remaining_m / 1000).toFixed(1)} km to go` : ""}` : name(view.driver) }),
    link, assigning(view),
    make("ol", { className: "journal" }, ...view.journal.slice().reverse().map((e) => make("li", {}, make("span", { textContent: journalWords(e) }), make("time", { textContent: clock(e.at) })))));
}

/** Gives the opened delivery to another driver. */
function assigning(view) {
  if (["delivered", "failed"].includes(view.status)) return "";
  const select = make("select", { className: "field small", ariaLabel: "Driver" }, make("option", { value: "", textContent: "No driver" }),
    ...[...state.names].map(([id, text]) => make("option", { value: id, textContent: text })));
  select.value = view.driver ?? "";
  select.onchange = () => attempt(() => api(`/deliveries/${view.delivery}/assign`, { method: "POST", body: { driver: select.value || null } }));
  return select;
}

async function openCustomerPage() {
  // Opened in the click itself, or browsers take it for a pop-up.
  const tab = globalThis.open("", "_blank");
  try {
    const answer = await api(`/deliveries/${state.opened.delivery}/token`, { method: "POST", body: {} });
    tab.location = answer.links.page;
  } catch (error) {
    tab.close();
    hint(error.message);
  }
}

function hint(text) { byId("hint").textContent = text; byId("hint").hidden = !text; }

async function attempt(work) { try { hint(""); return await work(); } catch (error) { hint(error.message); } }

/** Two clicks on the map: from where, to where. */
function place() {
  if (!state.map) return;
  state.placing = [];
  hint("Click where it is picked up.");
  state.map.getCanvas().style.cursor = "crosshair";
}

async function onMapClick(event) {
  if (state.placing) {
    state.placing.push({ kind: state.placing.length ? "drop_off" : "pickup", lat: event.lngLat.lat, lng: event.lngLat.lng });
    showStops(state.map, state.placing);
    if (state.placing.length === 1) return hint("Click where it goes.");
    const stops = state.placing;
    state.placing = null;
    state.map.getCanvas().style.cursor = "";
    const made = await attempt(() => api("/deliveries", { method: "POST", body: { stops, reference: "" } }));
    if (made) { takeDelivery({ ...made, reference: made.reference ?? "" }); open(made.delivery); }
    return;
  }
  const [hit] = state.map.queryRenderedFeatures(event.point, { layers: ["dots"] });
  const driver = hit && state.drivers.get(hit.properties.id);
  const delivery = driver && [...state.deliveries.values()].find((d) => d.driver === driver.driver);
  if (delivery) open(delivery.delivery);
}

/** Enrols a driver and shows the address that makes a phone his. */
async function driveYourself() {
  const text = prompt("The driver's name", "Me");
  if (!text) return;
  await attempt(async () => {
    const { driver } = await api("/drivers", { method: "POST", body: { name: text } });
    const { credential } = await api("/devices", { method: "POST", body: { driver } });
    state.names.set(driver, text);
    const secure = await fetch("/assets/secure.json").then((answer) => answer.json()).catch(() => null);
    const origin = ["localhost", "127.0.0.1"].includes(location.hostname) && secure?.origin ? secure.origin : location.origin;
    const url = `${origin}/drive#${credential}`;
    const { default: qrcode } = await import("/vendor/qrcode.mjs");
    const code = qrcode(0, "L");
    code.addData(url);
    code.make();
    const picture = make("div", { className: "qr" });
    picture.innerHTML = code.createSvgTag({ scalable: true, margin: 0 });
    const box = byId("detail");
    box.hidden = false;
    box.replaceChildren(make("button", { className: "close", textContent: "×", ariaLabel: "Close", onclick: close }),
      make("h2", { textContent: `Drive as ${text}`, style: "font-size:17px" }), picture,
      make("p", { className: "small soft", textContent: "Open this on a phone in the same network (it will warn of the server's own certificate), or drive in this browser:" }),
      make("a", { className: "button", href: `/drive#${credential}`, target: "_blank", textContent: "Drive here" }));
  });
}

async function enter(key) {
  state.key = key;
  for (let cursor = ""; cursor != null;) {
    const page = await api(`/drivers?limit=1000&cursor=${cursor}`);
    for (const driver of page.drivers) state.names.set(driver.driver, driver.name);
    cursor = page.next;
  }
  sessionStorage.setItem("wayfix.key", key);
  byId("enter").hidden = true;
  byId("dispatch").hidden = false;
  // The lists do not wait for the map.
  new Stream("/map", key, onFrame, (line) => { state.line = line; dirty(); });
  setInterval(dirty, 1000);
  try {
    const map = await makeMap("map");
    state.dots = new Dots(map);
    state.map = map;
    map.on("click", onMapClick);
    for (const driver of state.drivers.values()) if (driver.position) state.dots.put(driver.driver, { ...driver.position, freshness: look(driver) });
  } catch (error) {
    hint(`No map: ${error.message}`);
  }
  dirty();
}

byId("filter").oninput = dirty;
byId("new").onclick = place;
byId("drive").onclick = driveYourself;
byId("form").onsubmit = async (event) => {
  event.preventDefault();
  try { await enter(byId("key").value.trim()); } catch (error) { byId("refused").textContent = error.status === 401 ? "This key is not known." : error.message; byId("refused").hidden = false; }
};

// A link carries the key behind the '#', which browsers never send to a server.
const linked = new URLSearchParams(location.hash.slice(1)).get("key");
if (linked) history.replaceState(null, "", location.pathname);
const key = linked || sessionStorage.getItem("wayfix.key");
if (key) enter(key).catch(() => { byId("enter").hidden = false; }); else byId("enter").hidden = false;
