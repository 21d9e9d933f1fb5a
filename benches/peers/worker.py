"""One process, one engine, one job: prints one JSON object with the time of every sample.

Usage: worker.py CACHE ENGINE NETWORK PHOTO JOB SAMPLES THREADS MAP. SAMPLES warm samples follow an untimed first one; 0 means one
cold run. Grad-CAM is in closed form except in pytorch-grad-cam. Only the modules that an engine needs are imported."""

import json
import math
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

MEAN, STD = np.float32((0.485, 0.456, 0.406)), np.float32((0.229, 0.224, 0.225))
GRID, RHO, ALPHA = 6, 0.555, 2.6
# Patches per call: the quickest of those that fit.
BATCH = {"onnxruntime": {"resnet50": 1, "vgg16": 6}, "torch": {"resnet50": 1, "vgg16": 2},
         "pytorch-grad-cam": {"resnet50": 4, "vgg16": 12}}


# UCAG in numpy: resampling as products with matrices.

def cubic(t):
    a, t = -0.75, abs(t)
    return ((a + 2) * t - (a + 3)) * t * t + 1 if t <= 1 else (((t - 5) * t + 8) * t - 4) * a if t < 2 else 0.0


def bicubic_matrix(length, out):
    m = np.zeros((out, length), np.float32)
    for d in range(out):
        s = (d + 0.5) / ALPHA - 0.5
        for tap in range(math.floor(s) - 1, math.floor(s) + 3):
            m[d, min(max(tap, 0), length - 1)] += cubic(s - tap)
    return m


def bilinear_matrix(length, out):
    m = np.zeros((out, length), np.float32)
    for d in range(out):
        s = max((d + 0.5) * length / out - 0.5, 0)
        i = min(int(s), length - 1)
        m[d, i] += 1 - (s - i)
        m[d, min(i + 1, length - 1)] += s - i
    return m


def axis(size):
    patch = math.floor(RHO * size + 1e-6)
    return patch, [math.floor(i * (size - patch) / (GRID - 1) + 0.5) for i in range(GRID)], math.floor(ALPHA * patch + 1e-6)


def unfold(x):
    (ph, ys, sh), (pw, xs, sw) = axis(x.shape[2]), axis(x.shape[3])
    rows, columns = bicubic_matrix(ph, sh), bicubic_matrix(pw, sw).T.copy()
    return np.stack([rows @ x[0, :, y:y + ph, z:z + pw] @ columns for y in ys for z in xs])


def fold(maps, p, height, width):
    (ph, ys, _), (pw, xs, _) = axis(height), axis(width)
    rows, columns = bilinear_matrix(maps.shape[1], ph), bilinear_matrix(maps.shape[2], pw).T.copy()
    total, count = np.zeros((height, width), np.float32), np.zeros((height, width), np.float32)
    for m, w, (y, z) in zip(maps, np.exp(p), ((y, z) for y in ys for z in xs)):
        total[y:y + ph, z:z + pw] += w * (rows @ m @ columns)
        count[y:y + ph, z:z + pw] += 1
    return total / count


def softmax(logits):
    e = np.exp(logits - logits.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def torch_network(cache, network, threads, folded=True):
    """torchvision's network, frozen, with the cached weights."""
    import torch
    import torchvision
    from safetensors.torch import load_file
    torch.set_num_threads(threads)
    with torch.device("meta"):
        model = torchvision.models.get_model(network, weights=None)
    model.load_state_dict(load_file(cache / f"{network}.safetensors"), strict=False, assign=True)
    model.eval().requires_grad_(False)
    if folded:
        sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "golden"))
        from golden_nets import fold_batch_norm
        model = fold_batch_norm(model)
    return torch, model


# Engines. maps(x, k) -> raw maps (N, h, w) and probabilities (N,); k None means the first picture's own top class.

