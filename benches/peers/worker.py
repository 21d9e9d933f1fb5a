"""One process, one engine, one job: prints one JSON object with the time of every sample.

Usage: worker.py CACHE ENGINE NETWORK PHOTO JOB SAMPLES THREADS MAP. SAMPLES warm samples follow an untimed first one; 0 means one
cold run. Grad-CAM is in closed form except in pytorch-grad-cam. Only the modules that an engine needs are imported."""

import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from library import PytorchGradCam, Zennit
from ucag import GRID, chunks, softmax, timed, torch_network

# Patches per call: the quickest of those that fit.
BATCH = {"onnxruntime": {"resnet50": 1, "vgg16": 6}, "torch": {"resnet50": 1, "vgg16": 2},
         "pytorch-grad-cam": {"resnet50": 4, "vgg16": 12}}


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


class OnnxRuntime(ClosedForm):
    def __init__(self, cache, network, threads, streams):
        import onnxruntime
        super().__init__(cache, network)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads // streams, 1
        self.session = onnxruntime.InferenceSession(cache / f"{network}.onnx", options, ["CPUExecutionProvider"])
        self.names = [i.name for i in self.session.get_inputs()]
        self.batch = 1 if streams > 1 else BATCH["onnxruntime"].get(network, 1)
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

    def __init__(self, cache, network, threads):
        super().__init__(cache, network)
        self.api, model = torch_network(cache, network, threads)
        self.model, self.vgg = model.to(memory_format=self.api.channels_last), network == "vgg16"
        self.batch = BATCH["torch"].get(network, 1)

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


def documented_grad_cam(cache, network, threads):
    """The network as the library's documentation has it: weights neither folded nor frozen."""
    return PytorchGradCam(cache, network, threads, batch=BATCH["pytorch-grad-cam"].get(network, 4), prepared=False)


ENGINES = {"openvino": partial(OpenVino, streams=1), "openvino-streams": partial(OpenVino, streams=2),
           "onnxruntime": partial(OnnxRuntime, streams=1), "onnxruntime-streams": partial(OnnxRuntime, streams=2),
           "torch": Torch, "pytorch-grad-cam": documented_grad_cam, "zennit": Zennit}


def main():
    cache, name, network, photo, job, samples, threads, out = sys.argv[1:]
    engine = ENGINES[name](Path(cache), network, int(threads))
    timed(engine, Path(cache) / f"{photo}.png", GRID if job.endswith("ucag") else 0, int(samples), out)


if __name__ == "__main__":
    main()
