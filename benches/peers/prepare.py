"""Everything the peers and our binary share, made once in the cache folder: photos, weights, ONNX graphs, float64 references.

Usage: prepare.py CACHE NETWORK PHOTO [JOB]; without a job no reference. The networks are those of tests/golden (hashed weights, measured batch norm)."""

import copy
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from PIL import Image
from safetensors.torch import load_file, save_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "golden"))
import ucag_ref as ref  # noqa: E402
from golden_nets import LAYERS, architecture, calibrated, fold_batch_norm, load, normalise, photo  # noqa: E402

# Name -> crop of scikit-image's `coffee` and size. The shorter side is 224, so that nothing is resized again.
PHOTOS = {"square": ((130, 0, 530, 400), (224, 224)), "4x3": ((40, 0, 572, 400), (298, 224))}
METHODS = {"single": ("grad-cam", "plain"), "ucag": ("grad-cam", "paper"),
           "lrp": ("lrp-epsilon-plus", "plain"), "lrp-ucag": ("lrp-epsilon-plus", "paper")}


def network(cache, name, dtype=torch.float32):
    """The torch network with batch norm folded in float64."""
    model = architecture(name)
    model.load_state_dict(load_file(cache / f"{name}.safetensors"), strict=False)
    return fold_batch_norm(model.double()).to(dtype)


class Graph:
    """An ONNX graph whose weights lie in one file beside it."""

    def __init__(self, state, data):
        self.state, self.data, self.nodes, self.weights, self.last = state, data, [], [], "x"

    def weight(self, key):
        values = self.state[key].numpy().astype(np.float32)
        self.data.write(bytes(-self.data.tell() % 4096))
        tensor = TensorProto(name=key, data_type=TensorProto.FLOAT, dims=values.shape, data_location=TensorProto.EXTERNAL)
        for name, value in (("location", Path(self.data.name).name), ("offset", self.data.tell()), ("length", values.nbytes)):
            tensor.external_data.add(key=name, value=str(value))
        self.data.write(values.tobytes())
        self.weights.append(tensor)
        return key

    def add(self, op, *inputs, out=None, **attributes):
        self.last = out or f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [self.last], **attributes))
        return self.last

    def conv(self, x, key, stride, pad, relu=True, out=None):
        weights = self.weight(f"{key}.weight"), self.weight(f"{key}.bias")
        kernel = list(self.state[weights[0]].shape[2:])
        y = self.add("Conv", x, *weights, kernel_shape=kernel, strides=[stride] * 2, pads=[pad] * 4)
        return self.add("Relu", y, out=out) if relu else y

    def max_pool(self, x, kernel, stride, pad):
        return self.add("MaxPool", x, kernel_shape=[kernel] * 2, strides=[stride] * 2, pads=[pad] * 4)

    def linear(self, x, key, out):
        return self.add("Gemm", x, self.weight(f"{key}.weight"), self.weight(f"{key}.bias"), transB=1, out=out)


def resnet(g, blocks, bottleneck):
    x = g.max_pool(g.conv("x", "conv1", 2, 3), 3, 2, 1)
    for layer, count in enumerate(blocks, 1):
        for block in range(count):
            base, first = f"layer{layer}.{block}", block == 0 and layer > 1
            stride = 2 if first else 1
            if bottleneck:
                y = g.conv(g.conv(x, f"{base}.conv1", 1, 0), f"{base}.conv2", stride, 1)
                y = g.conv(y, f"{base}.conv3", 1, 0, relu=False)
            else:
                y = g.conv(g.conv(x, f"{base}.conv1", stride, 1), f"{base}.conv2", 1, 1, relu=False)
            changes = block == 0 if bottleneck else first
            skip = g.conv(x, f"{base}.downsample.0", stride, 0, relu=False) if changes else x
            last = (layer, block) == (len(blocks), count - 1)
            x = g.add("Relu", g.add("Add", y, skip), out="features" if last else None)
    g.linear(g.add("Flatten", g.add("GlobalAveragePool", x)), "fc", "logits")
    return ["x"], ["features", "logits"]


