"""What a run of each method costs: wall-clock and memory of the whole process, one after the other on one thread.

    ELITE_PL_DATA=… python benchmarks/cost_of_methods.py [METHOD…]

Each run is `python -m elite_pl.train` on MNIST with 5,000 training samples, 20 of them labeled, the common budget, and
no study to share pre-training with. "training" is `train/seconds` of its metrics: preparation and training, with a look
at the test set after every epoch, without start, reading and the files at the end. Memory is the largest resident set
that the operating system saw.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import machine

PROJECT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "cost_of_methods.md"
OTHER_BUDGETS = ("_release", "_published")


def measure(method: str, arguments: list[str]) -> tuple[float, float, float]:
    """Seconds of the process, seconds of training in it, and the peak of its memory in MiB."""
    with tempfile.TemporaryDirectory() as directory:
        start = time.monotonic()
        typed = (f"method={method}", "dataset=mnist", "normal_class=3", *arguments, f"output_dir={directory}")
        lines, usage = machine.train(*typed)
        metrics = json.loads((Path(lines[-1]) / "metrics.json").read_text())
        return time.monotonic() - start, metrics["train/seconds"], usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found = sorted(path.stem for path in (PROJECT / "conf" / "method").glob("*.yaml"))
    common = [method for method in found if not method.endswith(OTHER_BUDGETS)]
    parser.add_argument("methods", nargs="*", default=common, metavar="METHOD", help="default: all of one budget")
    parser.add_argument("--typed", nargs="*", default=[], metavar="KEY=VALUE", help="such as epochs=1, to try it out")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name} beside the other results")
    options = parser.parse_args()
    lines = ["| method | whole process | training | peak memory |", "|---|---|---|---|"]
    for method in options.methods:
        seconds, training, memory = measure(method, options.typed)
        lines.append(f"| {method} | {seconds:.0f} s | {training:.1f} s | {memory:.0f} MiB |")
        print(lines[-1], flush=True)
    text = f"""# What a run of each method costs

`ELITE_PL_DATA=… python benchmarks/cost_of_methods.py --write`: MNIST, 5,000 training samples, 20 of them labeled, the
whole test set scored after every epoch; one run each, one after the other, on one thread. Training includes
pre-training, and for `ssad` the cross-validation.

{chr(10).join(lines)}

{machine.in_words()}"""
    if options.write:
        RESULTS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
