"""The kernels as written and as the pinned compiler makes them: what check-kernels and kernel-table share."""

import os
import re
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "kernels"
# Code for each is made from the PTX of: sm_86 and sm_89 get what a driver would make for them at load time.
ARCHITECTURES = {"sm_80": "compute_80", "sm_86": "compute_80", "sm_89": "compute_80", "sm_90a": "compute_90a"}


class Failed(Exception):
    """A tool refused; the message is its own."""


@dataclass
class Code:
    """A kernel on one architecture."""

    registers: int = 0
    shared: int = 0  # bytes of shared memory that the kernel declares
    dynamic: bool = False  # whether a launch adds more
    spilled: int = 0  # bytes of registers stored to and loaded from local memory
    stack: int = 0
    sass: list = field(default_factory=list)  # instructions with their modifiers: HMMA.16816.F32


@dataclass
class Source:
    """A .cu file: its opening comment, and the comment right above each kernel."""

    path: Path
    header: list
    kernels: dict
    excused: dict  # kernels that may spill, and why: `// spills: KERNEL: REASON`

    @property
    def targets(self):
        hopper_only = "architectures: sm_90a" in self.header
        return {sm: ptx for sm, ptx in ARCHITECTURES.items() if sm == "sm_90a" or not hopper_only}


def read(path):
    header, kernels, comment, opening = [], {}, [], True
    text = path.read_text(encoding="utf-8")
    for line in text.splitlines():
        if line.startswith("//"):
            comment.append(line[2:].strip() if not opening else line[2:].removeprefix(" ").rstrip())
            continue
        if opening:
            header, comment, opening = comment, [], False
        for name in re.findall(r"KERNEL\(\s*(\w+)\s*,", line.split("//")[0]):
            kernels[name] = " ".join(part for part in comment if not part.startswith("spills:"))
        comment = []
    excused = dict(re.findall(r"^// spills: (\w+): (.+)$", text, re.MULTILINE))
    return Source(path, header, kernels, excused)


def sources():
    return [read(path) for path in sorted(FOLDER.glob("*.cu"))]


def tools(*options):
    """Folder of nvcc, ptxas and nvdisasm. The pinned ones, because registers depend on the version."""
    done = subprocess.run([ROOT / "scripts/setup-nvcc.sh", *options], stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(done.returncode)
    return Path(done.stdout.strip()).parent


def run(*command, cwd=None):
    done = subprocess.run(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        raise Failed(done.stdout.strip())
    return done.stdout


def assemble(tools, source, targets, disassemble=False):
    """Code of each kernel of a file: {architecture: {kernel: Code}}."""
    made = {}
    with tempfile.TemporaryDirectory() as folder:
        for ptx in sorted({source.targets[sm] for sm in targets}):
            options = ["-ptx", f"-arch={ptx}", "-O3", "-std=c++17", "-o", f"{folder}/{ptx}.ptx"]
            run(tools / "nvcc", *options, source.path.name, cwd=source.path.parent)
        for sm in targets:
            cubin = f"{folder}/{sm}.cubin"
            report = run(tools / "ptxas", f"-arch={sm}", "-v", f"{folder}/{source.targets[sm]}.ptx", "-o", cubin)
            made[sm] = usage(report)
            for entry in Path(f"{folder}/{source.targets[sm]}.ptx").read_text().split(".entry ")[1:]:
                made[sm][entry.split("(")[0]].dynamic = "dynamic_shared" in entry
            if disassemble:
                add_sass(made[sm], run(tools / "nvdisasm", "-c", cubin))
    return made


def usage(report):
    """Reads what `ptxas -v` says."""
    made, code = {}, Code()
    for line in report.splitlines():
        if found := re.search(r"Compiling entry function '(\w+)'", line):
            code = made[found[1]] = Code()
        elif found := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            stack, stores, loads = map(int, found.groups())
            code.stack, code.spilled = max(code.stack, stack), max(code.spilled, stores + loads)
        elif found := re.search(r"Used (\d+) registers", line):
            code.registers = int(found[1])
            shared = re.search(r"(\d+) bytes smem", line)
            code.shared = int(shared[1]) if shared else 0
    return made


def add_sass(made, listing):
    code = Code()
    for line in listing.splitlines():
        if found := re.match(r"\.text\.(\w+):", line):
            code = made.get(found[1], Code())
        elif found := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", line):
            code.sass.append(found[1])


def each(items, work):
    """Results, or the Failed of those that failed, in the order of the items."""

    def one(item):
        try:
            return work(item)
        except Failed as failed:
            return failed

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(one, items))
