"""From raw results to the Markdown report, the raw JSON and the kernels' fractions of their floors."""

import json
import re
from pathlib import Path
from statistics import median

from process import headline

# Frame to map of ResNet-50 on an H100: milliseconds, p99 over p50, times PyTorch's best.
BAR = {"p50": 4.0, "p99": 1.10, "ratio": 3.0}

JOB = """
The job: RGB frame of {size}×{size} on the host → signed map of Grad-CAM with UCAG on the host ({patches} patches, mode
`paper`, class chosen on the whole picture), seeded weights, {dtype}. Engines in alternation; *times ours*: median of
the rounds' ratios of p50. Peers have batch norm folded, unfold and fold as matrix products, the patches per call that
were quickest, and a backward pass only where there is no closed form (VGG-16). Maps are compared with PyTorch's in
float32 without TF32.
"""


def kernels(home, ceilings):
    """Criterion's results: [{kernel, case, ns, bytes, flops, floor_ns, floor, fraction_of_floor}].

    A benchmark's group is the kernel; `Bytes` are moved bytes, `Elements` floating-point operations."""
    rows = []
    for path in sorted(home.glob("**/new/benchmark.json")):
        about, estimates = json.loads(path.read_text()), path.with_name("estimates.json")
        if not estimates.exists():
            continue
        work = about.get("throughput") or {}
        both = work.get("ElementsAndBytes", {})
        moved = work.get("Bytes") or work.get("BytesDecimal") or both.get("bytes")
        row = {
            "kernel": about["group_id"],
            "case": "/".join(filter(None, (about.get("function_id"), about.get("value_str")))),
            "ns": json.loads(estimates.read_text())["median"]["point_estimate"],
            "bytes": moved,
            "flops": work.get("Elements") or both.get("elements"),
        }
        if ceilings:
            # Tensor cores do half as many products of TF32 as of fp16.
            rates = {**ceilings, "flops": ceilings["flops"] / (2 if "tf32" in row["kernel"] else 1)}
            floors = {what: row[what] / rates[what] * 1e9 for what in ("bytes", "flops") if row[what]}
            if floors:
                row["floor"] = max(floors, key=floors.get)
                row["floor_ns"] = floors[row["floor"]]
                row["fraction_of_floor"] = row["floor_ns"] / row["ns"]
        rows.append(row)
    return rows


def per_kernel(rows):
    """One entry a kernel: its largest case, the one that costs most at the floor."""
    largest = {}
    for row in rows:
        if "floor_ns" in row and row["floor_ns"] >= largest.get(row["kernel"], row)["floor_ns"]:
            largest[row["kernel"]] = row
    return {
        k: {"fraction_of_floor": round(r["fraction_of_floor"], 4), "floor": r["floor"], "case": r["case"]}
        for k, r in sorted(largest.items())
    }


# Markdown.


def quantile(values, q):
    """Linear between the two nearest."""
    values, at = sorted(values), q * (len(values) - 1)
    low, high = values[int(at)], values[min(int(at) + 1, len(values) - 1)]
    return low + (high - low) * (at - int(at))


def table(head, rows):
    return [
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
        *("| " + " | ".join(map(str, r)) + " |" for r in rows),
        "",
    ]


def number(value, digits=2):
    return "" if value is None else f"{value:.{digits}f}"


def spread(values, digits=2):
    """Median (smallest to largest)."""
    if not values:
        return ""
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def gib(count):
    return f"{count / 2**30:.2f}" if count else ""


def peer_rounds(duel):
    """{engine: [p50 of each round]} of those that ran."""
    return {n: [median(r) for r in p["rounds"]] for n, p in duel["peers"].items() if p["rounds"]}


def ratios(duel):
    """{engine: [its p50 over ours, round by round]}."""
    ours = [r["latency_ms"]["p50"] for r in duel["ours"]]
    return {n: [p / o for p, o in zip(rounds, ours)] for n, rounds in peer_rounds(duel).items() if ours}


