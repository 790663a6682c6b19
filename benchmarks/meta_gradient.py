"""How well the meta-gradient finds hidden anomalies: its first values, its memory, spread over neighbors, with a graph.

    python -m elite_pl.train experiment=mnist_20_labels study=meta_gradient method=elite_svdd \
      method.record_iterations=780 normal_class=0,1,2,3,4
    python -m elite_pl.train experiment=mnist_gradients study=meta_gradient method=label_spreading \
      normal_class=0,1,2,3,4 pollution=.5,.1
    python benchmarks/meta_gradient.py outputs/meta_gradient [--write]

Prints the ROC AUC of the unlabeled training samples by each of them, the mean over the runs of a pollution.
"""

import argparse
import csv
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from elite_pl import config
from elite_pl.algorithm import metrics
from elite_pl.algorithm.calibration import rarity, share_below
from elite_pl.data.datamodule import PollutedData
from elite_pl.report.statistics import mean_std
from elite_pl.report.tables import plus_minus
from elite_pl.runs.audit import smoothed
from elite_pl.runs.build import make_data

RESULTS = Path(__file__).parent / "results" / "meta_gradient.md"
EPOCHS = 20  # of these runs, which record all their steps
DATA = ["experiment=mnist_20_labels", "hydra.mode=RUN", "method=elite_svdd"]


def column(path: Path, name: str, index: np.ndarray) -> Tensor:
    """A column of an `audit.csv`, in the order of `index`."""
    with path.open(newline="") as file:
        by_index = {int(row["index"]): float(row[name]) for row in csv.DictReader(file)}
    return torch.tensor([by_index[i] for i in index.tolist()], dtype=torch.float64)


def recorded(run: Path, data: PollutedData) -> tuple[Tensor, Tensor]:
    """M of each unlabeled sample in the first epoch and in the last one, divided by its mean size in the batch."""
    with np.load(run / "meta_gradient.npz") as file:
        index, value = file["index"], file["minus_meta_gradient"]
    value = value / np.nanmean(np.abs(value), axis=1, keepdims=True)
    place = {i: k for k, i in enumerate(data.split.unlabeled.tolist())}
    steps = len(index) // EPOCHS
    found = []
    for part in (slice(0, steps), slice(-steps, None)):
        d = torch.zeros(len(place), dtype=torch.float64)
        for i, v in zip(index[part].ravel().tolist(), value[part].ravel().tolist(), strict=True):
            if i >= 0:
                d[place[i]] = -v
        found.append(d)
    return found[0], found[1]


def together(*scores: Tensor) -> Tensor:
    """The sum of how rare each is among all, as `auto` counts it."""
    return sum(rarity(share_below(score, score)) for score in scores)


def signals(elite: Path, graph: Path, data: PollutedData) -> dict[str, Tensor]:
    """Suspicions of the unlabeled samples, by what they are made of."""
    first, last = recorded(elite, data)
    memory = column(elite / "audit.csv", "meta_gradient", data.split.unlabeled)
    spread = smoothed(memory, data.unlabeled)
    score = column(elite / "audit.csv", "suspicion", data.split.unlabeled)
    spreading = column(graph / "audit.csv", "suspicion", data.split.unlabeled)
    return {
        "-d of the first epoch": first,
        "-d of the last epoch": last,
        "-d, mean over training": memory,
        "the same, spread over ten neighbors": spread,
        "ELITE's score, spread over ten neighbors": score,
        "both": together(spread, score),
        "label spreading on oriented gradients": spreading,
        "label spreading and -d": together(spreading, spread),
        "label spreading and ELITE's score": together(spreading, score),
    }


def runs(study: Path, method: str) -> dict[tuple[float, str], Path]:
    """The finished runs of a method, by pollution and normal class."""
    found = {}
    for path in study.glob(f"*/{method}/*/metrics.json"):
        known = json.loads(path.read_text())
        found[known["pollution"], known["normal_class"]] = path.parent
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="the folder of the runs")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name} beside the other results")
    options = parser.parse_args()
    elite, graph = runs(options.study, "elite_svdd"), runs(options.study, "label_spreading")
    areas = defaultdict(lambda: defaultdict(list))
    for (pollution, normal_class), run in sorted(elite.items()):
        data = make_data(config.compose([*DATA, f"pollution={pollution}", f"normal_class={normal_class}"]))
        hidden = data.anomalous("unlabeled")
        for name, suspicion in signals(run, graph[pollution, normal_class], data).items():
            areas[name][pollution].append(100 * metrics.roc_auc(suspicion, hidden))
    pollutions = sorted({pollution for pollution, _ in elite})
    lines = [f"| suspicion | {' | '.join(f'pollution {p}' for p in pollutions)} |", "|---|" + "---|" * len(pollutions)]
    for name, by_pollution in areas.items():
        shown = [plus_minus(*mean_std(by_pollution[p])) for p in pollutions]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    print("\n".join(lines))
    if options.write:
        before, _, rest = RESULTS.read_text(encoding="utf-8").partition("| suspicion |")
        after = rest.partition("\n\n")[2]
        RESULTS.write_text(before + "\n".join(lines) + "\n\n" + after, encoding="utf-8")


if __name__ == "__main__":
    main()
