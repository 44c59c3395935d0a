"""Which layer family first: fits under a binding bound, how much of the bound they use, and what a step costs.

Two targets: a square wave of height 1 with three jumps on [-2, 2] (the best mean squared error of a lip-Lipschitz
function is 1 / (16 lip)), and a saturated linear controller clip(K x, -1, 1), 4 -> 2, |K| = 5.5. Full-batch Adam, best
of two learning rates, mean over two seeds. The proved bound is LipSDP's on the trained network.

    python benchmarks/nn_layers.py
"""

import json
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lipctrl.certify.bracket import certify
from lipctrl.nn.network import lipschitz_mlp
from lipctrl.runs import package_versions

CANDIDATES = [
    ("spectral", "relu"), ("orthogonal", "relu"), ("aol", "relu"), ("orthogonal", "maxmin"), ("aol", "maxmin"),
    ("sll", "relu"), ("cpl", "relu"), ("sandwich", "relu"), ("ldlt", "relu"), ("ldlt-residual", "relu"),
]  # fmt: skip
RATES, SEEDS = (3e-3, 1e-2), (0, 1)


def square_wave() -> tuple[Tensor, Tensor]:
    x = (torch.arange(400) + 0.5)[:, None] / 100 - 2
    return x, torch.sign(torch.sin(np.pi * x)) / 2


def controller() -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng(0)
    gain = rng.normal(size=(2, 4))
    gain *= 5.53 / np.linalg.norm(gain, 2)
    x = rng.uniform(-1, 1, (1000, 4))
    return torch.from_numpy(x).float(), torch.from_numpy(np.clip(x @ gain.T, -1, 1)).float()


def fit(family: str, activation: str, sizes: tuple[int, ...], lip: float, x: Tensor, u: Tensor, steps: int) -> dict:
    losses, ratios = [], []
    for seed in SEEDS:
        best = (float("inf"), None)
        for rate in RATES:
            net = lipschitz_mlp(family, sizes, lip, activation=activation, seed=seed)
            optimiser = torch.optim.Adam(net.parameters(), lr=rate)
            schedule = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.02, steps)
            for _ in range(steps):
                loss = (net(x) - u).square().mean()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
            best = min(best, (loss.item(), net), key=lambda pair: pair[0])
        bracket = certify(best[1].to_plain())
        losses.append(best[0])
        ratios.append((bracket.lower.bound / lip, bracket.upper.bound / lip))
    attained, proved = (statistics.mean(values) for values in zip(*ratios, strict=True))
    return {"mse": statistics.mean(losses), "attained/lip": attained, "proved/lip": proved}


def step_milliseconds(family: str, activation: str, width: int) -> float:
    net = lipschitz_mlp(family, (width, width, width, width), 1.0, activation=activation)
    x, times = torch.randn(256, width), []
    for _ in range(12):
        start = time.perf_counter()
        net(x).square().mean().backward()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[2:])


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    wave, law = square_wave(), controller()
    for family, activation in CANDIDATES:
        row: dict = {"family": family, "activation": activation}
        for lip in (1.0, 5.0):
            row[f"square wave, lip {lip:g}"] = fit(family, activation, (1, 64, 64, 64, 1), lip, *wave, 600)
        for lip in (2.0, 4.0, 6.6):
            row[f"controller, lip {lip:g}"] = fit(family, activation, (4, 64, 64, 2), lip, *law, 300)
        row["step ms, width 64"] = step_milliseconds(family, activation, 64)
        row["step ms, width 256"] = step_milliseconds(family, activation, 256)
        rows.append(row)
        print(json.dumps(row), flush=True)
    result = {"machine": platform.platform(), "threads": 1, "versions": package_versions(), "rows": rows}
    path = Path(__file__).parent / "results" / "nn_layers-cpu.json"
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
