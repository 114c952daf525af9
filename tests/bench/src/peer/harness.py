"""What the loops of Mobula's benchmark for Ray have in common: rows by name, and what is printed of them.

A program of loops says `row(name)` before each function that measures one, and ends with `main(start)`. Its arguments:
the length of a measurement in seconds, the bytes of a large transfer, then the names of the rows. It prints one JSON
object a line, {"row", "value"} or {"row", "error"}; {"row": "first"} says that a first task has returned.
"""

import json
import os
import sys
import threading
import time

import ray

ROWS = {}


def row(name):
    return lambda measure: ROWS.setdefault(name, measure)


# In windows: as Ray's own benchmark, which warms up for a second and measures for two at a time. Ray needs it.
WARM, MEASURED = 2, 4


def rate(window, each, call, warm=None):
    """Operations a second: calls for MEASURED windows, after a warm-up for WARM windows and of at least one call."""
    begun = time.perf_counter()
    (warm or call)()
    while warm is None and time.perf_counter() - begun < WARM * window:
        call()
    window = MEASURED * window
    begun, calls = time.perf_counter(), 0
    while True:
        call()
        calls += 1
        elapsed = time.perf_counter() - begun
        if elapsed >= window:
            return calls * each / elapsed


def say(**line):
    print(json.dumps(line), flush=True)


def end_with_parent():
    """Standard input ends when the program that started this one does."""
    sys.stdin.read()
    # What Ray started ends when this process does, should the orderly way take too long.
    threading.Timer(5, os._exit, [1]).start()
    ray.shutdown()
    os._exit(1)


class Scale:
    """How much is done."""

    def __init__(self, window, bulk_bytes):
        self.window, self.bulk_bytes = float(window), int(bulk_bytes)


def main(start=lambda: None):
    """Starts Ray, unless rows do that themselves, then measures the wanted rows. Each gets a scale."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    scale, wanted = Scale(*sys.argv[1:3]), sys.argv[3:]
    start()
    try:
        for name in wanted:
            try:
                say(row=name, value=ROWS[name](scale))
            except Exception as error:
                say(row=name, error=f"{type(error).__name__}: {error}")
    finally:
        ray.shutdown()
