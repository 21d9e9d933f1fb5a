"""Runs every check and measurement on this machine's GPU, each within its own time, and writes the report.

What fails or finds no time left says so in the report; the rest goes on. The report is rewritten after each part."""

import argparse
import datetime
import importlib.util
import json
import os
import platform
import re
import signal
import sys
import tarfile
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

import report
from machine import built_at, cublas_folders, frame, has_gpu, sanitizer_program
from process import Failed, NotRun, Shell, tail

HERE, ROOT = Path(__file__).resolve().parent, Path(__file__).resolve().parents[2]
# Parts that the others build on.
ALWAYS = ("machine", "ceilings", "weights")


@dataclass
class Settings:
    """What is run. `tests` and `small` (those for compute-sanitizer) are found in `TARGET::TEST`."""

    device: str = "cuda"
    dtype: str = "float16"
    networks: tuple = ("resnet50", "vgg16")
    size: int = 224
    grid: int = 6
    rounds: int = 4
    frames: int = 200
    peer_frames: int = 60
    batches: tuple = (4, 6, 9, 12, 18, 36)
    tests: str = r"^(cuda|ops|layers|instructions|fused|heads)::|^averaged::inputs|cuda|gpu"
    small: str = r"^cuda::(patches|pixels|folded)|^fused::|^ops::(linear|.*windows)|^layers::.*pool"

    @property
    def options(self):
        """Of ucag-fast, where the setting is not the paper's."""
        return [] if self.size == 224 else ["--size", self.size, "--grid", self.grid]


DRY = Settings("cpu", "float32", ("resnet18",), 96, 3, 2, 2, 2, (4, 9), r"^grid::", r"^grid::release")


