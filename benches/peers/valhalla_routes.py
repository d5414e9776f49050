"""Valhalla's routes between pairs of places, beside Wayfix's: their length, the ways that they use, their line.

usage: valhalla_routes.py EXTRACT WORK PAIRS.jsonl ROUTES.jsonl
Each pair: {"id", "costing", "options", "from": [lat, lon], "to": [lat, lon]}; each route: {"id", "length_m", "ways", "line"}, or {"id", "why"}
where there is none. Prints one JSON line: how many pairs, how many without a route, seconds of CPU of routing alone.
"""
import json
import os
import sys
import time

import valhalla
from traces import decode_polyline, report
from valhalla_match import build


def place(at):
    lat, lon = at
    # Exactly the nearest road, in either direction: not one that is a little farther and better connected.
    return {"lat": lat, "lon": lon, "radius": 0, "node_snap_tolerance": 0, "rank_candidates": False}


def main():
    extract, work, pairs, routes = sys.argv[1:]
    os.makedirs(work, exist_ok=True)
    config, (build_s, build_cpu_s) = build(extract, work)
    limits = config["service_limits"]
    for costing in ("auto", "motor_scooter", "bicycle", "pedestrian"):
        limits[costing].update(max_distance=5_000_000.0)
    limits["max_distance_disable_hierarchy_culling"] = 5_000_000.0
    actor = valhalla.Actor(config)
    failed, seconds, count = 0, 0.0, 0
    with open(pairs) as lines, open(routes, "w") as out:
        for pair in map(json.loads, lines):
            count += 1
            costing = {"costing": pair["costing"], "costing_options": {pair["costing"]: pair["options"]}}
            query = {"locations": [place(pair["from"]), place(pair["to"])], "directions_type": "none", **costing}
            begin = time.process_time()
            try:
                trip = json.loads(actor.route(json.dumps(query)))["trip"]
            except Exception as error:
                trip, failed = None, failed + 1
                row = {"id": pair["id"], "why": str(error)}
            seconds += time.process_time() - begin
            if trip:
                shape = trip["legs"][0]["shape"]
                row = {"id": pair["id"], "length_m": trip["summary"]["length"] * 1000, "ways": ways(actor, shape, pair["costing"]),
                       "line": decode_polyline(shape, 1e6)}
            out.write(json.dumps(row) + "\n")
    report(peer="valhalla", version=valhalla.__version__, build_s=build_s, build_cpu_s=build_cpu_s,
           trips=count, failed=failed, fixes=0, seconds=seconds)


def ways(actor, shape, costing):
    """The numbers of the OpenStreetMap ways under a route's own line."""
    query = {"encoded_polyline": shape, "shape_match": "edge_walk", "costing": costing,
             "filters": {"attributes": ["edge.way_id"], "action": "include"}}
    try:
        return [edge["way_id"] for edge in json.loads(actor.trace_attributes(json.dumps(query)))["edges"]]
    except Exception:
        return []


if __name__ == "__main__":
    main()
