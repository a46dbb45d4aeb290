"""A plugin for `pytest -n`: each of its processes, and what it starts, keeps to a core of its own.

    PYTHONPATH=tools python -m pytest -p own_core -n 2 --dist loadfile --no-loadscope-reorder tests

Small models leave a second core idle half of the time, and two processes that share cores wait for each other. Where the
system lets no process choose (macOS, Windows) nothing changes.
"""

import os

if (worker := os.environ.get("PYTEST_XDIST_WORKER")) and hasattr(os, "sched_setaffinity"):  # "gw0", "gw1"
    cores = sorted(os.sched_getaffinity(0))  # before torch is imported: it counts them once
    os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})