class Run:
    def __init__(self, o, settings, archive, work):
        self.s, self.archive, self.work, self.o = settings, archive, work, o
        self.manifest = json.loads((archive / "manifest.json").read_text())
        self.start, self.parts = time.monotonic(), []
        self.data = {"manifest": self.manifest, "settings": asdict(settings), "dry_run": o.dry_run, "only": o.only}
        self.shell, self.paths, self.workers = Shell(o.log), None, []
        self.ours = archive / self.manifest["bin"]
        libraries = [str(p) for p in cublas_folders()] + os.environ.get("LD_LIBRARY_PATH", "").split(":")
        self.env = {"LD_LIBRARY_PATH": ":".join(filter(None, libraries)), "RUST_BACKTRACE": "1"}
        # A test that finds no device must fail here, not be skipped.
        self.test_env = self.env | ({} if o.dry_run else {"UCAG_TEST_CUDA": "required"})
        self.torch_env = {"TORCHINDUCTOR_CACHE_DIR": str(work / "inductor"), "TRITON_CACHE_DIR": str(work / "triton")}

    def left(self):
        return self.o.budget - (time.monotonic() - self.start)

    def part(self, name, limit, least, function):
        """Runs one part within `limit` seconds, if `least` are left."""
        if self.o.only and name not in ALWAYS and not any(word in name for word in self.o.only):
            return
        entry, start = {"name": name, "state": "ok", "text": ""}, time.monotonic()
        print(f"{name} ...", end=" ", flush=True)
        try:
            if self.left() < least:
                raise NotRun("time")
            entry["text"] = function(min(limit, self.left())) or ""
        except NotRun as error:
            entry.update(state="not run", text=str(error))
        except Failed as error:
            entry.update(state="failed", text=str(error))
        except Exception:
            entry.update(state="failed", text=tail(traceback.format_exc()))
        finally:
            self.stop_workers()
            entry["seconds"] = time.monotonic() - start
            self.parts.append(entry)
            self.write()
        first = entry["text"].splitlines()[0] if entry["text"] else ""
        print(f"{entry['state']}{': ' + first if first else ''} ({entry['seconds']:.0f} s)", flush=True)
        self.shell.note(f"== {name}: {entry['state']} {entry['text']}")

    def stop_workers(self):
        while self.workers:
            self.workers.pop().stop()

    def write(self):
        self.data["parts"] = self.parts
        try:
            self.paths = report.write(self.o.out, self.data)
        except Exception:
            print(f"the report is not whole\n{traceback.format_exc()}", file=sys.stderr)

    # Parts. Each takes its seconds and returns a line for the report.

    def machine(self, limit):
        d = self.data
        d["date"], d["host"] = datetime.date.today().isoformat(), platform.machine()
        d["cores"] = len(os.sched_getaffinity(0))
        if self.s.device == "cuda":
            keys = ["name", "driver_version", "memory.total", "compute_cap", "vbios_version"]
            text = self.shell.call(["nvidia-smi", f"--query-gpu={','.join(keys)}", "--format=csv,noheader"], limit)
            d["gpu"] = dict(zip(keys, (v.strip() for v in text.splitlines()[0].split(","))))
            self.shell.try_call(["nvidia-smi"], limit)
        d["ours"] = self.shell.call([self.ours, "--version"], limit, self.env).strip()
        status, text, _ = self.shell.try_call([self.ours, "devices"], limit, self.env)
        d["devices"] = tail(text, 10)
        return d["ours"]

    def ceilings(self, limit):
        if self.s.device != "cuda":
            raise NotRun("no GPU")
        text = self.shell.call([sys.executable, HERE / "peers.py", "ceilings"], limit, self.torch_env)
        self.data["ceilings"] = c = json.loads(text.splitlines()[-1])
        return f"{c['flops'] / 1e12:.0f} TFLOP/s fp16, {c['bytes'] / 1e12:.2f} TB/s"

    def weights(self, limit):
        text = self.shell.call([sys.executable, HERE / "weights.py", self.work / "weights", *self.s.networks], limit)
        frame(self.archive / "weights" / "photos" / "chelsea.png", self.s.size, self.work / "frame.png")
        return "; ".join(text.split("\n")).strip("; ")

    def tests(self, limit):
        end, results = time.monotonic() + limit, self.data.setdefault("tests", {})
        for target, path, names in self.chosen(self.s.tests):
            if end - time.monotonic() < 3:
                results[target] = {"state": "not run: time", "tests": len(names)}
                continue
            command = [path, "--exact", *names, "--nocapture", "--test-threads", min(12, self.data["cores"])]
            status, text, _ = self.shell.try_call(command, end - time.monotonic(), self.test_env, ROOT)
            counts = re.findall(r"test result: \w+\. (\d+) passed; (\d+) failed; (\d+) ignored", text)
            passed, failed, ignored = (sum(int(c[i]) for c in counts) for i in range(3))
            state = "not finished: time" if status is None else "ok" if status == 0 and passed else "failed"
            results[target] = {
                "state": state,
                "tests": len(names),
                "passed": passed,
                "failed": failed,
                "ignored": ignored,
                "failures": sorted(set(re.findall(r"^test (\S+) \.\.\. FAILED", text, re.MULTILINE))),
                "skipped": len(re.findall(r"\bskipped\b", text, re.IGNORECASE)),
                "emulated": len(re.findall(r"\bemulated\b", text, re.IGNORECASE)),
                "last": "" if state == "ok" else tail(text),
            }
        bad = [target for target, r in results.items() if r["state"] != "ok"]
        if not results:
            raise Failed(f"no test is called `{self.s.tests}`")
        if bad:
            raise Failed(f"{', '.join(bad)}\n" + "\n".join(results[t].get("last", "") for t in bad))
        return f"{sum(r['passed'] for r in results.values())} passed"

    def chosen(self, pattern):
        """[(target, program, tests)] of all tests with the pattern in `TARGET::TEST`."""
        found = []
        for target, path in self.manifest["tests"].items():
            text = self.shell.call([self.archive / path, "--list", "--format", "terse"], 20, self.env)
            names = [line.removesuffix(": test") for line in text.splitlines() if line.endswith(": test")]
            found.append((target, self.archive / path, [n for n in names if re.search(pattern, f"{target}::{n}")]))
        # Those whose oracles take a processor longest come last.
        return sorted((entry for entry in found if entry[2]), key=lambda entry: entry[0] in ("layers", "ops"))

    def sanitizer(self, tool):
        """One test at a time, so that those there is time for count."""

        def run(limit):
            program = sanitizer_program()
            if not program:
                raise NotRun("there is no compute-sanitizer")
            end, bad, results = time.monotonic() + limit, [], self.data.setdefault("sanitizer", {}).setdefault(tool, {})
            options = ["--tool", tool, "--error-exitcode", 9, "--target-processes", "all"]
            for target, path, names in self.chosen(self.s.small):
                for name in names:
                    if end - time.monotonic() < 3:
                        results[f"{target}::{name}"] = "not run: time"
                        continue
                    command = [program, *options, path, "--exact", name, "--nocapture", "--test-threads", 1]
                    status, text, _ = self.shell.try_call(command, end - time.monotonic(), self.test_env, ROOT)
                    summary = re.findall(r"=+ (?:ERROR|RACECHECK) SUMMARY: (.*)", text)
                    verdict = "ok" if status == 0 and summary and " 1 passed" in text else f"exit {status}"
                    state = "not finished: time" if status is None else f"{verdict}: {(summary or ['no summary'])[-1]}"
                    results[f"{target}::{name}"] = state
                    if status is not None and verdict != "ok":
                        bad.append(f"{target}::{name}: {state}\n{tail(text)}")
            if not results:
                raise NotRun(f"no test is called `{self.s.small}`")
            if bad:
                raise Failed("\n".join(bad))
            done = sum(state.startswith("ok") for state in results.values())
            if not done:
                raise Failed("no test finished in its time")
            return f"{done} of {len(results)} tests"

        return run

    def kernels(self, limit):
        if not self.manifest["bench"]:
            raise NotRun("the bench is not in the archive")
        home = self.work / "criterion"
        command = [
            self.archive / self.manifest["bench"],
            "--bench",
            "--noplot",
            "--sample-size",
            10,
            "--warm-up-time",
            0.05,
            "--measurement-time",
            0.15,
        ]
        status, text, _ = self.shell.try_call(command, limit, self.env | {"CRITERION_HOME": str(home)}, self.work)
        self.data["kernels"] = found = report.kernels(home, self.data.get("ceilings"))
        stopped = f", stopped after {limit:.0f} s" if status is None else ""
        if status or not found:
            raise Failed(f"exit {status}, {len(found)} cases\n{tail(text)}")
        return f"{len(found)} cases{stopped}"

    def bench(self, network, frames, limit, *options):
        """What `ucag-fast bench` says."""
        command = [self.ours, "bench", self.work / "frame.png", "--weights", self.weight_file(network), "--method"]
        command += ["grad-cam", "--device", self.s.device, "--frames", frames, *options, *self.s.options, "--json"]
        text = self.shell.call(command, limit, self.env)
        try:
            said = json.loads(text[text.index("{") : text.rindex("}") + 1])
            assert said["frames"] and all(said["latency_ms"][q] > 0 for q in ("p50", "p90", "p99", "max"))
        except (ValueError, KeyError, TypeError, AssertionError):
            raise Failed(f"not the JSON object that is expected\n{tail(text)}") from None
        return said

    def weight_file(self, network):
        return self.work / "weights" / f"{network}.safetensors"

    def duel(self, network, groups, key, setup):
        def run(limit):
            from duel import Duel

            duel = Duel(self, network, limit, setup)
            self.data.setdefault("duels", {})[key] = duel.found
            return duel.fight(groups)

        return run

    def sweep(self, network):
        def run(limit):
            end, rows = time.monotonic() + limit, self.data.setdefault("sweep", {}).setdefault(network, {})
            for batch in self.s.batches:
                if end - time.monotonic() < 3:
                    raise Failed(f"stopped before batch {batch}: time")
                rows[batch] = self.bench(network, self.s.peer_frames, end - time.monotonic(), "--batch", batch)
            return ""

        return run

    def all(self):
        first, *others = self.s.networks
        self.part("machine", 30, 0, self.machine)
        self.part("ceilings", 40, 10, self.ceilings)
        self.part("weights", 60, 5, self.weights)
        self.part("tests", 110, 5, self.tests)
        groups = [["eager", "graphs"], ["graphs-fused"]]
        for network in self.s.networks:
            self.part(f"{network} beside PyTorch", 120, 15, self.duel(network, groups, network, 90))
        self.part(f"{first}: batches", 40, 8, self.sweep(first))
        self.part("memcheck", 45, 10, self.sanitizer("memcheck"))
        self.part("kernels", 90, 10, self.kernels)
        self.part("racecheck", 45, 10, self.sanitizer("racecheck"))
        for network in self.s.networks:
            self.part(
                f"{network} beside torch.compile", 200, 40, self.duel(network, [["compile"]], f"{network} compile", 180)
            )
        for network in others:
            self.part(f"{network}: batches", 40, 8, self.sweep(network))


