// The map: our own tiles, drawn by MapLibre, and dots that glide from where they were to where they are. A dot never
// moves beyond the newest position the server sent.

import { Map as LibreMap, NavigationControl, LngLatBounds } from "/vendor/maplibre-gl.mjs";
export { LngLatBounds };

const ROAD = ["case",
  ["in", ["get", "class"], ["literal", ["motorway", "trunk"]]], 1.9,
  ["in", ["get", "class"], ["literal", ["primary", "secondary"]]], 1.4,
  ["in", ["get", "class"], ["literal", ["tertiary"]]], 1.1,
  ["in", ["get", "class"], ["literal", ["service", "footway", "path", "cycleway", "steps", "track", "pedestrian"]]], 0.45, 0.8];
const wide = (factor) => ["interpolate", ["exponential", 1.6], ["zoom"],
  10, ["*", ROAD, 0.7 * factor], 14, ["*", ROAD, 3 * factor], 18, ["*", ROAD, 15 * factor]];

function style(tilejson) {
  const road = { source: "base", "source-layer": "roads", type: "line", layout: { "line-cap": "round", "line-join": "round" } };
  return {
    version: 8,
    sources: {
      base: { type: "vector", tiles: tilejson.tiles.map((t) => new URL(t, location.href).href.replace(/%7B/gi, "{").replace(/%7D/gi, "}")),
        minzoom: tilejson.minzoom, maxzoom: tilejson.maxzoom, bounds: tilejson.bounds, attribution: tilejson.attribution },
      plan: { type: "geojson", data: empty() }, stops: { type: "geojson", data: empty() }, dots: { type: "geojson", data: empty() },
    },
    layers: [
      { id: "ground", type: "background", paint: { "background-color": "#f3f1ec" } },
      { id: "green", source: "base", "source-layer": "green", type: "fill", paint: { "fill-color": "#d6e8cb" } },
      { id: "water", source: "base", "source-layer": "water", type: "fill", filter: ["==", ["geometry-type"], "Polygon"], paint: { "fill-color": "#b5d7ee" } },
      { id: "rivers", source: "base", "source-layer": "water", type: "line", filter: ["==", ["geometry-type"], "LineString"],
        paint: { "line-color": "#b5d7ee", "line-width": ["interpolate", ["exponential", 1.5], ["zoom"], 10, 0.8, 17, 9] } },
      { id: "buildings", source: "base", "source-layer": "buildings", type: "fill", minzoom: 14, paint: { "fill-color": "#e6e1d8" } },
      { ...road, id: "casing", paint: { "line-color": "#d9d3c6", "line-width": wide(1.35) } },
      { ...road, id: "roads", paint: { "line-width": wide(1),
        "line-color": ["match", ["get", "class"], ["motorway", "trunk"], "#f8d38a", ["primary", "secondary"], "#fdeab8", "#ffffff"] } },
      { id: "names", source: "base", "source-layer": "roads", type: "symbol", minzoom: 13.5, filter: ["has", "name"],
        layout: { "symbol-placement": "line", "text-field": ["get", "name"], "text-size": ["interpolate", ["linear"], ["zoom"], 13, 10, 18, 14], "text-padding": 8 },
        paint: { "text-color": "#5d6675", "text-halo-color": "#ffffff", "text-halo-width": 1.6 } },
      { id: "plan", source: "plan", type: "line", layout: { "line-cap": "round", "line-join": "round" },
        paint: { "line-color": "#1466ff", "line-width": 5, "line-opacity": 0.45 } },
      { id: "stops", source: "stops", type: "symbol", layout: { "icon-image": ["get", "icon"], "icon-anchor": "bottom", "icon-allow-overlap": true } },
      { id: "dots", source: "dots", type: "symbol", layout: { "icon-image": ["get", "icon"], "icon-rotate": ["get", "heading"],
        "icon-rotation-alignment": "map", "icon-allow-overlap": true, "icon-ignore-placement": true, "symbol-sort-key": ["get", "order"] } },
    ],
  };
}

const empty = () => ({ type: "FeatureCollection", features: [] });

/** Draws an icon at twice its size, so that it is sharp on a phone. */
function icon(map, name, size, draw) {
  const canvas = document.createElement("canvas");
  canvas.width = canvas.height = size * 2;
  const g = canvas.getContext("2d");
  g.scale(2, 2);
  draw(g, size);
  map.addImage(name, g.getImageData(0, 0, size * 2, size * 2), { pixelRatio: 2 });
}

function dot(color, withHeading, halo) {
  return (g, size) => {
    const c = size / 2;
    if (halo) { g.fillStyle = halo; g.beginPath(); g.arc(c, c, c - 1, 0, 7); g.fill(); }
    if (withHeading) {
      g.fillStyle = color; g.beginPath(); g.moveTo(c, 2.5); g.lineTo(c + 6.5, c - 5); g.lineTo(c - 6.5, c - 5); g.fill();
    }
    g.shadowColor = "rgb(0 0 0 / .35)"; g.shadowBlur = 3; g.shadowOffsetY = 1;
    g.fillStyle = "#fff"; g.beginPath(); g.arc(c, c, 9, 0, 7); g.fill();
    g.shadowColor = "transparent";
    g.fillStyle = color; g.beginPath(); g.arc(c, c, 6.4, 0, 7); g.fill();
  };
}

