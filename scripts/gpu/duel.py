"""ucag-fast and its peers on one network, in alternation."""

import contextlib
import sys
import time
from pathlib import Path

import numpy as np
from agreement import agreement
from process import Failed, Worker, headline, tail

PEERS = Path(__file__).resolve().parent / "peers.py"


class Duel:
    """`run` gives settings, folders and `bench`; what is found is put into `self.found`."""

    def __init__(self, run, network, limit, setup):
        self.run, self.network, self.setup = run, network, setup
        self.end = time.monotonic() + limit
        self.maps = run.work / "maps" / network
        self.maps.mkdir(parents=True, exist_ok=True)
        self.found = {"network": network, "ours": [], "peers": {}, "clocks": [], "failures": {}}
        self.workers = {}

    def left(self):
        return self.end - time.monotonic()

    def fight(self, groups):
        """Each group of peers is one process that lives through all rounds. Returns what went wrong beside the rest."""
        if not (self.maps / "reference.npy").exists():
            groups = [["reference"], *groups]
        self.begin(groups)
        failures = self.found["failures"]
        names = [n for n, p in self.found["peers"].items() if p["ready"] and n != "reference"]
        order = ["ours", *names]
        for turn in range(self.run.s.rounds):
            first = turn % len(order)
            for name in order[first:] + order[:first]:
                if name in failures:
                    continue
                if self.left() < 2:
                    failures[name] = f"stopped in round {turn + 1}: time"
                    continue
                try:
                    self.turn(name)
                except Failed as error:
                    failures[name] = str(error)
                self.found["clocks"].append({"after": name, **self.clocks()})
        self.compare()
        if "ours" in failures or not names:
            raise Failed("\n".join(f"{n}: {t}" for n, t in failures.items()))
        return "; ".join(f"{n}: {headline(t)}" for n, t in failures.items())

    def begin(self, groups):
        """Starts the peers' processes and waits until they are ready."""
        started = []
        for engines in groups:
            dtype = "float32" if engines == ["reference"] else self.run.s.dtype
            command = [sys.executable, PEERS, "serve", ",".join(engines), "--maps", self.maps, "--dtype", dtype]
            command += ["--weights", self.run.weight_file(self.network), "--photo", self.run.work / "frame.png"]
            command += ["--device", self.run.s.device, "--grid", self.run.s.grid, "--lock", self.run.work / "lock"]
            worker = Worker(self.run.shell, command, self.run.torch_env)
            self.run.workers.append(worker)
            started.append((engines, worker))
        for engines, worker in started:
            waiting = list(engines)
            try:
                while waiting:
                    said = worker.answer(min(self.setup, self.left()))
                    name = said["engine"]
                    self.found["peers"][name], self.workers[name] = said | {"rounds": []}, worker
                    waiting.remove(name)
                    if not said["ready"]:
                        self.found["failures"][name] = tail(said["error"])
                self.run.data["torch"] = worker.answer(10)["versions"]
            except Failed as error:
                self.found["failures"] |= {name: str(error) for name in waiting}
                worker.stop()
            if engines == ["reference"]:
                worker.stop()

    def turn(self, name):
        limit = min(60, self.left())
        if name == "ours":
            self.found["ours"].append(self.run.bench(self.network, self.run.s.frames, limit))
            return
        worker = self.workers[name]
        worker.ask(f"{name} {self.run.s.peer_frames}")
        try:
            said = worker.answer(limit)
        except Failed:
            worker.stop()  # It may still be computing, and would disturb the others.
            raise
        if "error" in said:
            raise Failed(tail(said["error"]))
        self.found["peers"][name]["rounds"].append(said["ms"])

    def clocks(self):
        if self.run.s.device != "cuda":
            return {}
        keys = ["clocks.sm", "clocks.mem", "temperature.gpu", "power.draw"]
        with contextlib.suppress(Failed, ValueError, IndexError):
            query = ["nvidia-smi", f"--query-gpu={','.join(keys)}", "--format=csv,noheader,nounits"]
            values = self.run.shell.call(query, 5).splitlines()[0].split(",")
            return dict(zip(keys, map(float, values), strict=True))
        return {}

    def compare(self):
        """Every map against float32's, so that no time stands beside a different result."""
        run, found, classes = self.run, self.found, self.run.data.setdefault("classes", {})
        if not (self.maps / "reference.npy").exists():
            found["failures"].setdefault("maps", "there is no reference to hold them against")
            return
        if "reference" in found["peers"]:
            classes[self.network] = found["peers"]["reference"]["k"]
        found["class"] = classes[self.network]
        truth = np.load(self.maps / "reference.npy")
        maps = {n: Path(p["map"]) for n, p in found["peers"].items() if p["ready"] and n != "reference"}
        command = [run.ours, "explain", run.work / "frame.png", "--weights", run.weight_file(self.network)]
        command += ["--class", found["class"], "--device", run.s.device, *run.s.options]
        try:
            run.shell.call([*command, "--emit", "npy", "--out", self.maps, "--quiet"], 30, run.env)
            maps["ours"] = self.maps / "frame.npy"
        except Failed as error:
            found["failures"]["ours, map"] = str(error)
        found["maps"] = {n: agreement(np.load(path).squeeze(), truth) for n, path in maps.items()}