def unpacked(work):
    """The folder with manifest.json: this script's own, or the archive's."""
    if (ROOT / "manifest.json").exists():
        return ROOT
    archive = ROOT / "target" / "gpu-check" / "gpu-check.tar.xz"
    if not archive.exists():
        raise SystemExit(f"{archive} is missing: scripts/gpu-check pack")
    with tarfile.open(archive) as tar:
        tar.extractall(work, filter="data")
    return work / "gpu-check"


def main():
    p = argparse.ArgumentParser(prog="gpu-check run", description=__doc__)
    p.add_argument(
        "--dry-run", action="store_true", help="on the CPU with small settings: tries the script, measures nothing"
    )
    p.add_argument("--budget", type=float, default=510, metavar="S", help="seconds in all [510]")
    p.add_argument("--out", type=Path, metavar="DIR", help="folder of the report [benches/results]")
    p.add_argument("--log", type=Path, metavar="FILE", help="everything that was printed [run.log in target/gpu-check]")
    p.add_argument(
        "--only",
        metavar="WORD,...",
        default="",
        help="parts with one of these in their names, such as compile or memcheck",
    )
    p.add_argument("--networks", metavar="NAME,...", help="instead of resnet50,vgg16")
    p.add_argument("--tests", metavar="REGEX", help="found in TARGET::TEST of those that are run on the device")
    p.add_argument("--small", metavar="REGEX", help="the same for compute-sanitizer")
    o = p.parse_args()
    if not o.dry_run and not has_gpu():
        print("gpu-check: nvidia-smi finds no GPU here; --dry-run tries the script on the CPU", file=sys.stderr)
        sys.exit(2)
    missing = [name for name in ("numpy", "torch", "PIL", "safetensors") if importlib.util.find_spec(name) is None]
    if missing:
        print(f"gpu-check: {sys.executable} lacks {', '.join(missing)}; $PYTHON chooses another", file=sys.stderr)
        sys.exit(2)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    o.only = [word for word in o.only.split(",") if word]
    settings = DRY if o.dry_run else Settings()
    settings.networks = tuple(o.networks.split(",")) if o.networks else settings.networks
    settings.tests, settings.small = o.tests or settings.tests, o.small or settings.small
    kept = ROOT / "target" / "gpu-check"
    o.out = o.out or (kept / "dry-run" if o.dry_run else ROOT / "benches" / "results")
    o.log = o.log or kept / "run.log"
    for folder in (o.out, o.log.parent):
        folder.mkdir(parents=True, exist_ok=True)
    o.log.unlink(missing_ok=True)
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as work:
        run = Run(o, settings, unpacked(Path(work)), Path(work))
        with built_at(Path(run.manifest["root"]), ROOT, run.ours):
            try:
                run.all()
            finally:
                run.stop_workers()
    print(*(run.paths or []), o.log, sep="\n")
    sys.exit(1 if any(part["state"] == "failed" for part in run.parts) else 0)


if __name__ == "__main__":
    main()