def vgg16(g):
    """The adaptive pool is two products with matrices that the caller gives, so that one graph fits every size."""
    x, index = "x", 0
    for entry in "64 64 M 128 128 M 256 256 256 M 512 512 512 M 512 512 512 M".split():
        if entry == "M":
            x, index = g.max_pool(x, 2, 2, 0), index + 1
        else:
            x, index = g.conv(x, f"features.{index}", 1, 1, out="features" if index == 28 else None), index + 2
    x = g.add("Flatten", g.add("MatMul", g.add("MatMul", "rows", x), "columns"))
    x = g.add("Relu", g.linear(x, "classifier.0", None), out="hidden1")
    x = g.add("Relu", g.linear(x, "classifier.3", None), out="hidden2")
    g.linear(x, "classifier.6", "logits")
    return ["x", "rows", "columns"], ["features", "logits", "hidden1", "hidden2"]


GRAPHS = {"resnet18": lambda g: resnet(g, (2, 2, 2, 2), False), "resnet50": lambda g: resnet(g, (3, 4, 6, 3), True), "vgg16": vgg16}


def write_onnx(cache, name, state):
    with open(cache / f"{name}.onnx.bin", "wb") as data:
        graph = Graph(state, data)
        inputs, outputs = GRAPHS[name](graph)
    shapes = {"x": ["n", 3, "h", "w"], "rows": [7, "r"], "columns": ["c", 7]}
    values = [[helper.make_tensor_value_info(v, TensorProto.FLOAT, shapes.get(v)) for v in names] for names in (inputs, outputs)]
    model = helper.make_model(helper.make_graph(graph.nodes, name, *values, graph.weights), ir_version=10,
                              opset_imports=[helper.make_opsetid("", 17)])
    onnx.save(model, cache / f"{name}.onnx")


def write_head(cache, name, state):
    """What Grad-CAM's closed form needs; the first VGG layer only as its sum over the 49 positions."""
    if name == "vgg16":
        head = {"w3": state["classifier.6.weight"], "w2": state["classifier.3.weight"],
                "w1": state["classifier.0.weight"].double().view(4096, 512, 49).sum(2).float()}
    else:
        head = {"w3": state["fc.weight"]}
    for key, value in head.items():
        np.save(cache / f"{name}.{key}.npy", value.numpy())


def prepare(cache, name, image, job=None):
    cache.mkdir(parents=True, exist_ok=True)
    box, size = PHOTOS[image]
    picture = cache / f"{image}.png"
    if not picture.exists():
        photo("coffee").crop(box).resize(size, Image.Resampling.BILINEAR).save(picture)
    if not (cache / f"{name}.json").exists():
        model = load(name, *calibrated(name))
        state = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
        save_file(state, cache / f"{name}.safetensors")
        parameters = sum(p.numel() for p in model.parameters())
        state = fold_batch_norm(copy.deepcopy(model).double()).float().state_dict()
        write_onnx(cache, name, state)
        write_head(cache, name, state)
        (cache / f"{name}.json").write_text(json.dumps({"parameters": parameters}))
    truth = cache / f"{name}-{image}-{job}.npy"
    if job and not truth.exists():
        model, (method, mode) = network(cache, name, torch.float64), METHODS[job]
        x = normalise(np.array(Image.open(picture)))
        with torch.inference_mode():
            k = int(model(x).argmax())
        m, p = ref.explain(model, LAYERS[name], x, k, method, mode, n=6, batch=2)
        print(f"{truth.stem}: class {k}, probability {p.min():.3f} to {p.max():.3f}")
        np.save(truth, m.numpy())


if __name__ == "__main__":
    torch.set_num_threads(2)
    prepare(Path(sys.argv[1]), *sys.argv[2:5])
