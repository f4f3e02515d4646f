"""Runs commands in turn and tells their medians, and ratios beside their limits."""

import os
import shutil
import statistics
import subprocess
import sys

# A small process that starts the command: what one that starts large has in memory would count as the command's.
START = """
import os, sys, time
start = time.perf_counter()
nothing = os.open(os.devnull, os.O_WRONLY)
child = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, nothing, 1)])
_, status, used = os.wait4(child, 0)
print(time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)
sys.exit(os.waitstatus_to_exitcode(status) != 0)
"""


def timed(command, excused=None):
    """Seconds on the clock, seconds of the processor, and the largest resident memory in bytes, of one command. It may
    fail only if it says `excused`."""
    command = [str(part) for part in command]
    done = subprocess.run([sys.executable, "-SE", "-c", START, *command], capture_output=True, text=True)
    if done.returncode != 0 and (excused is None or excused not in done.stderr):
        raise SystemExit(f"{command}: {done.stderr}")
    return tuple(float(figure) for figure in done.stdout.split())


def in_turn(rows, runs, clear, settle=True):
    """Runs the commands of `rows` (a dictionary) one after the other, `runs` times and once to warm the cache. Before
    each, the outputs named in `clear` are removed and, with `settle`, the disk is waited for."""
    taken = {name: [] for name in rows}
    for run in range(runs + 1):
        for name, command in rows.items():
            remove(clear)
            if settle:
                os.sync()
            took = timed(command)
            if run:
                taken[name].append(took)
    remove(clear)
    return taken


def remove(paths):
    """Removes files and folders, where they are there."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def median(taken, name):
    """The median time of a command, in seconds."""
    return statistics.median(wall for wall, *_ in taken[name])


def table(taken):
    """A line for each command: the median, the range, processor time and memory."""
    for name, took in taken.items():
        walls = sorted(wall for wall, *_ in took)
        cpu = statistics.median(cpu for _, cpu, _ in took)
        peak = max(memory for *_, memory in took)
        print(f"{name:26} {statistics.median(walls):6.2f} s ({walls[0]:.2f} to {walls[-1]:.2f})   "
              f"cpu {cpu:6.2f} s   peak {peak / 1e6:6.1f} MB", flush=True)


def ratio(taken, over, under):
    """The median over the runs of the ratio of two commands that ran in turn."""
    pairs = zip(taken[over], taken[under])
    return statistics.median(a / b for (a, *_), (b, *_) in pairs)


def held(what, found, limit, unit="", least=False):
    """A line that tells a figure and its limit. Returns whether it is held."""
    fine = found >= limit if least else found <= limit
    word = "at least" if least else "at most"
    print(f"{what:44} {found:8.2f}{unit}   {word} {limit:g}{unit}   {'held' if fine else 'NOT HELD'}", flush=True)
    return fine