def duel_lines(title, duel):
    lines, rows, times = [f"## {title}"], [], ratios(duel)

    def agree(name):
        found = duel.get("maps", {}).get(name) or {}
        return [number(found.get("spearman"), 5), f"{found['nmse']:.1e}" if found.get("nmse") is not None else ""]

    if duel["ours"]:
        latency = [r["latency_ms"] for r in duel["ours"]]
        memory = [r.get("memory_bytes") or 0 for r in duel["ours"]]
        rows.append(
            [
                "**ucag-fast**",
                duel["ours"][-1].get("batch", ""),
                spread([v["p50"] for v in latency]),
                *(number(median(v[q] for v in latency)) for q in ("p90", "p99")),
                number(max(v["max"] for v in latency)),
                sum(r["frames"] for r in duel["ours"]),
                "",
                gib(max(memory)),
                *agree("ours"),
            ]
        )
    for name, p50 in peer_rounds(duel).items():
        peer = duel["peers"][name]
        pooled = sum(peer["rounds"], [])
        rows.append(
            [
                f"PyTorch {name}",
                peer.get("chunk", ""),
                spread(p50),
                *(number(quantile(pooled, q)) for q in (0.9, 0.99)),
                number(max(pooled)),
                len(pooled),
                spread(times.get(name, [])),
                gib(peer.get("memory_bytes")),
                *agree(name),
            ]
        )
    lines += table(
        [
            "engine",
            "patches per call",
            "p50 ms (rounds)",
            "p90",
            "p99",
            "max",
            "frames",
            "times ours (rounds)",
            "GiB",
            "Spearman",
            "NMSE",
        ],
        rows,
    )
    for name, peer in duel["peers"].items():
        if peer["ready"] and duel.get("class") is not None and peer["k"] != duel["class"]:
            lines.append(
                f"- {name} explains class {peer['k']}, the reference {duel['class']}: their maps are not of one class."
            )
    clocks = [c["clocks.sm"] for c in duel["clocks"] if "clocks.sm" in c]
    if clocks:
        heat = [c["temperature.gpu"] for c in duel["clocks"] if "clocks.sm" in c]
        lines.append(f"- SM clock right after each round: {spread(clocks, 0)} MHz; {spread(heat, 0)} °C.")
    lines += [f"- {n}: {headline(t)}" for n, t in duel["failures"].items()]
    return lines + stage_lines(duel["ours"])


def stage_lines(ours):
    if not ours or not ours[-1].get("stages"):
        return []
    rows, first = [], [r["first_frame_ms"] for r in ours if r.get("first_frame_ms") is not None]
    for i, stage in enumerate(ours[-1]["stages"]):
        ms, floor = median(r["stages"][i]["ms"] for r in ours), stage.get("floor_ms")
        rows.append(
            [
                stage["name"],
                number(ms, 3),
                number(floor, 3),
                stage.get("bound") or "",
                number(ms / floor) if floor else "",
            ]
        )
    return [
        "",
        f"Stages of ucag-fast (first frame: {spread(first)} ms):",
        *table(["stage", "ms", "floor ms", "bound by", "times floor"], rows),
    ]


def bar_lines(duels):
    """Whether ResNet-50 reaches the bar."""
    measured = [d for d in duels.values() if d["network"] == "resnet50" and d["ours"]]
    if not measured:
        return ["Not measured."]
    latency = [r["latency_ms"] for d in measured for r in d["ours"]]
    p50, tail = median(v["p50"] for v in latency), median(v["p99"] / v["p50"] for v in latency)
    lines = [
        f"- p50 {p50:.2f} ms, aim at most {BAR['p50']:.1f}: {verdict(p50 <= BAR['p50'])}.",
        f"- p99 {tail:.2f} times p50, aim at most {BAR['p99']:.2f}: {verdict(tail <= BAR['p99'])}.",
    ]
    times = {n: r for d in measured for n, r in ratios(d).items()}
    if times:
        best = min(times, key=lambda n: median(times[n]))
        lines.append(
            f"- {spread(times[best])} times faster than PyTorch's best ({best}), aim {BAR['ratio']:.0f}: "
            f"{verdict(median(times[best]) >= BAR['ratio'])}."
        )
    if "compile" not in times:
        lines.append("- torch.compile is not among the peers that ran.")
    return lines


def verdict(reached):
    return "reached" if reached else "**not reached**"


