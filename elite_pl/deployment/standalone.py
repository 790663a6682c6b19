"""Scores new samples: `python score.py INPUT -o scores.csv`, with NumPy, and onnxruntime or PyTorch.

INPUT: an array (.npy) as in the training, or a table (.csv) if it had one, or images if it had some, which take Pillow.
"""

import argparse
import contextlib
import csv
import glob
import itertools
import json
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np

HERE = Path(__file__).resolve().parent
MANY = 256  # samples at a time
TABLES = (".csv", ".tsv", ".txt")
FORMULA = tuple("=+-@\t\r\n＝＋－＠")  # what a spreadsheet takes for the beginning of one
Part = tuple[str, list[str], np.ndarray]  # what names some samples, their names, and themselves, (n, ...)


class InputError(Exception):
    """Bad input: the message says what is wrong, and what was expected."""


# --------------------------------------------------------------------------------------------------------------- input


def samples(path: Path, about: dict[str, Any]) -> Iterator[Part]:
    """Yields the samples of a file or a folder, some at a time."""
    suffix, is_folder = path.suffix.lower(), path.is_dir()
    right = "an array (.npy)" + (", an image or a folder of images" if about["image"] else "")
    right = f"a table ({', '.join(TABLES)})" if about["encoding"] else right
    if not path.exists():
        raise InputError(f"no such file; expected {right}")
    if about["encoding"] and suffix in TABLES and not is_folder:
        yield from table(path, about)
    elif not about["encoding"] and suffix == ".npy" and not is_folder:
        yield from array(path, about)
    elif about["image"] and (is_folder or suffix in about["suffixes"]):
        yield from images(path, about)
    else:
        raise InputError(f"is not what the detector was trained on; expected {right}")


def array(path: Path, about: dict[str, Any]) -> Iterator[Part]:
    """Yields the samples of an array."""
    try:
        x = np.load(path, mmap_mode="r")
    except Exception as error:  # whatever the unpacking of a foreign file stumbles over
        raise InputError(f"is not a .npy file of numbers, or is damaged ({error}); expected an array") from None
    sides = ", ".join(map(str, about["shape"]))
    if not isinstance(x, np.ndarray) or x.dtype.kind not in "biuf":
        raise InputError("is not an array of numbers; expected integers or floats")
    if list(x.shape[1:]) != about["shape"] or not len(x):
        raise InputError(f"has shape {x.shape}; expected (n, {sides}) as in the training, at least one sample")
    for i in range(0, len(x), MANY):
        part = x[i : i + MANY]
        yield "index", [str(j) for j in range(i, i + len(part))], in_units(part, about)


def in_units(x: np.ndarray, about: dict[str, Any]) -> np.ndarray:
    """Returns samples as they are, unless their units are not those of the training."""
    with np.errstate(over="ignore"):
        if not np.isfinite(x.astype(np.float32)).all():
            raise InputError("holds values that are NaN, infinite or too large; expected finite numbers of 32 bits")
    low, high = x.min(), x.max()
    if about["image"]:
        whole = x.dtype.kind in "iu"
        kind = ("whole" if whole else "unit") if low >= 0 and high <= (255 if whole else 1) else "neither"
    else:
        whole, inside = bool((x == np.rint(x)).all()), bool(low >= 0 and high <= 1)
        kind = "any" if whole == inside else "whole" if whole else "unit"
    if kind != about["values"] and "any" not in (kind, about["values"]):
        right = "fractions from 0 to 1" if about["values"] == "unit" else "whole numbers"
        right += " from 0 to 255" if about["image"] and about["values"] == "whole" else ""
        raise InputError(f"holds {x.dtype} from {low} to {high}; expected {right}, as in the training")
    return x


def table(path: Path, about: dict[str, Any]) -> Iterator[Part]:
    """Yields the rows of a table, encoded."""
    ids, found = about["encoding"]["id_column"], rows(path, set(about["missing"]))
    try:
        while part := list(itertools.islice(found, MANY)):
            column = "id" if ids in part[0][1] else "index"
            yield column, [row[ids] or "" if column == "id" else str(i) for i, row in part], encoded(part, about)
    except UnicodeDecodeError:
        raise InputError("is not UTF-8; expected a table that is saved as UTF-8") from None
    except csv.Error as error:
        raise InputError(f"is not a CSV file ({error}); expected values between commas") from None


