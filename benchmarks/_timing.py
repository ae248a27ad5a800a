"""Ratios of the time of two things, taken in turns in one process."""

import ctypes
import math
import re
import time

import numpy as np

BLOCK_SECONDS = 0.3
RESAMPLES = 10_000

# Options of `mallopt`, as malloc.h of the GNU C library has them, and values.
KEEP_FREED_MEMORY = {
    "M_TRIM_THRESHOLD": (-1, 2**31 - 1),
    "M_MMAP_MAX": (-4, 0),
    "M_ARENA_MAX": (-8, 1),
}


def keep_freed_memory():
    """What is freed stays with the process, with the GNU C library.

    By default it gives large blocks back, and the system zeroes each page of
    the next. Or it does not: that depends on where small blocks lie, and is
    then so for all of a run. Where little is done with a large tensor it takes
    longer than what is to be timed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    for option, value in KEEP_FREED_MEMORY.values() if mallopt else ():
        mallopt(option, value)


# Before a backend starts its threads.
keep_freed_memory()


def steps_in_block(run, multiple_of=1, seconds=BLOCK_SECONDS):
    """How many steps of `run` fill a block, after its warm-up."""
    run(multiple_of)
    each = _seconds(run, multiple_of) / multiple_of
    return multiple_of * max(1, math.ceil(seconds / each / multiple_of))


def time_pairs(run, baseline, pairs, steps, warm_up=1):
    """Times blocks of `steps` of both, in turns.

    Args:
        run, baseline: Functions of a number of steps, which return when these
            are done, asynchronous work included.
        pairs: Integer. The number of blocks of each.
        steps: Integer. The number of steps in a block.
        warm_up: Integer. At least so many steps of each come first, for all
            that is compiled on the way.

    Returns:
        Seconds a step, of shape `(pairs, 2)`: `run`, then `baseline`.
    """
    sides = run, baseline
    for side in sides:
        side(max(steps, warm_up))
    seconds = np.empty((pairs, 2))
    for pair in range(pairs):
        # Who goes first alternates: a machine that slows down, or a cache that
        # the first side warms, would else favour the same one in every pair.
        for index in (0, 1) if pair % 2 == 0 else (1, 0):
            seconds[pair, index] = _seconds(sides[index], steps)
    return seconds / steps


def median_ratio(seconds):
    """Median of the ratios of the pairs, and its bootstrap 95% interval."""
    ratios = seconds[:, 0] / seconds[:, 1]
    draws = np.random.default_rng(0).choice(ratios, (RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return np.median(ratios), low, high


def ratio_cells(seconds):
    """Median, interval and number of pairs, as cells of a table."""
    median, low, high = median_ratio(seconds)
    return f"{median:.3f}", f"{low:.3f} to {high:.3f}", len(seconds)


def time_rows(rows, side, pairs, steps, only="", warm_up=1, more=None):
    """Prints a row of a table for each pair of things to compare.

    Args:
        rows: Tuples of a name, what it is relative to, and the ratio not to
            be exceeded or `None`.
        side: Function of a name to what `time_pairs` takes, or to an object
            with such a function as `run`. Where it raises `ImportError` the
            row says so.
        pairs, steps, warm_up: As in `time_pairs`.
        only: Regular expression, searched in `name / baseline`.
        more: Function of the two sides and their seconds, to further cells.
    """
    for name, baseline, bar in rows:
        if not re.search(only, f"{name} / {baseline}"):
            continue
        try:
            sides = side(name), side(baseline)
        except ImportError as error:
            print_row(name, baseline, error, "", "", bar or "")
            continue
        runs = [getattr(one, "run", one) for one in sides]
        seconds = time_pairs(*runs, pairs, steps, warm_up)
        cells = more(sides, seconds) if more else ()
        print_row(name, baseline, *ratio_cells(seconds), bar or "", *cells)


def print_row(*cells):
    # Flushed: a long run shows each row as soon as it is measured.
    print("|", " | ".join(map(str, cells)), "|", flush=True)


def print_head(*columns):
    print_row(*columns)
    print_row(*("---" for _ in columns))


def _seconds(run, steps):
    start = time.perf_counter()
    run(steps)
    return time.perf_counter() - start