def facts(d):
    gpu, manifest, ceilings, torch = d.get("gpu", {}), d["manifest"], d.get("ceilings") or {}, d.get("torch", {})
    rates = ""
    if ceilings:
        rates = f"{ceilings['flops'] / 1e12:.0f} TFLOP/s (fp16 product of 8192³, fp32 sums), "
        rates += f"{ceilings['bytes'] / 1e12:.2f} TB/s (copy of 2 GiB, bytes read and written)"
    found = {
        "GPU": f"{gpu['name']}, {gpu['memory.total']}, driver {gpu['driver_version']}" if gpu else "",
        "measured here": rates,
        "ucag-fast": f"{d.get('ours', '')}, commit {manifest['commit'][:12]}" + " with changes" * manifest["changed"],
        "peers": ", ".join(f"{k} {v}" for k, v in torch.items()),
        "machine": f"{d.get('host')}, {d.get('cores')} cores",
    }
    return [f"- {name}: {value}" for name, value in found.items() if value]


def markdown(d):
    name = d.get("gpu", {}).get("name", "CPU")
    lines = [f"# {name}, {d.get('date')}", "", "Written by `scripts/gpu-check run`."]
    if d["dry_run"]:
        lines += ["", "**Dry run on a CPU with small settings. It tries the script; no figure here is a result.**"]
    s = d["settings"]
    job = JOB.format(patches=s["grid"] ** 2, **s)
    lines += ["", *facts(d), "", *job.strip().splitlines()]
    duels = d.get("duels", {})
    if not d["dry_run"]:
        lines += ["", "## ResNet-50 against the bar for an H100", "", *bar_lines(duels)]
    for key, duel in duels.items():
        lines += ["", *duel_lines(f"UCAG + Grad-CAM, {key}", duel)]
    for network, rows in d.get("sweep", {}).items():
        cells = [
            [b, *(number(r["latency_ms"][q]) for q in ("p50", "p99")), gib(r.get("memory_bytes"))]
            for b, r in rows.items()
        ]
        lines += ["", f"## Patches per call, {network}", *table(["patches per call", "p50 ms", "p99 ms", "GiB"], cells)]
    if d.get("kernels"):
        cells = [
            [
                r["kernel"],
                r["case"],
                number(r["ns"] / 1e3),
                number(r["floor_ns"] / 1e3) if "floor_ns" in r else "",
                r.get("floor", ""),
                number(r.get("fraction_of_floor")),
            ]
            for r in d["kernels"]
        ]
        lines += [
            "",
            "## Kernels",
            *table(["kernel", "case", "µs", "floor µs", "bound by", "fraction of floor"], cells),
        ]
    if d.get("tests"):
        keys = ("tests", "passed", "failed", "ignored", "skipped", "emulated")
        cells = [
            [n, r["state"], *(r.get(k, "") for k in keys), ", ".join(r.get("failures", []))]
            for n, r in d["tests"].items()
        ]
        lines += [
            "",
            "## Tests",
            *table(["target", "state", *keys, "which failed"], cells),
            "*skipped*, *emulated*: how often the output has the word; on a device it should not.",
        ]
    for tool, results in d.get("sanitizer", {}).items():
        lines += ["", f"## compute-sanitizer {tool}", *table(["test", "result"], results.items())]
    cells = [
        [p["name"], p["state"], p["text"].splitlines()[0] if p["text"] else "", number(p["seconds"], 0)]
        for p in d["parts"]
    ]
    lines += ["", "## Parts", *table(["part", "state", "", "s"], cells)]
    for part in d["parts"]:
        if part["state"] == "failed":
            lines += [f"### {part['name']}: failed", "", "```text", *part["text"].splitlines()[-30:], "```", ""]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"


def without_places(value):
    """The same without entries that say where something lay on the machine."""
    if isinstance(value, dict):
        kept = ((k, v) for k, v in value.items() if not (isinstance(v, str) and v.startswith("/")))
        return {k: without_places(v) for k, v in kept}
    return [without_places(v) for v in value] if isinstance(value, list) else value


def write(out, d):
    """Writes what there is so far; the paths."""
    device = re.sub(r"[^a-z0-9]+", "-", d.get("gpu", {}).get("name", "cpu").lower()).strip("-")
    only = "".join(f"-{word}" for word in d["only"])
    stem = Path(out) / f"gpu-{device}-{d.get('date', 'undated')}{only}"
    paths = [stem.with_name(f"{stem.name}.md"), stem.with_name(f"{stem.name}.json")]
    paths[1].write_text(json.dumps(without_places(d), indent=1))
    paths[0].write_text(markdown(d))
    if fractions := per_kernel(d.get("kernels") or []):
        paths.append(Path(out) / f"kernels-{device}.json")
        paths[2].write_text(json.dumps({"device": d["gpu"]["name"], "kernels": fractions}, indent=1) + "\n")
    return paths