def rows(path: Path, missing: set[str]) -> Iterator[tuple[int, dict[str, str | None]]]:
    """Yields the rows of a CSV file with a value in them: their numbers, from 0, and their cells, None for nothing."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        first = file.readline()
        separator = max(",;\t|", key=first.count)
        header = next(csv.reader([first], delimiter=separator), [])
        names = [name.strip() or f"unnamed_{i}" for i, name in enumerate(header)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise InputError(f"has more than one column {', '.join(twice)}; expected each name once")
        lines, empty = csv.reader(file, delimiter=separator), True
        for i, line in enumerate(lines):
            if line and len(line) != len(names):
                found = f"{len(line)} values in line {lines.line_num + 1}, {len(names)} in the first line"
                raise InputError(f"{found}; expected as many in each")
            cells = [None if cell in missing else cell for cell in map(str.strip, line)]
            if any(cell is not None for cell in cells):
                empty = False
                yield i, dict(zip(names, cells, strict=True))
    if empty:
        raise InputError("has no row with a value in it; expected a line of names, and one row per sample")


def encoded(part: list[tuple[int, dict[str, str | None]]], about: dict[str, Any]) -> np.ndarray:
    """Returns rows of a table as vectors, as in the training."""
    columns = about["encoding"]["columns"]
    if absent := [column["name"] for column in columns if column["name"] not in part[0][1]]:
        raise InputError(f"has no column {', '.join(absent)}; expected those of the training rows")
    features: list[list[bool] | np.ndarray] = []
    for column in columns:
        cells = [row[column["name"]] for _, row in part]
        if column["kind"] == "words":
            words = column["categories"]
            cells = [spelled(cell, words) for cell in cells]
            features += [[cell == word for cell in cells] for word in words]
            features.append([cell not in words and not (cell is None and column["missing"]) for cell in cells])
        else:
            distance = (np.array([number(cell, column) for cell in cells]) - column["center"]) / column["scale"]
            features.append(np.arcsinh(np.clip(np.nan_to_num(distance), -1e300, 1e300)))
        if column["missing"]:
            features.append([cell is None for cell in cells])
    return np.stack(features, axis=1)


def spelled(cell: str | None, words: list[str]) -> str | None:
    """Returns true and false in the spelling of the training, and other words as they are."""
    if cell in words or cell not in ("true", "True", "TRUE", "false", "False", "FALSE"):
        return cell
    return next((word for word in words if word.lower() == cell.lower()), cell)


def number(text: str | None, column: dict[str, Any]) -> float:
    """Returns a number, or a date as days since 1970; NaN for nothing."""
    if text is None:
        return np.nan
    try:
        if column["kind"] == "numbers":
            found = float(text)
        else:
            padded = re.sub(r"(?<![\d.])\d(?!\d)", r"0\g<0>", text.replace("/", "-"))  # 2024-2-1
            date = datetime.fromisoformat(padded)
            found = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() / 86400
        if np.isfinite(found):
            return found
    except ValueError:
        pass
    raise InputError(f"column {column['name']} holds {text[:80]}; expected {column['kind']}, or nothing")


def images(path: Path, about: dict[str, Any]) -> Iterator[Part]:
    """Yields an image, or one after another those of a folder and of the folders in it."""
    folder, names = path.parent, [path.name]
    if path.is_dir():
        folder, found = path, sorted(glob.glob("**", root_dir=path, recursive=True))  # also what links lead to
        files = [name for name in found if not (path / name).is_dir()]
        names = [name for name in files if name.lower().endswith(tuple(about["suffixes"]))]
        if not names:
            raise InputError(f"no image in it; expected {', '.join(about['suffixes'])}")
        if others := sorted({*files} - {*names}):
            more = f" and {len(others) - 5} more" if len(others) > 5 else ""
            print(f"not taken for images by their names: {', '.join(others[:5])}{more}", file=sys.stderr)
    for name in names:
        if re.search("[\0-\x1f\ud800-\udfff]", name):
            raise InputError(f"the name {name!a} cannot be written into a table; expected printable text")
        yield "path", [name.replace(os.sep, "/")], pixels(folder / name, name, about)[None]


def pixels(path: Path, name: str, about: dict[str, Any]) -> np.ndarray:
    """Returns an image as in the training: upright, of 8 bits, over white where it is transparent."""
    from PIL import Image, ImageOps

    Image.init()
    channels, height, width = about["image"]
    try:
        with Image.open(path, formats=[kind for kind in about["formats"] if kind in Image.OPEN]) as file:
            file.draft(file.mode, (2 * max(height, width),) * 2)
            file.load()
            image: Image.Image = file
            with contextlib.suppress(Exception):  # of EXIF that cannot be read: it turns nothing
                image = ImageOps.exif_transpose(file)
            if image.mode == "F" or image.mode.startswith("I"):
                values = np.asarray(image)
                if image.mode == "F" or values.min() < 0 or values.max() > 65535:
                    raise ValueError(f"pixels of 32 bits, {image.mode}")
                image = Image.fromarray((values >> 8).astype(np.uint8))
            elif image.has_transparency_data:
                image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
            image = image.convert("L" if channels == 1 else "RGB").resize((width, height), Image.Resampling.BILINEAR)
    except Image.UnidentifiedImageError:
        raise InputError(f"{name} is not an image; expected {', '.join(about['formats'])}") from None
    except Exception as error:  # whatever the decoding of a foreign file stumbles over
        raise InputError(f"{name} cannot be read ({error}); expected an image of 8 or 16 bits") from None
    x = np.asarray(image).reshape(height, width, channels)
    x = x if about["channels_last"] else x.transpose(2, 0, 1)
    return (x / np.float32(255) if about["type"] == "float32" else x).reshape(about["shape"])


# -------------------------------------------------------------------------------------------------------------- output


def check_output(name: str, source: Path) -> None:
    """Refuses a file that scores cannot be written to, before anything is scored."""
    place = Path(name)
    if place.suffix.lower() != ".csv":
        raise InputError("is not .csv by its name; expected a CSV file")
    if place.is_dir() or not place.parent.is_dir():
        what = "is a folder" if place.is_dir() else f"there is no folder {place.parent}"
        raise InputError(f"{what}; expected the path of a file in a folder that is there")
    if place.exists() and source.exists() and place.samefile(source):
        raise InputError("is read, too; expected another file")


@contextlib.contextmanager
def output(name: str | None) -> Iterator[IO[str]]:
    """Opens a file that is complete or absent after the block; standard output for None."""
    text: dict[str, Any] = {"mode": "w", "encoding": "utf-8", "newline": ""}
    if name is None:
        with open(sys.stdout.fileno(), closefd=False, **text) as file:
            yield file
        return
    temporary = Path(name).with_name(f".{Path(name).stem}.{os.getpid()}.csv")
    try:
        with open(temporary, **text) as file:
            yield file
        os.replace(temporary, name)
    except OSError as error:
        if error.filename == str(temporary):  # a name that nobody has typed
            error.filename = name
        raise
    finally:
        temporary.unlink(missing_ok=True)


def safe(name: str) -> str:
    """Returns a name with a quote before it where a spreadsheet would run it as a formula; a number is none."""
    with contextlib.suppress(ValueError):
        float(name)
        return name
    return f"'{name}" if name.startswith(FORMULA) else name


def model() -> Callable[[np.ndarray], list[np.ndarray]]:
    """Returns a function that maps samples (n, ...) to their scores (n,) and to whether they are anomalies, (n,)."""
    if (HERE / "model.onnx").exists():
        import onnxruntime

        session = onnxruntime.InferenceSession(str(HERE / "model.onnx"), providers=["CPUExecutionProvider"])
        return lambda x: session.run(None, {"samples": x})
    import torch

    warnings.filterwarnings("ignore", "The given buffer is not writable")  # torch 2.11, of its own reading of a graph
    graph = torch.export.load(HERE / "model.pt2").module()
    return lambda x: [part.numpy() for part in graph(torch.from_numpy(x))]


def score(source: Path, to: str | None) -> None:
    """Scores a file or a folder into a CSV file, or onto standard output for None."""
    about = json.loads((HERE / "detector.json").read_text(encoding="utf-8"))
    parts = samples(source, about)
    first = next(parts)  # an input that is wrong says so before PyTorch has started
    run, normal, calibration = model(), np.array(about["normal_scores"]), about["calibration"]
    with output(to) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([first[0], "score", *["probability"] * bool(calibration), "p_value", "verdict"])
        for _, names, x in itertools.chain([first], parts):
            found, is_anomaly = run(np.array(x, dtype=about["type"], order="C"))
            if not np.isfinite(found).all():
                raise InputError("holds values so extreme that their scores are not finite; expected those of training")
            columns = [list(map(safe, names)), found.tolist()]
            if calibration:
                columns.append(np.interp(found, calibration["score"], calibration["probability"]).tolist())
            p_value = (len(normal) - np.searchsorted(normal, found) + 1) / (len(normal) + 1 if len(normal) else np.nan)
            columns += [p_value.tolist(), np.where(is_anomaly, "anomaly", "normal").tolist()]
            writer.writerows(zip(*columns, strict=True))


class Parser(argparse.ArgumentParser):
    """Says what is wrong on one line."""

    def error(self, message: str) -> NoReturn:
        """Exits with 2."""
        self.exit(2, f"error: {message}\n")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line, and exits with 2 for bad input."""
    parser = Parser(prog="score.py", description="Scores new samples by the detector beside this program.")
    parser.add_argument("input", metavar="INPUT", help="samples as in the training: an array, a table, or images")
    parser.add_argument("-o", "--output", metavar="FILE", help="a .csv file (default: standard output)")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that nothing half-written is left
    place = f"--output {options.output}"
    try:
        if options.output is not None:
            check_output(options.output, Path(options.input))
        place = options.input
        score(Path(options.input), options.output)
    except BrokenPipeError:  # `| head` has read enough
        sys.exit(128 + signal.SIGPIPE)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
    except InputError as error:
        parser.error(f"{place}: {' '.join(str(error).split())}")
    except ModuleNotFoundError as error:
        parser.error(f"{error.name} is not installed; expected the packages that README.md names")
    except OSError as error:
        written = options.output or "standard output"
        parser.error(f"{error.filename or written}: {error.strerror}; expected a file that can be read or written")


if __name__ == "__main__":
    main()
