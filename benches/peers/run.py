"""Times ucag-fast and its peers on the same jobs in alternation and writes the table of benches/README.md.

    python3 benches/peers/run.py --rounds 5

The first run makes a virtual environment from requirements.txt, then weights, graphs and float64 reference maps, all in --cache."""

import argparse
import atexit
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

HERE, ROOT = Path(__file__).resolve().parent, Path(__file__).resolve().parents[2]
CAM_PEERS = ["openvino", "openvino-streams", "onnxruntime", "onnxruntime-streams", "torch", "pytorch-grad-cam"]
# Job -> title, peers, warm samples per process, options of ours.
JOBS = {
    "ucag": ("UCAG + Grad-CAM, 36 patches", CAM_PEERS, 2, ["--method", "grad-cam"]),
    "single": ("Grad-CAM of the whole picture", CAM_PEERS, 20, ["--method", "grad-cam", "--plain"]),
    "lrp": ("LRP EpsilonPlus of the whole picture", ["zennit"], 5, ["--method", "lrp-epsilon-plus", "--plain"]),
    "lrp-ucag": ("UCAG + LRP EpsilonPlus, 36 patches", ["zennit"], 1, ["--method", "lrp-epsilon-plus"]),
}
USUAL = ["ucag", "single", "lrp"]
OURS = "ucag-fast"
# On a picture whose grid does not fit strides: the map of a grid that does, so another one than the reference.
ALIGNED = "ucag-fast --grid-align"
PACKAGES = ("openvino", "onnxruntime", "torch", "torchvision", "grad-cam", "zennit", "numpy")
LEGEND = ["- *Warm job*: decoded photo to map, first one dropped. *Whole process*: start, load, one photo, map on disk.",
          "- *times ours*: median of the rounds' ratios (smallest to largest). *peak*: resident; *beyond weights*: less 4 bytes per parameter. "
          "*difference*: largest from the float64 reference, over its range."]


def options():
    p = parser(__doc__, 5, "README.md")
    p.add_argument("--jobs", type=split, default=USUAL, help=f"of {','.join(JOBS)}; another choice than the usual has a block of its own")
    p.add_argument("--photos", type=split, default=["square", "4x3"])
    p.add_argument("--engines", type=split, default=[], help="only these peers")
    p.add_argument("--no-process", action="store_true", help="leave out the whole-process rows")
    p.add_argument("--without-ours", action="store_true")
    return entered(p)


def split(text):
    return text.split(",")


def parser(text, rounds, out):
    """Options of every runner."""
    p = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--rounds", type=int, default=rounds)
    p.add_argument("--networks", type=split, default=["resnet50", "vgg16"])
    p.add_argument("--samples", type=int, help="warm samples per process, instead of the job's own number")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--most", type=float, default=1, help="measure again where other processes take more than this part of the CPUs")
    p.add_argument("--binary", type=Path, default=ROOT / "target" / "release" / OURS)
    p.add_argument("--out", type=Path, default=ROOT / "benches" / out)
    p.add_argument("--samples-out", type=Path, help="every sample as JSON")
    p.add_argument("--cache", type=Path, default=Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ucag-peers")
    p.add_argument("--venv", type=Path, help="default: CACHE/venv")
    p.set_defaults(no_process=False, without_ours=False)
    return p


def entered(p):
    """The options, inside the virtual environment, with a binary and a folder of this run alone."""
    o = p.parse_args()
    o.cache, o.venv, o.binary = o.cache.resolve(), (o.venv or o.cache / "venv").absolute(), o.binary.resolve()
    enter_environment(o.venv)
    assert o.without_ours or o.binary.exists(), f"{o.binary} is missing: cargo build --release, or --without-ours"
    o.scratch = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, o.scratch, ignore_errors=True)
    return o


def enter_environment(venv):
    """Makes the virtual environment where it is missing and goes on inside it."""
    python = venv / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "-r", HERE / "requirements.txt"], check=True)
    if Path(sys.prefix) != venv:
        os.execv(python, [str(python), "-B", *sys.argv])