function pin(color, letter) {
  return (g, size) => {
    const c = size / 2;
    g.shadowColor = "rgb(0 0 0 / .35)"; g.shadowBlur = 3; g.shadowOffsetY = 1;
    g.fillStyle = color; g.beginPath(); g.arc(c, 15, 11, Math.PI * 0.85, Math.PI * 0.15); g.lineTo(c, size - 2); g.closePath(); g.fill();
    g.shadowColor = "transparent"; g.fillStyle = "#fff"; g.font = "bold 13px system-ui, sans-serif"; g.textAlign = "center"; g.textBaseline = "middle";
    g.fillText(letter, c, 15.5);
  };
}

export async function makeMap(container, { attribution = true } = {}) {
  const tilejson = await fetch("/api/v1/map/tiles.json").then((answer) => (answer.ok ? answer.json() : null));
  if (!tilejson) throw new Error("there is no map here");
  const map = new LibreMap({ container, style: style(tilejson), bounds: tilejson.bounds, fitBoundsOptions: { padding: 30 },
    attributionControl: attribution ? { compact: false } : false, dragRotate: false, pitchWithRotate: false, maxZoom: 18.9 });
  map.touchZoomRotate.disableRotation();
  // On a phone the lower half is the sheet's.
  map.addControl(new NavigationControl({ showCompass: false }), innerWidth < 760 ? "top-right" : "bottom-right");
  await new Promise((done) => map.once("load", done));
  for (const [name, color, halo] of [["live", "#1466ff", null], ["last_seen", "#8a94a3", null], ["chosen", "#e8590c", "rgb(232 89 12 / .18)"]]) {
    icon(map, `${name}`, 38, dot(color, false, halo));
    icon(map, `${name}-heading`, 38, dot(color, true, halo));
  }
  icon(map, "pickup", 40, pin("#128a5b", "P"));
  icon(map, "drop_off", 40, pin("#c2362f", "D"));
  return map;
}

/** Keeps dots by id and lets them glide. */
export class Dots {
  #map; #dots = new Map(); #running = false; chosen = null;
  constructor(map) { this.#map = map; }

  get(id) { return this.#dots.get(id); }

  put(id, { lng, lat, heading, freshness }) {
    const now = performance.now();
    const known = this.#dots.get(id);
    const from = known ? this.#at(known, now) : [lng, lat];
    const far = Math.hypot(lng - from[0], lat - from[1]) > 0.02;
    const pause = known ? Math.min(2500, Math.max(300, now - known.came)) : 0;
    this.#dots.set(id, { from: far ? [lng, lat] : from, to: [lng, lat], begin: now, pause: far ? 0 : pause, came: now, heading, freshness });
    this.#run();
  }

  fade(id, freshness) {
    const known = this.#dots.get(id);
    if (!known || known.freshness === freshness) return;
    if (freshness === "unavailable") this.#dots.delete(id); else known.freshness = freshness;
    this.#run();
  }

  remove(id) { if (this.#dots.delete(id)) this.#run(); }

  choose(id) { this.chosen = id; this.#run(); }

  #at(dot, now) {
    const f = dot.pause ? Math.min(1, (now - dot.begin) / dot.pause) : 1;
    return [dot.from[0] + (dot.to[0] - dot.from[0]) * f, dot.from[1] + (dot.to[1] - dot.from[1]) * f];
  }

  #run() { if (!this.#running) { this.#running = true; requestAnimationFrame(() => this.#frame()); } }

  #frame() {
    const now = performance.now();
    let moving = false;
    const features = [];
    for (const [id, dot] of this.#dots) {
      moving ||= now - dot.begin < dot.pause;
      const look = id === this.chosen && dot.freshness === "live" ? "chosen" : dot.freshness;
      features.push({ type: "Feature", geometry: { type: "Point", coordinates: this.#at(dot, now) },
        properties: { id, icon: dot.heading == null ? look : `${look}-heading`, heading: dot.heading ?? 0, order: id === this.chosen ? 1 : 0 } });
    }
    this.#map.getSource("dots").setData({ type: "FeatureCollection", features });
    this.#running = false;
    if (moving) this.#run();
  }
}

export function showStops(map, stops) {
  map.getSource("stops").setData({ type: "FeatureCollection", features: stops.map((stop) => ({
    type: "Feature", geometry: { type: "Point", coordinates: [stop.lng, stop.lat] }, properties: { icon: stop.kind } })) });
}

export function showPlan(map, encoded) {
  const coordinates = encoded ? decodePolyline(encoded) : [];
  map.getSource("plan").setData(coordinates.length < 2 ? empty() : { type: "Feature", properties: {}, geometry: { type: "LineString", coordinates } });
  return coordinates;
}

export function decodePolyline(text) {
  const points = [];
  let i = 0, lat = 0, lng = 0;
  const next = () => {
    let value = 0, shift = 0, byte;
    do { byte = text.charCodeAt(i++) - 63; value |= (byte & 31) << shift; shift += 5; } while (byte >= 32);
    return value & 1 ? ~(value >> 1) : value >> 1;
  };
  while (i < text.length) { lat += next(); lng += next(); points.push([lng / 1e5, lat / 1e5]); }
  return points;
}