class ClosedForm:
    """Engines that only run forward; outputs(x) gives features, logits and, for VGG, the two hidden layers."""

    def __init__(self, cache, network):
        self.head = {k: np.load(cache / f"{network}.{k}.npy") for k in ("w3", "w2", "w1") if (cache / f"{network}.{k}.npy").exists()}

    def classify(self, x):
        return int(self.outputs(x)[1][0].argmax())

    def maps(self, x, k=None):
        features, logits, *hidden = self.outputs(x)
        k = int(logits[0].argmax()) if k is None else k
        g = self.head["w3"][k][None]
        if hidden:
            g = ((g * (hidden[1] > 0)) @ self.head["w2"] * (hidden[0] > 0)) @ self.head["w1"]
        n, c, h, w = features.shape
        alpha = np.broadcast_to(g / (h * w), (n, c))
        return (alpha[:, None] @ features.reshape(n, c, h * w)).reshape(n, h, w), softmax(logits)[:, k]


def pool_inputs(names, x):
    """The picture and, for VGG, the matrices of its adaptive pool."""
    feed = {"x": x}
    for name, size in zip(names[1:], (x.shape[2] // 32, x.shape[3] // 32)):
        m = np.zeros((7, size), np.float32)
        for i in range(7):
            low, high = i * size // 7, -(-(i + 1) * size // 7)
            m[i, low:high] = 1 / (high - low)
        feed[name] = m if name == "rows" else m.T.copy()
    return feed


def chunks(x, batch):
    return [x[i:i + batch] for i in range(0, len(x), batch)]


class OnnxRuntime(ClosedForm):
    def __init__(self, cache, network, threads, streams):
        import onnxruntime
        super().__init__(cache, network)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads // streams, 1
        self.session = onnxruntime.InferenceSession(cache / f"{network}.onnx", options, ["CPUExecutionProvider"])
        self.names = [i.name for i in self.session.get_inputs()]
        self.batch = 1 if streams > 1 else BATCH["onnxruntime"][network]
        self.pool = ThreadPoolExecutor(streams)

    def outputs(self, x):
        parts = self.pool.map(lambda part: self.session.run(None, pool_inputs(self.names, part)), chunks(x, self.batch))
        return [np.concatenate(v) for v in zip(*parts)]


class OpenVino(ClosedForm):
    def __init__(self, cache, network, threads, streams):
        import openvino
        super().__init__(cache, network)
        self.api, self.core, self.path, self.compiled, self.streams = openvino, openvino.Core(), cache / f"{network}.onnx", {}, streams
        self.options = {"PERFORMANCE_HINT": "THROUGHPUT" if streams > 1 else "LATENCY", "NUM_STREAMS": streams,
                        "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}

    def queue(self, feeds):
        """One compiled graph per picture size: fixed shapes are the quicker way."""
        shape = feeds["x"].shape
        if shape not in self.compiled:
            model = self.core.read_model(self.path)
            model.reshape({name: list(value.shape) for name, value in feeds.items()})
            self.compiled[shape] = self.api.AsyncInferQueue(self.core.compile_model(model, "CPU", self.options), self.streams)
        return self.compiled[shape]

    def outputs(self, x):
        names = ["x", "rows", "columns"] if "w1" in self.head else ["x"]
        feeds = [pool_inputs(names, part) for part in chunks(x, 1)]
        queue, results = self.queue(feeds[0]), [None] * len(feeds)

        def keep(request, index):
            results[index] = [o.data.copy() for o in request.output_tensors]

        queue.set_callback(keep)
        for index, feed in enumerate(feeds):
            queue.start_async(feed, index)
        queue.wait_all()
        return [np.concatenate(v) for v in zip(*results)]


class Torch(ClosedForm):
    """Eager, channels_last, batch norm folded."""

    def __init__(self, cache, network, threads, _streams):
        super().__init__(cache, network)
        self.api, model = torch_network(cache, network, threads)
        self.model, self.vgg = model.to(memory_format=self.api.channels_last), network == "vgg16"
        self.batch = BATCH["torch"][network]

    def outputs(self, x):
        with self.api.inference_mode():
            parts = [self.forward(self.api.from_numpy(c).contiguous(memory_format=self.api.channels_last)) for c in chunks(x, self.batch)]
            return [self.api.cat(v).contiguous().numpy() for v in zip(*parts)]

    def forward(self, x):
        m = self.model
        if self.vgg:
            features = m.features[:30](x)
            hidden1 = m.classifier[:2](m.avgpool(m.features[30](features)).flatten(1))
            hidden2 = m.classifier[3:5](hidden1)
            return features, m.classifier[6](hidden2), hidden1, hidden2
        x = m.maxpool(m.relu(m.bn1(m.conv1(x))))
        features = m.layer4(m.layer3(m.layer2(m.layer1(x))))
        return features, m.fc(features.mean((2, 3)))


class PytorchGradCam:
    """The library's call as its documentation has it, weights not frozen; the raw map is taken before it is rectified."""

    def __init__(self, cache, network, threads, _streams):
        from pytorch_grad_cam import GradCAM
        from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
        self.api, self.model = torch_network(cache, network, threads, folded=False)
        self.model.requires_grad_(True)
        self.target, self.batch = ClassifierOutputTarget, BATCH["pytorch-grad-cam"][network]
        layer = self.model.features[29] if network == "vgg16" else self.model.layer4[-1]

        class Raw(GradCAM):
            def get_cam_image(self, *args, **kwargs):
                self.raw = super().get_cam_image(*args, **kwargs)
                return self.raw

        self.cam = Raw(model=self.model, target_layers=[layer])

    def classify(self, x):
        with self.api.inference_mode():
            return int(self.model(self.api.from_numpy(x)).argmax())

    def maps(self, x, k=None):
        maps, p = [], []
        for part in chunks(x, self.batch):
            targets = None if k is None else [self.target(k)] * len(part)
            self.cam(input_tensor=self.api.from_numpy(part).requires_grad_(True), targets=targets)
            maps.append(self.cam.raw)
            logits = self.cam.outputs.detach().numpy()
            p.append(softmax(logits)[:, int(logits[0].argmax()) if k is None else k])
        return np.concatenate(maps), np.concatenate(p)


class Zennit:
    """EpsilonPlus on the folded network, one patch per call."""

    def __init__(self, cache, network, threads, _streams):
        from zennit.composites import EpsilonPlus
        from zennit.torchvision import ResNetBasicBlockCanonizer, ResNetBottleneckCanonizer
        self.api, self.model = torch_network(cache, network, threads)
        self.composite = EpsilonPlus(canonizers=[ResNetBasicBlockCanonizer(), ResNetBottleneckCanonizer()])

    def classify(self, x):
        with self.api.inference_mode():
            return int(self.model(self.api.from_numpy(x)).argmax())

    def maps(self, x, k=None):
        maps, p = [], []
        for part in chunks(x, 1):
            part = self.api.from_numpy(part).requires_grad_(True)
            with self.composite.context(self.model) as model:
                logits = model(part)
                top = int(logits[0].argmax()) if k is None else k
                start = self.api.zeros_like(logits)
                start[:, top] = logits.detach()[:, top]
                relevance, = self.api.autograd.grad(logits, part, start)
            maps.append(relevance.sum(1).numpy())
            p.append(softmax(logits.detach().numpy())[:, top])
        return np.concatenate(maps), np.concatenate(p)


# Name -> (class, streams).
ENGINES = {"openvino": (OpenVino, 1), "openvino-streams": (OpenVino, 2), "onnxruntime": (OnnxRuntime, 1),
           "onnxruntime-streams": (OnnxRuntime, 2), "torch": (Torch, 1), "pytorch-grad-cam": (PytorchGradCam, 1), "zennit": (Zennit, 1)}


def explain(engine, image, job):
    """uint8 (H, W, 3) -> float32 map (H, W)."""
    x = ((image.astype(np.float32) / 255 - MEAN) / STD).transpose(2, 0, 1)[None].copy()
    height, width = image.shape[:2]
    if job.endswith("ucag"):
        k = engine.classify(x)
        return fold(*engine.maps(unfold(x), k), height, width)
    m = engine.maps(x)[0][0]
    return bilinear_matrix(len(m), height) @ m @ bilinear_matrix(m.shape[1], width).T


def main():
    cache, name, network, photo, job, samples, threads, out = sys.argv[1:9]
    kind, streams = ENGINES[name]
    engine = kind(Path(cache), network, int(threads), streams)
    image = np.array(Image.open(Path(cache) / f"{photo}.png"))
    times = []
    for _ in range(1 + int(samples)):
        start = time.perf_counter()
        result = explain(engine, image, job)
        times.append(time.perf_counter() - start)
    np.save(out, result)
    print(json.dumps({"cold_s": times[0], "warm_s": times[1:]}))


if __name__ == "__main__":
    main()
