"""Traces as the peers read them, the same as `wayfix maps match` does: trips of (id, [(t, lon, lat), …])."""
import csv
import json
import resource
import sys
import time

csv.field_size_limit(1 << 30)


def read(path, every):
    trips = read_taxi(path) if path.endswith(".csv") else read_truth(path)
    return [(name, keep(fixes, every)) for name, fixes in trips if len(fixes) > 1]


def read_truth(path):
    with open(path) as lines:
        for line in lines:
            trip = json.loads(line)
            yield str(trip["id"]), [tuple(fix) for fix in trip["fixes"]]


def read_taxi(path):
    with open(path, newline="") as rows:
        for number, row in enumerate(csv.DictReader(rows)):
            start = int(row["TIMESTAMP"])
            points = json.loads(row["POLYLINE"])
            yield str(number), [(start + 15 * i, lon, lat) for i, (lon, lat) in enumerate(points)]


def keep(fixes, every):
    """A fix every so many seconds, and the last: what is driven after the last that is kept nobody can know."""
    kept = []
    for fix in fixes:
        if not kept or fix[0] - kept[-1][0] >= every:
            kept.append(fix)
    if kept[-1] is not fixes[-1]:
        kept.append(fixes[-1])
    return kept


class Stopwatch:
    """Wall clock and CPU time (of programs that were run and have ended) since it was made."""

    def __init__(self):
        self.wall, self.cpu = time.perf_counter(), self.children_cpu_s()

    @staticmethod
    def children_cpu_s():
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    def read(self):
        return time.perf_counter() - self.wall, self.children_cpu_s() - self.cpu


def report(**row):
    json.dump(row, sys.stdout)
    sys.stdout.write("\n")


def decode_polyline(text, scale):
    """Google's encoded polyline as [[lon, lat], …]."""
    points, i, lat, lon = [], 0, 0, 0
    while i < len(text):
        pair = []
        for _ in range(2):
            value, shift = 0, 0
            while True:
                byte = ord(text[i]) - 63
                i += 1
                value |= (byte & 31) << shift
                shift += 5
                if byte < 32:
                    break
            pair.append(~(value >> 1) if value & 1 else value >> 1)
        lat, lon = lat + pair[0], lon + pair[1]
        points.append([lon / scale, lat / scale])
    return points
