"""What `import keras_dlkit` adds to `import keras`.

In turns, new processes import `keras` alone, and `keras` and then
`keras_dlkit`: the number is the median of what the second import took, beside
the median of the whole process with and without it.

```bash
KERAS_BACKEND=tensorflow python benchmarks/import_time.py
```

At most 50 ms. Run it on a machine that does nothing else. Modules come from
their bytecode, as they do from a package that pip has installed.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time

import keras

LIMIT = 0.050
ENVIRONMENT = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
# Or the source would be compiled in each process, which is most of the time.
ENVIRONMENT.pop("PYTHONDONTWRITEBYTECODE", None)
ALONE = "import keras"
# The time of the second import, from inside.
BOTH = """
import keras, time
start = time.perf_counter()
import keras_dlkit
print(time.perf_counter() - start)
"""


def process(script):
    """Seconds of a new process, and what it printed."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env=ENVIRONMENT,
    )
    return time.perf_counter() - start, done.stdout


def measure(pairs):
    """`(import, process with it, process without it)` of each pair."""
    process(BOTH)  # compiles what has no bytecode yet
    rows = []
    for pair in range(pairs):
        order = [ALONE, BOTH] if pair % 2 else [BOTH, ALONE]
        results = {script: process(script) for script in order}
        rows.append(
            (
                float(results[BOTH][1]),
                results[BOTH][0],
                results[ALONE][0],
            )
        )
    return rows


def table(rows):
    added, both, alone = (statistics.median(column) for column in zip(*rows))
    low, *_, high = statistics.quantiles([row[0] for row in rows], n=4)
    return "\n".join(
        [
            f"| {keras.config.backend()} | milliseconds |",
            "| --- | --- |",
            f"| `import keras_dlkit`, after `import keras` | {1e3 * added:.0f} "
            f"({1e3 * low:.0f} to {1e3 * high:.0f}) |",
            f"| a process with both | {1e3 * both:.0f} |",
            f"| a process with `import keras` alone | {1e3 * alone:.0f} |",
            f"| at most | {1e3 * LIMIT:.0f} |",
        ]
    )


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pairs", type=int, default=20)
    options = parser.parse_args(arguments)
    if options.pairs < 2:
        parser.error("--pairs must be at least 2")
    print(table(measure(options.pairs)))
    print("\nMedians; in brackets the quartiles.")


if __name__ == "__main__":
    main()
