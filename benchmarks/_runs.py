"""Results that a run which was stopped does not lose."""

import json
import pathlib

import keras
import numpy as np


class Runs:
    """Results by key, one JSON line each, in a file of the backend.

    `runs.once(key, make)` is the result that the file has for the key, or
    that of `make()`, which is written as it comes. `key in runs` and
    `runs[key]` tell of those that are there.
    """

    def __init__(self, folder):
        self.path = pathlib.Path(folder) / f"{keras.config.backend()}.jsonl"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = self.path.read_text() if self.path.exists() else ""
        # A last line that was not written to its end is made again.
        whole, _, _ = text.rpartition("\n")
        if text and not text.endswith("\n"):
            self.path.write_text(whole and whole + "\n")
        self._results = {
            json.dumps(line["key"]): line["result"]
            for line in map(json.loads, whole.splitlines())
        }

    def __contains__(self, key):
        return json.dumps(key) in self._results

    def __getitem__(self, key):
        return self._results[json.dumps(key)]

    def once(self, key, make):
        known = json.dumps(key)
        if known not in self._results:
            self._results[known] = make()
            with self.path.open("a") as file:
                line = {"key": key, "result": self._results[known]}
                file.write(json.dumps(line) + "\n")
            print(*key, self._results[known], flush=True)
        return self._results[known]

    def get(self, key):
        """The result for a key, `None` where there is none yet."""
        return self._results.get(json.dumps(key))


def mean_and_spread(values, digits=2):
    """`mean ± standard deviation`, of more than one value."""
    mean, spread = np.mean(values), np.std(values, ddof=1)
    return f"{mean:.{digits}f} ± {spread:.{digits}f}"
