"""Times every method of ucag-fast beside the library that has it, whole picture and UCAG, and writes benches/methods.md.

    python3 benches/peers/methods.py --rounds 3 --most 0.1

Where several libraries have a method, a round of the whole picture tells which is the quickest; that one is the peer."""

import json
import shutil
import statistics
import subprocess
from functools import partial

from run import HERE, OURS, alternate, disturbance, entered, machine, our_group, parser, peer_group, prepare, ratio, seconds, split, write

PHOTO = "square"
PACKAGES = ("captum", "zennit", "grad-cam", "torchcam", "torch", "torchvision", "numpy")
# These run the network dozens of times: fewer patches and samples, and under UCAG no job is dropped.
HEAVY = ("smoothgrad", "integrated-gradients", "cameras")
SETTINGS = {"lrp-composite": ["--set", "rules=first=w2, conv=z-plus, linear=epsilon"]}
LEGEND = ["- Job: decoded photo (224×224) to map of its top class, in a warm process whose first job is dropped, but not where the table names "
          "a grid. *peer / ours*: median of the rounds' ratios of time (smallest to largest). *MiB*: peak resident memory of the process, *beyond weights* less 4 bytes per parameter.",
          "- *agreement*: Pearson correlation of the peer's map with ours, the smallest of all rounds. –: no library has the method.",
          "- Peers run on the same weights, folded and frozen; captum has to be told the top class and runs the network once more for it. "
          "Under UCAG they are given the patches, and unfold and fold are numpy products."]


def options():
    p = parser(__doc__, 3, "methods.md")
    p.add_argument("--jobs", type=split, default=["plain", "ucag"], help="of plain,ucag")
    p.add_argument("--methods", type=split, default=[], help="only these")
    p.add_argument("--grid", type=int, default=3, help=f"patches along each axis under UCAG; at most 2 for {', '.join(HEAVY)}")
    p.set_defaults(no_process=True)
    return entered(p)


def methods(o):
    """All names that the binary lists, so that none can be forgotten."""
    text = subprocess.run([o.binary, "methods"], capture_output=True, text=True, check=True).stdout
    names = [line.split()[0] for line in text.splitlines()[1:] if not line.startswith(" ")]
    assert {*o.methods} <= {*names}, f"methods are {', '.join(names)}"
    return o.methods or names


def correlation(one, other):
    import numpy as np
    return float(np.corrcoef(*(np.load(path).astype(np.float64).ravel() for path in (one, other)))[0, 1])


def measured(o, network, method, grid, libraries, rounds):
    """Ours first, as its map judges all others."""
    mode = ["--grid", grid] if grid else ["--plain"]
    groups = {OURS: partial(our_group, o, network, PHOTO, ["--method", method, *SETTINGS.get(method, []), *mode])}
    groups |= {name: partial(peer_group, o, "library.py", [name, network, PHOTO, method, grid]) for name in libraries}
    truth = o.scratch / "ours.npy"

    def judge(engine, out):
        if engine == OURS:
            shutil.copy(out, truth)
        return 1 - correlation(out, truth)

    samples = 0 if grid and method in HEAVY else o.samples or (1 if grid or method in HEAVY else 5)
    return alternate(o, f"{network} {method} grid {grid}", groups, rounds, samples, judge)


def libraries(o):
    """Library -> methods. Asked in another process: Linux counts a parent's memory to the peak of its children."""
    command = [o.venv / "bin" / "python", "-B", HERE / "library.py"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def luck(o, network):
    """How far two seeds of ours agree where draws are random."""
    maps = [o.scratch / f"seed{seed}.npy" for seed in (0, 1)]
    for seed, out in enumerate(maps):
        our_group(o, network, PHOTO, ["--method", "smoothgrad", "--set", f"seed={seed}", "--plain"], 0, out)
    return f"other random draws; two seeds of ours agree by {correlation(*maps):.2f} on the whole picture"


# Method -> (options, network) -> what the table has to say of it.
NOTES = {"smoothgrad": luck,
         "grad-cam++": lambda _o, _network: "torchcam has another method of that name: it divides a copy, and its coefficient is never applied",
         "full-grad": lambda _o, _network: "pytorch-grad-cam stretches every channel of every layer to 0..1, not every layer",
         "lrp-composite": lambda _o, _network: f"`{SETTINGS['lrp-composite'][1]}`"}


def quickest(o, network, method, known):
    """The peer in a list, which is empty where no library has the method, and what the trial said."""
    names = [name for name, found in known.items() if method in found]
    if len(names) < 2:
        return names, None
    results = measured(o, network, method, 0, names, 1)
    times = {name: statistics.median(results[name]["warm"][0]) for name in names}
    names.sort(key=times.get)
    return names[:1], f"{method} " + ", ".join(f"{name} {seconds(times[name])}" for name in names)


def row(name, results, parameters):
    middle = {engine: seconds(statistics.median(sum(r["warm"], []))) for engine, r in results.items()}
    weights = parameters * 4 / 2**20
    peak = {engine: f"{r['peak']['warm']:.0f} ({r['peak']['warm'] - weights:.0f})" for engine, r in results.items()}
    peer = next((engine for engine in results if engine != OURS), None)
    if peer is None:
        return f"| {name} | – | {middle[OURS]} | – | – | {peak[OURS]} | – | – |"
    times = ratio(results[peer]["warm"], results[OURS]["warm"])
    return f"| {name} | {peer} | {middle[OURS]} | {middle[peer]} | {times} | {peak[OURS]} | {peak[peer]} | {1 - results[peer]['error']:.4f} |"


def block(o, rows, trials, notes, others):
    titles = {"plain": "whole picture", "ucag": f"UCAG, {o.grid}×{o.grid} patches"}
    lines = [*machine(o, PACKAGES), *LEGEND, disturbance(others)]
    if trials:
        lines.append(f"- Libraries with the same method, whole picture, one round: {'; '.join(trials)}.")
    lines += [f"- `{name}`: {note}." for name, note in notes.items()]
    for job, found in rows.items():
        lines += ["", f"### {titles[job]}", "", "| method | peer | ours | peer's | peer / ours | our MiB (beyond weights) | peer's | agreement |",
                  "|---|---|---|---|---|---|---|---|", *found.values()]
    return lines


def main():
    o = options()
    known, everything = libraries(o), {}
    for network in o.networks:
        prepare(o, network, PHOTO)
        parameters = json.loads((o.cache / f"{network}.json").read_text())["parameters"]
        rows, trials, notes, others = {job: {} for job in o.jobs}, [], {}, []
        for method in methods(o):
            peer, trial = quickest(o, network, method, known)
            trials += [trial] if trial else []
            if method in NOTES:
                notes[method] = NOTES[method](o, network)
            for job in o.jobs:
                grid = 0 if job == "plain" else min(o.grid, 2) if method in HEAVY else o.grid
                results = everything[f"{network}/{method}/{job}"] = measured(o, network, method, grid, peer, o.rounds)
                rows[job][method] = row(f"`{method}`" + (f", {grid}×{grid}" if grid and method in HEAVY else ""), results, parameters)
                others += sum((r["others"] for r in results.values()), [])
            # Some methods alone do not replace the block of all.
            name = f"{network}: {', '.join(o.methods)}" if o.methods else network
            write(o.out, "methods", "methods.py", name, block(o, rows, trials, notes, others))
            if o.samples_out:
                o.samples_out.write_text(json.dumps(everything, indent=1))


if __name__ == "__main__":
    main()