def busy_seconds():
    """CPU time of all processes since boot."""
    fields = [int(v) for v in Path("/proc/stat").read_text().split("\n")[0].split()[1:9]]
    return (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def measured(command, threads):
    """Runs a process alone: its output, wall seconds, peak MiB, and the share of the CPUs that others took meanwhile."""
    limits = {k: str(threads) for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")}
    before, start = busy_seconds(), time.perf_counter()
    with tempfile.TemporaryFile("w+") as errors:
        child = subprocess.Popen([str(c) for c in command], stdout=subprocess.PIPE, stderr=errors, text=True,
                                 env=os.environ | limits | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONWARNINGS": "ignore"})
        text = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode:
            errors.seek(0)
            raise SystemExit(f"{' '.join(map(str, command))}: exit {child.returncode}\n{errors.read()[-2000:]}")
    others = (busy_seconds() - before - usage.ru_utime - usage.ru_stime) / (wall * os.cpu_count())
    return text, wall, usage.ru_maxrss / 1024, max(others, 0.0)


def prepare(o, *what):
    subprocess.run([sys.executable, "-B", HERE / "prepare.py", o.cache, *what], check=True)


def peer_group(o, script, arguments, samples, out):
    """One process of a peer: seconds of its warm samples or of its only one, wall seconds, peak MiB, share of others."""
    command = [o.venv / "bin" / "python", HERE / script, o.cache, *arguments, samples, o.threads, out]
    text, wall, peak, others = measured(command, o.threads)
    times = json.loads(text.splitlines()[-1])
    return times["warm_s"] or [times["cold_s"]], wall, peak, others


def our_group(o, network, photo, arguments, samples, out):
    """One process over copies of the photo; the first of them is cold and dropped."""
    folder, maps = o.scratch / "ours" / "in", o.scratch / "ours" / "out"
    shutil.rmtree(folder.parent, ignore_errors=True)
    folder.mkdir(parents=True)
    maps.mkdir()
    for i in range(1 + samples):
        shutil.copy(o.cache / f"{photo}.png", folder / f"p{i:04}.png")
    command = [o.binary, "explain", folder, "--weights", o.cache / f"{network}.safetensors", *arguments, "--threads", o.threads,
               "--emit", "npy", "--out", maps, "--quiet"]
    if samples == 0:
        # JSON would hash the weights file, which no peer does.
        _, wall, peak, others = measured(command, o.threads)
        shutil.copy(next(maps.glob("*.npy")), out)
        return [wall], wall, peak, others
    text, wall, peak, others = measured([*command, "--json"], o.threads)
    rows = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    assert len(rows) == 1 + samples, f"{len(rows)} JSON objects for {1 + samples} photos"
    shutil.copy(sorted(maps.glob("*.npy"))[-1], out)
    return [row["timings_ms"]["explain"] / 1000 for row in rows[1:]], wall, peak, others


def error(result, truth):
    """Largest difference from the float64 reference over the reference's range."""
    import numpy as np
    got, want = np.load(result).squeeze().astype(np.float64), np.load(truth)
    assert got.shape == want.shape, (got.shape, want.shape)
    return float(abs(got - want).max() / np.ptp(want))


def compare(o, network, photo, job):
    _, peers, samples, arguments = JOBS[job]
    groups = {e: partial(peer_group, o, "worker.py", [e, network, photo, job]) for e in peers if not o.engines or e in o.engines}
    if not o.without_ours:
        groups[OURS] = partial(our_group, o, network, photo, arguments)
        if photo == "4x3" and job.endswith("ucag"):
            groups[ALIGNED] = partial(our_group, o, network, photo, [*arguments, "--grid-align"])
    truth = o.cache / f"{network}-{photo}-{job}.npy"
    return alternate(o, f"{network} {photo} {job}", groups, o.rounds, o.samples or samples, lambda _engine, out: error(out, truth))


def undisturbed(o, group, samples, out):
    """Again while other processes take more than their share of the CPUs, five times at most."""
    for _ in range(5):
        out.unlink(missing_ok=True)
        result = group(samples, out)
        if result[3] <= o.most:
            break
        time.sleep(20)
    return result


def alternate(o, title, groups, rounds, samples, judge):
    """All engines in turn: {engine: {warm, process: [[seconds per round]], peak: {warm, process}, error, others}}.

    groups: {engine: (samples, out) -> as `peer_group`}; judge: (engine, out) -> error of the map that it has written."""
    engines, out = list(groups), o.scratch / "map.npy"
    results = {e: {"warm": [], "process": [], "peak": {"warm": 0.0, "process": 0.0}, "error": 0.0, "others": []} for e in engines}
    for turn in range(rounds):
        for engine in engines[turn % len(engines):] + engines[:turn % len(engines)]:
            r = results[engine]
            for cold in ([] if o.no_process else [True]) + [False]:
                warm, wall, peak, others = undisturbed(o, groups[engine], 0 if cold else samples, out)
                what = "process" if cold else "warm"
                r[what].append([wall] if cold else warm)
                r["peak"][what], r["error"] = max(r["peak"][what], peak), max(r["error"], judge(engine, out))
                r["others"].append(others)
                print(f"{title} round {turn + 1} {engine}: "
                      f"{'process ' + format(wall, '.2f') if cold else 'warm ' + format(statistics.median(warm), '.3f')} s, "
                      f"{peak:.0f} MiB, others {others:.0%}", flush=True)
    return results


def seconds(value):
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"


def ratio(theirs, ours):
    """Median of the rounds' ratios, and their range."""
    by_round = [statistics.median(t) / statistics.median(o) for t, o in zip(theirs, ours)]
    return f"{statistics.median(by_round):.2f} ({min(by_round):.2f} to {max(by_round):.2f})"


def table(results, parameters):
    lines = ["| engine | measured | min | median | max | n | times ours | peak MiB | beyond weights | difference |", "|---|---|---|---|---|---|---|---|---|---|"]
    for what, title in (("warm", "warm job"), ("process", "whole process")):
        rows = {e: r for e, r in results.items() if r[what]}
        for engine, r in sorted(rows.items(), key=lambda item: statistics.median(sum(item[1][what], []))):
            flat, times = sum(r[what], []), ratio(r[what], rows[OURS][what]) if OURS in rows and engine != OURS else ""
            lines.append(f"| {f'**{engine}**' if engine.startswith(OURS) else engine} | {title} | {seconds(min(flat))} | {seconds(statistics.median(flat))} | "
                         f"{seconds(max(flat))} | {len(flat)} | {times} | {r['peak'][what]:.0f} | {r['peak'][what] - parameters * 4 / 2**20:.0f} | {r['error']:.1e} |")
    return lines


def machine(o, packages):
    from importlib.metadata import version
    cpu = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().split("\n") if line.startswith("model name")), "")
    memory = int(Path("/proc/meminfo").read_text().split()[1]) / 2**20
    ours = "" if o.without_ours else subprocess.run([o.binary, "--version"], capture_output=True, text=True).stdout.strip() + ", "
    return [f"- Machine: {cpu or platform.machine()}, {os.cpu_count()} CPUs, {memory:.0f} GiB; {o.threads} threads everywhere.",
            f"- Versions: {ours}" + ", ".join(f"{p} {version(p)}" for p in packages) + f", Python {platform.python_version()}.",
            f"- {o.rounds} round(s), engines in alternation, one process per engine and round."]


def disturbance(others):
    return f"- CPU taken by other processes during a group: median {statistics.median(others):.1%}, most {max(others):.1%}."


def write(path, topic, script, network, lines):
    """Replaces the network's block in the file, or appends it."""
    begin, end = (f"<!-- {topic} {network}: {edge} (written by benches/peers/{script}) -->" for edge in ("begin", "end"))
    lines = [f"## {network}", "", *lines]
    text = path.read_text() if path.exists() else f"# {topic.capitalize()}\n"
    head, found, rest = text.partition(begin)
    tail = rest.partition(end)[2] if found else "\n"
    path.write_text(f"{head if found else head.rstrip() + chr(10) * 2}{begin}\n" + "\n".join(lines) + f"\n{end}{tail}")


def main():
    o = options()
    everything = {}
    for network in o.networks:
        sections, others = [], []
        block = network if o.jobs == USUAL else f"{network}: {', '.join(o.jobs)}"
        for photo in o.photos:
            for job in o.jobs:
                prepare(o, network, photo, job)
                results = compare(o, network, photo, job)
                parameters = json.loads((o.cache / f"{network}.json").read_text())["parameters"]
                sections += ["", f"### {network}, {JOBS[job][0]}, {photo} photo", "", *table(results, parameters)]
                everything[f"{network}/{photo}/{job}"] = results
                others += sum((r["others"] for r in results.values()), [])
                write(o.out, "peers", "run.py", block, [*machine(o, PACKAGES), *LEGEND, disturbance(others), *sections])
                if o.samples_out:
                    o.samples_out.write_text(json.dumps(everything, indent=1))


if __name__ == "__main__":
    main()
