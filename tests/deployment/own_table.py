"""A user's own table for the tests."""

from pathlib import Path

import numpy as np

ROWS = 200


def table() -> dict[str, list[str]]:
    """Mixed columns with gaps, as text."""
    rng = np.random.default_rng(0)
    ages = rng.normal(40, 5, ROWS).round(2).astype(str)
    ages[::7] = ""
    labels = np.full(ROWS, "", dtype=object)
    labels[:10], labels[10:20] = "normal", "anomaly"
    return {
        "id": [f"row {i}" for i in range(ROWS)],
        "age": ages.tolist(),
        "income": np.exp(rng.normal(8, 1, ROWS)).round(2).astype(str).tolist(),
        "color": rng.choice(["red", "green", "blue", "?"], ROWS).tolist(),
        "day": [str(np.datetime64("2024-02-01") + np.timedelta64(i % 100, "D")) for i in range(ROWS)],
        "label": labels.tolist(),
    }


def write_csv(path: Path | str, columns: dict[str, list[str]], separator: str = ",") -> None:
    """Writes columns as CSV."""
    lines = [list(columns), *zip(*columns.values(), strict=True)]
    Path(path).write_text("".join(separator.join(map(str, line)) + "\n" for line in lines))
