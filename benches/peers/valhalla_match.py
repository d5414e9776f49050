"""Valhalla beside Wayfix: builds its tiles of an extract, matches whole trips (trace_route, map_snap), writes routes.

usage: valhalla_match.py EXTRACT WORK TRACES EVERY ROUTES.jsonl, or EXTRACT WORK to build alone
Prints one JSON line: fixes, seconds of CPU of matching alone, seconds of building by the wall clock and of CPU (0 where the tiles were there).
"""
import json
import os
import subprocess
import sys
import time

import valhalla
from traces import Stopwatch, decode_polyline, read, report


def build(extract, work):
    tiles, config = os.path.join(work, "tiles"), os.path.join(work, "valhalla.json")
    is_built = os.path.isdir(tiles)
    os.makedirs(tiles, exist_ok=True)
    made = valhalla.get_config(tile_extract="", tile_dir=tiles, verbose=False)
    made["meili"]["default"].update(search_radius=50, gps_accuracy=5.0)
    limits = made["service_limits"]["trace"]
    limits.update(max_shape=100_000, max_distance=1_000_000.0)
    made["mjolnir"]["logging"] = {"type": "file", "file_name": os.path.join(work, "build.log")}
    made["loki"]["logging"] = made["mjolnir"]["logging"]
    if is_built:
        return made, (0.0, 0.0)
    with open(config, "w") as out:
        json.dump(made, out)
    watch = Stopwatch()
    tool = os.path.join(os.path.dirname(valhalla.__file__), "bin", "valhalla_build_tiles")
    subprocess.run([tool, "-c", config, "-j", "1", extract], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return made, watch.read()


def main():
    extract, work, *matching = sys.argv[1:]
    os.makedirs(work, exist_ok=True)
    config, (build_s, build_cpu_s) = build(extract, work)
    built = dict(peer="valhalla", version=valhalla.__version__, build_s=build_s, build_cpu_s=build_cpu_s)
    if not matching:
        return report(trips=0, failed=0, fixes=0, seconds=0.0, **built)
    traces, every, routes = matching
    actor = valhalla.Actor(config)
    trips = read(traces, float(every))
    fixes = sum(len(trip) for _, trip in trips)
    matched, failed, seconds = [], 0, 0.0
    for name, trip in trips:
        query = json.dumps({"shape": [{"lat": lat, "lon": lon, "time": t} for t, lon, lat in trip], "costing": "auto",
                            "shape_match": "map_snap", "use_timestamps": False, "directions_type": "none"})
        begin = time.process_time()
        try:
            answer = actor.trace_route(query)  # text in, text out: reading it is not matching
        except Exception:
            answer, failed = None, failed + 1
        seconds += time.process_time() - begin
        matched.append((name, answer))
    with open(routes, "w") as out:
        for name, answer in matched:
            parts = []
            if answer:
                answer = json.loads(answer)
                found = [answer["trip"]] + [other["trip"] for other in answer.get("alternates", [])]
                parts = [decode_polyline(leg["shape"], 1e6) for trip in found for leg in trip["legs"]]
            out.write(json.dumps({"id": name, "route": parts}) + "\n")
    report(trips=len(trips), failed=failed, fixes=fixes, seconds=seconds, **built)


if __name__ == "__main__":
    main()
