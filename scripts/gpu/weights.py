"""Seeded networks as safetensors files, the same numbers as `tests/seeded`: no download, nothing to carry.

    weights.py FOLDER resnet18 resnet50 vgg16

Value i of tensor `key` is splitmix64 seeded with the key's FNV-1a hash, in [-1, 1), times a power of two that keeps
activations moderate; batch norms have neutral statistics."""

import json
import math
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

RESNETS = {"resnet18": ((2, 2, 2, 2), 1), "resnet50": ((3, 4, 6, 3), 4)}
VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")
CLASSES = 1000
# Values that one task hashes: their 64-bit intermediates stay in a core's L2 cache.
CHUNK = 1 << 16


def resnet(blocks, expansion):
    def conv_bn(conv, bn, out, inputs, kernel):
        yield f"{conv}.weight", (out, inputs, kernel, kernel)
        for part in ("weight", "bias", "running_mean", "running_var"):
            yield f"{bn}.{part}", (out,)

    yield from conv_bn("conv1", "bn1", 64, 3, 7)
    inputs = 64
    for stage, count in enumerate(blocks):
        width = 64 << stage
        for block in range(count):
            base, out = f"layer{stage + 1}.{block}", width * expansion
            sides = (
                ((inputs, width, 1), (width, width, 3), (width, out, 1))
                if expansion > 1
                else ((inputs, width, 3), (width, out, 3))
            )
            for i, (a, b, kernel) in enumerate(sides, 1):
                yield from conv_bn(f"{base}.conv{i}", f"{base}.bn{i}", b, a, kernel)
            if block == 0 and (stage > 0 or inputs != out):
                yield from conv_bn(f"{base}.downsample.0", f"{base}.downsample.1", out, inputs, 1)
            inputs = out
    yield "fc.weight", (CLASSES, inputs)
    yield "fc.bias", (CLASSES,)


def vgg16():
    inputs, index = 3, 0
    for entry in VGG16:
        if entry != "M":
            yield f"features.{index}.weight", (entry, inputs, 3, 3)
            yield f"features.{index}.bias", (entry,)
            inputs = entry
        index += 1 if entry == "M" else 2
    for index, (out, inputs) in {0: (4096, 25088), 3: (4096, 4096), 6: (CLASSES, 4096)}.items():
        yield f"classifier.{index}.weight", (out, inputs)
        yield f"classifier.{index}.bias", (out,)


def blueprint(name):
    return list(vgg16() if name == "vgg16" else resnet(*RESNETS[name]))


def gain(key, shape):
    if not key.endswith(".weight"):
        return -3
    return 0 if len(shape) == 1 else math.floor(0.5 * math.log2(6 / math.prod(shape[1:])) + 0.5)


def fnv1a(text):
    value = 0xCBF29CE484222325
    for byte in text.encode():
        value = ((value ^ byte) * 0x100000001B3) & (2**64 - 1)
    return value


def hashed(out, start, key, exponent):
    """Fills `out` with the key's values from `start` on."""
    z = np.arange(start + 1, start + 1 + len(out), dtype=np.uint64)
    z *= np.uint64(0x9E3779B97F4A7C15)
    z += np.uint64(fnv1a(key))
    t = np.empty_like(z)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        np.right_shift(z, np.uint64(shift), out=t)
        z ^= t
        z *= np.uint64(factor)
    np.right_shift(z, np.uint64(31), out=t)
    z ^= t
    z >>= np.uint64(40)
    np.subtract(z.astype(np.int32), 1 << 23, out=out, casting="unsafe")
    out *= np.float32(2.0 ** (exponent - 23))


def network(name):
    """{key: float32 array}."""
    arrays = {key: np.empty(shape, np.float32) for key, shape in blueprint(name)}
    with ThreadPoolExecutor() as pool:
        tasks = []
        for key, array in arrays.items():
            flat = array.reshape(-1)
            if key.endswith(("running_mean", "running_var")):
                flat[:] = key.endswith("running_var")
                continue
            tasks += [
                pool.submit(hashed, flat[i : i + CHUNK], i, key, gain(key, array.shape))
                for i in range(0, len(flat), CHUNK)
            ]
        for task in tasks:
            task.result()
    return arrays


def write(path, arrays):
    """A safetensors file. It appears whole or not at all."""
    header, end = {}, 0
    for key, array in arrays.items():
        header[key] = {"dtype": "F32", "shape": array.shape, "data_offsets": [end, end + array.nbytes]}
        end += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    partial = path.with_suffix(".partial")
    with open(partial, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays.values():
            file.write(array.data)
    partial.rename(path)


def main():
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name in sys.argv[2:]:
        start, path = time.perf_counter(), folder / f"{name}.safetensors"
        if not path.exists():
            write(path, network(name))
        print(f"{path.name}: {path.stat().st_size / 2**20:.0f} MiB, {time.perf_counter() - start:.1f} s", flush=True)


if __name__ == "__main__":
    main()
