"""PyTorch data-parallel on one machine: `torchrun` starts processes, each learns from its share of the rows, and their gradients are averaged
after every batch, so that all have the same weights all the time.

Rows go to the processes through files, which they map instead of reading. States: the first process writes a checkpoint after each epoch (whole, or
not at all) and the weights at the end; where a process dies, `torchrun` ends the others and starts all again, at most `RESTARTS` times, and they
go on from the checkpoint. Devices are CUDA's where there is one for each process, else the processor. Only this module's own `main` runs in there.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from cellwork.errors import Unavailable

if TYPE_CHECKING:
    import numpy as np

RESTARTS = 2
TAIL = 2000
"""Characters of what the processes said last, in an error."""


class Task(msgspec.Struct):
    """What the processes learn."""

    hidden: tuple[int, ...]
    outputs: int
    loss: Literal["classes", "squares"]
    epochs: int
    patience: int
    learning_rate: float
    dropout: float
    batch: int
    device: str
    seed: int


def train(
    rows: np.ndarray[Any, Any], target: np.ndarray[Any, Any], task: Task, *, processes: int, timeout: float = 3600
) -> tuple[list[np.ndarray[Any, Any]], list[float]]:
    """Return weights and biases, layer by layer, and the loss of each epoch.

    Parameters
    ----------
    rows, target : shapes (n, columns), float32, and (n,) or (n, 1).
    processes : how many learn together.
    timeout : seconds for all of it.

    Raises
    ------
    Unavailable
        It took longer, or processes died again and again.
    """
    import numpy as np

    with tempfile.TemporaryDirectory(prefix="cellwork-torchrun-") as name:
        folder = Path(name)
        np.save(folder / "rows.npy", rows)
        np.save(folder / "target.npy", target)
        (folder / "task.json").write_bytes(msgspec.json.encode(task))
        _run(folder, processes, timeout)
        with np.load(folder / "weights.npz") as kept:
            weights = [kept[f"w{k}"] for k in range(len(kept.files) - 1)]
            return weights, kept["losses"].tolist()


def _run(folder: Path, processes: int, timeout: float) -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", f"--nproc-per-node={processes}",
        f"--max-restarts={RESTARTS}", "-m", __name__, str(folder),
    ]  # fmt: skip
    threads = str(max(1, (os.cpu_count() or 1) // processes))
    environ = {"OMP_NUM_THREADS": threads, **os.environ, "MASTER_ADDR": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo"}
    with (folder / "log").open("wb") as log:
        running = subprocess.Popen(command, env=environ, stdout=log, stderr=log, start_new_session=True)
        try:
            code = running.wait(timeout)
        except subprocess.TimeoutExpired:
            raise Unavailable("torchrun", "", f"took longer than {timeout:.0f} s", "fit fewer rows or epochs") from None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)
            running.wait()
    if code:
        said = (folder / "log").read_text(errors="replace")[-TAIL:]
        raise Unavailable(
            "torchrun", f"{processes} processes", f"ended with exit code {code}: {said}", "fit in one process"
        )


def build(inputs: int, hidden: tuple[int, ...], dropout: float, outputs: int) -> Any:
    """Return the network's module, with weights drawn by torch's seed."""
    import torch

    layers: list[Any] = []
    for size in hidden:
        layers += [torch.nn.Linear(inputs, size), torch.nn.ReLU(), torch.nn.Dropout(dropout)]
        inputs = size
    return torch.nn.Sequential(*layers, torch.nn.Linear(inputs, outputs))


class Learner:
    """One of the processes: its share of the rows, and the network that it shares with the others."""

    def __init__(self, folder: Path) -> None:
        import numpy as np
        import torch
        from torch import distributed
        from torch.nn.parallel import DistributedDataParallel

        self.folder, self.task = folder, msgspec.json.decode((folder / "task.json").read_bytes(), type=Task)
        self.rows, self.target = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("rows", "target"))
        world = int(os.environ["WORLD_SIZE"])
        cuda = self.task.device != "cpu" and torch.cuda.device_count() >= world
        distributed.init_process_group("nccl" if cuda else "gloo")
        self.rank, self.world = distributed.get_rank(), world
        self.device = torch.device("cuda", self.rank) if cuda else torch.device("cpu")
        torch.manual_seed(self.task.seed)
        self.module = build(self.rows.shape[1], self.task.hidden, self.task.dropout, self.task.outputs).to(self.device)
        self.shared = DistributedDataParallel(self.module)
        self.optimizer = torch.optim.Adam(self.module.parameters(), lr=self.task.learning_rate)
        self.loss = torch.nn.CrossEntropyLoss() if self.task.loss == "classes" else torch.nn.MSELoss()
        order = np.random.default_rng(self.task.seed).permutation(len(self.rows))
        held = max(1, len(order) // 10)
        self.held, self.known = order[:held], order[held:]

    def learn(self) -> None:
        """Learn until the loss on the held-out rows has not fallen for a while; the first process writes the weights."""
        from torch import distributed

        state = self._resume()
        while state["epoch"] < self.task.epochs and state["idle"] < self.task.patience:
            state["losses"].append(self._epoch(state["epoch"]))
            held = self._held()
            state["epoch"] += 1
            state["idle"] = 0 if held < state["best"] else state["idle"] + 1
            if held < state["best"]:
                state["best"], state["weights"] = held, {k: v.clone() for k, v in self.module.state_dict().items()}
            self._checkpoint(state)
        if self.rank == 0:
            self._write(state)
        distributed.barrier()
        distributed.destroy_process_group()

    def _epoch(self, epoch: int) -> float:
        """Return the mean loss of all processes; each takes as many batches as the others, or they would wait for ever."""
        import numpy as np

        self.module.train()
        order = np.random.default_rng((self.task.seed, epoch)).permutation(self.known)
        mine = order[self.rank :: self.world][: max(1, len(order) // self.world)]
        size = max(1, self.task.batch // self.world)
        total = 0.0
        for start in range(0, len(mine), size):
            part = np.sort(mine[start : start + size])
            self.optimizer.zero_grad()
            loss = self._loss(self.shared, part)
            loss.backward()
            self.optimizer.step()
            total += float(loss.detach()) * len(part)
        return self._mean(total, len(mine))

    def _held(self) -> float:
        import torch

        self.module.eval()
        mine = self.held[self.rank :: self.world]
        with torch.no_grad():
            total = float(self._loss(self.module, mine)) * len(mine) if len(mine) else 0.0
        return self._mean(total, len(mine))

    def _loss(self, module: Any, part: Any) -> Any:
        import torch

        rows, target = (torch.from_numpy(values[part]).to(self.device) for values in (self.rows, self.target))
        return self.loss(module(rows), target)

    def _mean(self, total: float, rows: int) -> float:
        import torch
        from torch import distributed

        both = torch.tensor([total, float(rows)], dtype=torch.float64, device=self.device)
        distributed.all_reduce(both)
        return float(both[0] / both[1])

    def _resume(self) -> dict[str, Any]:
        import torch

        path = self.folder / "checkpoint.pt"
        if not path.exists():
            return {"epoch": 0, "idle": 0, "best": float("inf"), "losses": [], "weights": self.module.state_dict()}
        kept = torch.load(path, map_location=self.device, weights_only=True)
        self.module.load_state_dict(kept.pop("now"))
        self.optimizer.load_state_dict(kept.pop("optimizer"))
        return dict(kept)

    def _checkpoint(self, state: dict[str, Any]) -> None:
        import torch

        if self.rank == 0:
            part = self.folder / "checkpoint.part"
            torch.save({**state, "now": self.module.state_dict(), "optimizer": self.optimizer.state_dict()}, part)
            part.rename(self.folder / "checkpoint.pt")

    def _write(self, state: dict[str, Any]) -> None:
        import numpy as np

        arrays = {f"w{k}": value.cpu().numpy() for k, value in enumerate(state["weights"].values())}
        np.savez(self.folder / "weights.npz", losses=np.array(state["losses"]), **arrays)


if __name__ == "__main__":
    Learner(Path(sys.argv[1])).learn()
