"""Two processes of `jax.distributed` on this machine, and how they end."""

import os
import pathlib
import socket
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[2]
PROCESSES = 2


def free_address():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{s.getsockname()[1]}"


def start(script, *arguments, process, address):
    """One of the processes; its output goes to a file, for a pipe fills up."""
    output = tempfile.TemporaryFile("w+")
    worker = subprocess.Popen(
        [sys.executable, script, *map(str, arguments)]
        + ["--address", address, "--process", str(process)],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
            "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        },
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return worker, output


def run(script, *arguments, timeout):
    """Starts both, and waits for both.

    Returns:
        An exit code and an output for each. Whoever is alive at the end of
        `timeout` is killed, and its code is `None`.
    """
    address = free_address()
    workers = [
        start(script, *arguments, process=process, address=address)
        for process in range(PROCESSES)
    ]
    try:
        return [ended(*worker, timeout) for worker in workers]
    finally:
        for worker, _ in workers:
            worker.kill()
            worker.wait()


def ended(worker, output, timeout):
    try:
        code = worker.wait(timeout)
    except subprocess.TimeoutExpired:
        code = None
    output.seek(0)
    return code, output.read()
