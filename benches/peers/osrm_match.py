"""OSRM beside Wayfix: prepares an extract (multi-level Dijkstra), matches whole trips (radius 10 m), writes routes.

usage: osrm_match.py EXTRACT WORK TRACES EVERY ROUTES.jsonl, or EXTRACT WORK to build alone
Prints one JSON line: fixes, seconds of CPU of matching alone, seconds of building by the wall clock and of CPU (0 where it was there).
"""
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import time

import osrm
from traces import Stopwatch, decode_polyline, read, report


def build(extract, work):
    base = os.path.join(work, "city.osrm")
    if os.path.exists(base + ".mldgr"):
        return base, (0.0, 0.0)
    watch = Stopwatch()
    local = os.path.join(work, "city.osm.pbf")
    shutil.copyfile(extract, local)
    profile = os.path.join(os.path.dirname(osrm.__file__), "share", "profiles", "car.lua")
    for arguments in (["extract", "-t", "1", "-p", profile, local], ["partition", "-t", "1", base], ["customize", "-t", "1", base]):
        subprocess.run([sys.executable, "-m", "osrm", *arguments], check=True, stdout=subprocess.DEVNULL)
    return base, watch.read()


def main():
    extract, work, *matching = sys.argv[1:]
    os.makedirs(work, exist_ok=True)
    base, (build_s, build_cpu_s) = build(extract, work)
    built = dict(peer="osrm", version=importlib.metadata.version("osrm-bindings"), build_s=build_s, build_cpu_s=build_cpu_s)
    if not matching:
        return report(trips=0, failed=0, fixes=0, seconds=0.0, **built)
    traces, every, routes = matching
    engine = osrm.OSRM(storage_config=base, algorithm="MLD", use_shared_memory=False, max_locations_map_matching=10_000)
    trips = read(traces, float(every))
    fixes = sum(len(trip) for _, trip in trips)
    matched, failed, seconds = [], 0, 0.0
    for name, trip in trips:
        query = osrm.MatchParameters(coordinates=[(lon, lat) for _, lon, lat in trip], timestamps=[int(t) for t, _, _ in trip],
                                     radiuses=[10.0] * len(trip), overview="full", geometries="polyline6")
        begin = time.process_time()
        try:
            answer = engine.Match(query)
        except Exception:
            answer, failed = None, failed + 1
        seconds += time.process_time() - begin
        matched.append((name, answer))
    with open(routes, "w") as out:
        for name, answer in matched:
            parts = [decode_polyline(str(m["geometry"]), 1e6) for m in answer["matchings"]] if answer else []
            out.write(json.dumps({"id": name, "route": parts}) + "\n")
    report(trips=len(trips), failed=failed, fixes=fixes, seconds=seconds, **built)


if __name__ == "__main__":
    main()
