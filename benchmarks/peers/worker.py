"""DeepSparse in a process and an environment of its own; also the loop that times every runtime.

Runs with Python 3.8 and imports nothing of this project. One JSON object per line:

    worker.py MODEL.onnx INPUT.npy OUTPUT.npy THREADS
      -> {"version": ...}                       the model is loaded, OUTPUT.npy is written
    {"warm_s": 0.005, "timed_s": 0.02}
      -> {"ms": [...]}
"""

from __future__ import annotations

import json
import os
import sys
import time

LEAST_CALLS = 2
MOST_CALLS = 500


def burst(run, warm_s, timed_s):
    """Milliseconds of calls in a row, after others that are not counted.

    Args:
        run: what to time.
        warm_s: seconds of calls before, at least one: they find caches and clock as another
            runtime or a pause left them.
        timed_s: seconds of timed calls, at least `LEAST_CALLS` and at most `MOST_CALLS` of them.
    """
    clock = time.perf_counter
    begin = clock()
    run()
    while clock() - begin < warm_s:
        run()
    ms = []
    begin = end = clock()
    while len(ms) < LEAST_CALLS or (end - begin < timed_s and len(ms) < MOST_CALLS):
        start = clock()
        run()
        end = clock()
        ms.append((end - start) * 1e3)
    return ms


def main(model, given, output, threads):
    """Loads the model, then answers requests for bursts until there are no more."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the engine prints to stdout; there it must not meet the replies

    import deepsparse
    import numpy

    x = numpy.ascontiguousarray(numpy.load(given))
    engine = deepsparse.Engine(model, batch_size=x.shape[0], num_cores=int(threads))

    def run():
        return engine.run([x], val_inp=False)

    def reply(content):
        replies.write(json.dumps(content) + "\n")
        replies.flush()

    numpy.save(output, run()[0])
    reply({"version": deepsparse.__version__, "cores": engine.num_cores})
    for line in sys.stdin:
        reply({"ms": burst(run, **json.loads(line))})


if __name__ == "__main__":
    main(*sys.argv[1:])
