"""What stands on this machine, and what has to."""

import contextlib
import glob
import shutil
import subprocess
import sys
from pathlib import Path


def has_gpu():
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            ["nvidia-smi", "-L"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=30
        )
        return done.returncode == 0 and "GPU" in done.stdout
    return False


def frame(photo, size, path):
    """The middle of a photo as a square of `size` pixels, which nobody resizes again."""
    from PIL import Image

    image = Image.open(photo).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.BILINEAR).save(path)


def cublas_folders():
    """Where PyTorch's packages and CUDA's own installation keep cuBLAS."""
    patterns = [f"{base}/nvidia/*/lib" for base in sys.path] + [
        "/usr/local/cuda*/lib64",
        "/usr/local/cuda*/targets/x86_64-linux/lib",
    ]
    folders = [Path(f) for pattern in patterns for f in sorted(glob.glob(pattern))]
    return [f for f in folders if any(f.glob("libcublasLt.so*"))]


def sanitizer_program():
    found = shutil.which("compute-sanitizer")
    return found or next(iter(sorted(glob.glob("/usr/local/cuda*/bin/compute-sanitizer"))), None)


@contextlib.contextmanager
def built_at(path, root, program):
    """Tests look for their data and for the program where they were built: while they run, links stand there."""
    made = []

    def link(place, target):
        for folder in reversed([p for p in place.parents if not p.exists()]):
            folder.mkdir()
            made.append(folder)
        place.symlink_to(target)
        made.append(place)

    try:
        with contextlib.suppress(OSError):
            if not path.exists():
                for child in [c for c in root.iterdir() if c.name != "target"]:
                    link(path / child.name, child)
            built = path / "target" / "release" / "ucag-fast"
            if not built.exists():
                link(built, program)
        yield
    finally:
        for place in reversed(made):
            with contextlib.suppress(OSError):
                place.unlink() if place.is_symlink() else place.rmdir()
