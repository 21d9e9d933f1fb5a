"""Writes benches/cpu.md: what each class of layers takes on this CPU, beside the least that it could take.

    cargo build --release && python3 benches/cpu.py --weights NAME=FILE ...
"""

import argparse
import json
import subprocess
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TARGET = ROOT / "benches" / "cpu.md"
BEGIN, END = "<!-- tables: begin (written by benches/cpu.py) -->", "<!-- tables: end -->"
# Job -> options.
JOBS = {"UCAG + Grad-CAM": [], "UCAG + LRP EpsilonPlus, 4 patches": ["--method", "lrp-epsilon-plus", "--grid", "2"]}


def options():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--weights", nargs="+", required=True, metavar="NAME=FILE")
    p.add_argument("--photo", type=Path, help="default: the picture that `bench` makes, 224x224")
    p.add_argument("--binary", type=Path, default=ROOT / "target" / "release" / "ucag-fast")
    return p.parse_args()


def measure(o, weights, job):
    command = [o.binary, "bench", *([o.photo] if o.photo else []), "--weights", weights, "--frames", "3", "--warmup", "1",
               "--layers", "--json", *JOBS[job]]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def table(report):
    """Layers added up by stage and operation, those that take the most time first; what takes less than a hundredth together."""
    sums = defaultdict(lambda: [0, 0.0, 0.0, 0.0, 0.0])
    for layer in report["layers"]:
        values = 1, layer["ms"], layer["floor_ms"], layer["gflop"], layer["megabytes"]
        group = sums[layer["stage"], layer["operation"]]
        group[:] = [a + b for a, b in zip(group, values)]
    whole = sum(group[1] for group in sums.values())
    small = [key for key, group in sums.items() if group[1] < whole / 100]
    for key in small:
        group = sums.pop(key)
        sums["", "others"][:] = [a + b for a, b in zip(sums["", "others"], group)]
    lines = ["| stage | operation | layers | ms | of all | least ms | ratio | GFLOP/s | GB/s |", "|---|---|---|---|---|---|---|---|---|"]
    for (stage, operation), (count, ms, floor, gflop, megabytes) in sorted(sums.items(), key=lambda item: -item[1][1]):
        rate = f"{1e3 * gflop / ms:.0f}" if gflop else ""
        lines.append(f"| {stage} | {operation} | {count} | {ms:.1f} | {ms / whole:.0%} | {floor:.1f} | {ms / floor:.2f} | {rate} | {megabytes / ms:.1f} |")
    return lines


def main():
    o = options()
    lines = []
    for name, weights in (text.split("=", 1) for text in o.weights):
        for job in JOBS:
            report = measure(o, weights, job)
            device = report["device"]
            lines += ["", f"### {name}, {job}", "",
                      f"{device['name']}; at best {device['flops'] / 1e9:.0f} GFLOP/s and {device['bytes'] / 1e9:.0f} GB/s, as measured. "
                      f"Median of an explanation: {report['latency_ms']['p50']:.0f} ms; batches of {report['batch']}.", "", *table(report)]
    head, _, rest = TARGET.read_text().partition(BEGIN)
    TARGET.write_text("\n".join([head + BEGIN, *lines, "", END]) + rest.partition(END)[2])


if __name__ == "__main__":
    main()
