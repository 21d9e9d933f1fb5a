"""Builds the program, the tests that use a device and the kernel bench with the CUDA backend, and packs them with what
they need."""

import argparse
import json
import lzma
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

from run import DRY, Settings

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "target" / "gpu-check"
BENCH = "kernels"
LIMIT = 60 << 20
# The script itself and the photos. The bundled weights stay out: they are as large as all the rest.
DATA = ["scripts/gpu-check", "scripts/gpu/*.py", "weights/photos/*"]


def git(*command):
    done = subprocess.run(["git", "-C", ROOT, *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def executables(*command):
    """[(kind of target, name, path)] that cargo built."""
    child = subprocess.Popen(["cargo", *command, "--message-format=json"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    found = {}
    for line in child.stdout:
        message = json.loads(line) if line.startswith("{") else {}
        if message.get("reason") == "compiler-message" and message["message"]["level"] == "error":
            print(message["message"]["rendered"])
        if message.get("reason") == "compiler-artifact" and message.get("executable"):
            target, test = message["target"], message["profile"]["test"]
            kind = "unit" if test and target["kind"][0] in ("lib", "bin") else target["kind"][0]
            found[kind, target["name"]] = message["executable"]
    if child.wait():
        raise SystemExit(f"cargo {' '.join(command)}: exit {child.returncode}")
    return [(*key, Path(path)) for key, path in found.items()]


def has_bench():
    done = subprocess.run(
        ["cargo", "metadata", "--no-deps", "--format-version", "1"], cwd=ROOT, stdout=subprocess.PIPE, check=True
    )
    targets = json.loads(done.stdout)["packages"][0]["targets"]
    return any(t["name"] == BENCH and t["kind"] == ["bench"] for t in targets)


def build(cuda):
    """Everything built, as [(kind, name, path)] with kind one of bin, test, bench."""
    options = ["--release", "--locked", *(["--features", "cuda"] if cuda else [])]
    if cuda and not os.environ.get("NVCC"):
        done = subprocess.run([ROOT / "scripts" / "setup-nvcc.sh"], stdout=subprocess.PIPE, text=True, check=True)
        os.environ["NVCC"] = done.stdout.strip()
    built = [b for b in executables("build", *options) if b[0] == "bin"]
    for kind, name, path in executables("test", "--no-run", *options):
        if kind in ("test", "unit"):
            built.append(("test", name if kind == "test" else f"{name} (unit)", path))
    if has_bench():
        built += [
            b for b in executables("bench", "--no-run", *options[1:], "--bench", BENCH) if b[:2] == ("bench", BENCH)
        ]
    else:
        print(f"there is no bench `{BENCH}`: packed without it")
    return built


def uses_device(name, path):
    """Whether a program has tests that are run on the device, or by a dry run."""
    done = subprocess.run([path, "--list", "--format", "terse"], stdout=subprocess.PIPE, text=True, check=True)
    names = [line.removesuffix(": test") for line in done.stdout.splitlines() if line.endswith(": test")]
    wanted = re.compile(f"{Settings.tests}|{DRY.tests}")
    return any(wanted.search(f"{name}::{test}") for test in names)


def stage(built, folder):
    shutil.rmtree(folder, ignore_errors=True)
    manifest = {
        "root": str(ROOT),
        "commit": git("rev-parse", "HEAD"),
        "changed": bool(git("status", "--porcelain")),
        "bin": None,
        "tests": {},
        "bench": None,
    }
    for kind, name, path in built:
        if kind == "test" and not uses_device(name, path):
            continue
        target = folder / kind / name.replace(" (unit)", "-unit")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
        subprocess.run(["strip", target], check=True)
        relative = str(target.relative_to(folder))
        if kind == "test":
            manifest["tests"][name] = relative
        else:
            manifest[kind] = relative
    for pattern in DATA:
        for path in sorted(ROOT.glob(pattern)):
            target = folder / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))


def main():
    p = argparse.ArgumentParser(prog="gpu-check pack", description=__doc__)
    p.add_argument("--without-cuda", action="store_true", help="without the feature `cuda`, to try the script")
    o = p.parse_args()
    built = build(not o.without_cuda)
    staged = ROOT / "target" / "gpu-check.stage"
    stage(built, staged)
    FOLDER.mkdir(exist_ok=True)
    archive = FOLDER / "gpu-check.tar.xz"
    # One stream and a large dictionary: test programs share most of their code.
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 6, "dict_size": 64 << 20}]
    with lzma.open(archive, "wb", filters=filters) as stream, tarfile.open(fileobj=stream, mode="w") as tar:
        tar.add(staged, "gpu-check")
    shutil.rmtree(staged)
    size = archive.stat().st_size
    tree = sum((ROOT / f).stat().st_size for f in git("ls-files").splitlines() if (ROOT / f).is_file())
    sizes = f"{size / 2**20:.1f} MiB; with the repository's files {(size + tree) / 2**20:.1f} MiB"
    print(f"{archive.relative_to(ROOT)}: {sizes}")
    if size > LIMIT:
        raise SystemExit(f"more than {LIMIT >> 20} MiB")


if __name__ == "__main__":
    main()
