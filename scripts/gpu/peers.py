"""One process that runs the job with PyTorch and answers on standard output, one JSON object a line.

    peers.py ceilings                                   rates that floors are computed from
    peers.py serve ENGINE,... --weights FILE --photo FRAME --maps FOLDER [--device cuda] [--grid 6] [--lock FILE]

`serve` makes the engines, says what each is, then reads lines `ENGINE FRAMES` and answers with the milliseconds of each
frame: RGB frame on the host to map on the host. An engine that fails says so and the others go on."""

import argparse
import contextlib
import fcntl
import json
import os
import platform
import sys
import time
import traceback
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from torch_job import Job, Network

WARM_UP = 3


def tell(**fields):
    print(json.dumps(fields), flush=True)


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


class Engine:
    """Eager, channels_last. Copies in and out go through page-locked memory on a GPU."""

    fused = False

    def __init__(self, o, image):
        self.device, self.dtype = torch.device(o.device), getattr(torch, o.dtype)
        network = Network(o.weights, self.dtype, self.device, self.fused)
        self.job = Job(network, image.shape[0], o.grid, self.dtype, self.device)
        pinned = self.device.type == "cuda"
        self.host_in = torch.empty(image.shape, dtype=torch.uint8, pin_memory=pinned)
        self.host_out = torch.empty(image.shape[:2], dtype=torch.float32, pin_memory=pinned)
        self.frame = torch.empty(image.shape, dtype=torch.uint8, device=self.device)
        self.image, self.host_view = image, self.host_in.numpy()

    def prepare(self):
        """Takes the number of patches per call that is quickest here."""
        patches, times = self.job.grid**2, {}
        if self.device.type != "cuda":
            return {"chunk": patches}
        for chunk in sorted({patches, -(-patches // 2), -(-patches // 4)}, reverse=True):
            self.job.chunk = chunk
            self.capture()
            times[chunk] = float(np.median(self.measure(3)))
        self.job.chunk = min(times, key=times.get)
        self.capture()
        return {"chunk": self.job.chunk, "chunks_ms": times}

    def capture(self):
        pass

    def run(self):
        return self.job.explain(self.frame, self.job.classify(self.frame))

    def explain(self):
        np.copyto(self.host_view, self.image)
        self.frame.copy_(self.host_in, non_blocking=True)
        self.host_out.copy_(self.run(), non_blocking=True)
        wait(self.device)
        return self.host_out.numpy()

    def measure(self, frames):
        for _ in range(WARM_UP):
            self.explain()
        times = []
        for _ in range(frames):
            start = time.perf_counter()
            self.explain()
            times.append((time.perf_counter() - start) * 1000)
        return times


def captured(function):
    """`function` recorded as a CUDA graph, and its result, which each replay overwrites."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = function()
    return graph, result


class Graphs(Engine):
    """The eager job captured once as a CUDA graph and replayed."""

    graph = None

    def capture(self):
        self.graph = None
        if self.device.type == "cuda":
            self.frame.copy_(self.host_in)
            self.graph, self.result = captured(super().run)

    def run(self):
        if self.graph is None:
            return super().run()
        self.graph.replay()
        return self.result


class GraphsFused(Graphs):
    """As Graphs, with bias, addition and ReLU in cuDNN's epilogue."""

    @property
    def fused(self):
        return torch.cuda.is_available()


class Compiled(Engine):
    """torch.compile of everything after the choice of the class, which is a CUDA graph of its own."""

    graph = None

    def prepare(self):
        cuda = self.device.type == "cuda"
        self.compiled = torch.compile(self.job.explain, mode="max-autotune" if cuda else None, dynamic=False)
        if cuda:
            self.frame.copy_(self.host_in)
            self.graph, self.k = captured(lambda: self.job.classify(self.frame))
        for _ in range(WARM_UP):
            self.explain()
        return {"chunk": self.job.chunk}

    def run(self):
        if self.graph is None:
            return self.compiled(self.frame, self.job.classify(self.frame))
        self.graph.replay()
        torch.compiler.cudagraph_mark_step_begin()
        return self.compiled(self.frame, self.k)


class Reference(Engine):
    """Eager in float32 without TF32, a few patches at a time: what maps are compared with."""

    def prepare(self):
        self.job.chunk = 4
        return {"chunk": self.job.chunk}


ENGINES = {"eager": Engine, "graphs": Graphs, "graphs-fused": GraphsFused, "compile": Compiled, "reference": Reference}


@contextlib.contextmanager
def alone(path):
    """Waits for its turn: nothing is tuned while another process uses the device."""
    with open(path or os.devnull, "w") as file:
        if path:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make(name, o, image):
    start = time.perf_counter()
    if o.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    engine = ENGINES[name](o, image)
    np.copyto(engine.host_view, image)
    chosen = engine.prepare()
    path = Path(o.maps) / f"{name}.npy"
    np.save(path, engine.explain())
    tell(
        engine=name,
        ready=True,
        k=int(engine.job.classify(engine.frame)),
        map=str(path),
        what=type(engine).__doc__.split("\n")[0],
        setup_s=time.perf_counter() - start,
        memory_bytes=torch.cuda.max_memory_allocated() if o.device == "cuda" else None,
        **chosen,
    )
    return engine


def serve(o):
    torch.set_grad_enabled(False)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    image, engines = np.array(Image.open(o.photo).convert("RGB")), {}
    torch.zeros(1, device=o.device)
    with alone(o.lock):
        for name in o.engines.split(","):
            try:
                engines[name] = make(name, o, image)
            except Exception:
                tell(engine=name, ready=False, error=traceback.format_exc()[-3000:])
        tell(versions=versions())
    for line in sys.stdin:
        name, frames = line.split()
        try:
            tell(engine=name, ms=engines[name].measure(int(frames)))
        except Exception:
            tell(engine=name, error=traceback.format_exc()[-3000:])


def versions():
    cudnn = torch.backends.cudnn.version()
    found = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": cudnn,
    }
    with contextlib.suppress(ImportError):
        import triton

        found["triton"] = triton.__version__
    return found


def rate(function, repeats=20):
    """Seconds of one call, the median by device events."""
    times = []
    for _ in range(repeats + 5):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1000)
    return float(np.median(times[5:]))


def ceilings():
    """fp16 products of random data with fp32 sums, and a copy of 2 GiB, bytes read and written."""
    n = 8192
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.float16) for _ in range(2))
    source = torch.randint(0, 127, (1 << 31,), device="cuda", dtype=torch.int8)
    target = torch.empty_like(source)
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    tell(
        flops=2 * n**3 / rate(lambda: torch.mm(a, b)),
        bytes=2 * source.numel() / rate(lambda: target.copy_(source)),
        device=torch.cuda.get_device_name(),
        multiprocessors=torch.cuda.get_device_properties(0).multi_processor_count,
        versions=versions(),
    )


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("command", choices=["ceilings", "serve"])
    p.add_argument("engines", nargs="?", default="eager")
    p.add_argument("--weights")
    p.add_argument("--photo")
    p.add_argument("--maps")
    p.add_argument("--device", default="cuda")
    p.add_argument("--dtype", default="float16")
    p.add_argument("--grid", type=int, default=6)
    p.add_argument("--lock")
    o = p.parse_args()
    ceilings() if o.command == "ceilings" else serve(o)


if __name__ == "__main__":
    main()
