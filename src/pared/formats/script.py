"""A readable model.py that rebuilds network and preprocessing with torch and safetensors alone."""

from pathlib import Path
from string import Template

from torch import nn

from pared.data.dialect import Dialect
from pared.formats.document import Document
from pared.storage import write_atomically


def write_script(path: Path, document: Document) -> None:
    """Write `path`, the script that answers for tables with the model document beside it."""
    network = "\n".join(f"    nn.{_describe(layer)}," for layer in document.model)
    task = document.task
    what = f"{task.kind} of {', '.join(task.targets)} from {len(document.encoder.columns)} columns"
    table = repr((document.dialect or Dialect()).to_json())
    what = "".join(letter if letter.isprintable() else f"U+{ord(letter):04X}" for letter in what)
    what = what.replace('"', "'").replace("\\", "/")
    write_atomically(path, _SCRIPT.substitute(what=what, network=network, table=table))


def _describe(layer: nn.Module) -> str:
    if isinstance(layer, nn.Linear):
        return f"Linear({layer.in_features}, {layer.out_features}, bias={layer.bias is not None})"
    return f"{type(layer).__name__}()"


_SCRIPT = Template('''\
"""A small network, $what.

Generated. Needs torch and safetensors, nothing else. `python model.py NEW.csv` prints predictions;
`from model import load` gives a model whose `predict` takes a list of dicts, one a row.
Another point of the front: `python model.py NEW.csv front/03` (its network is read from its .json file).
"""

import csv
import datetime
import gzip
import io
import json
import math
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

# The network of model.safetensors, as rebuilt below.
NETWORK = nn.Sequential(
$network
)
# How the training table was written, where model.json does not say.
TABLE = $table
HERE = Path(__file__).resolve().parent


class Model:
    """Preprocessing, network and task of one point."""

    def __init__(self, spec, network):
        self.encoder, self.task, self.network = spec["encoder"], spec["task"], network.eval()
        self.table = spec.get("table") or TABLE
        self.missing = set(self.table["missing"])
        self.kinds = {column["name"]: column["kind"] for column in self.encoder["columns"]}
        self.levels = {column["name"]: set(column.get("levels", [])) for column in self.encoder["columns"]}

    def encode(self, rows):
        """Rows as dicts of column name to value -> float32 inputs, (rows, inputs)."""
        lacking = [name for name in self.levels if rows and name not in rows[0]]
        if lacking:
            raise ValueError("missing columns: " + ", ".join(lacking))
        values = [[self._input(item, row[item["column"]]) for item in self.encoder["inputs"]] for row in rows]
        return torch.tensor(values, dtype=torch.float32).reshape(len(rows), len(self.encoder["inputs"]))

    def predict(self, rows):
        """One dict a row: for classes `prediction` and `probabilities`, for quantities the targets by name."""
        with torch.inference_mode():
            outputs = self.network(self.encode(rows)).double()
        if self.task["kind"] == "regression":
            values = outputs * torch.tensor(self.task["scale"]).double() + torch.tensor(self.task["mean"]).double()
            return [dict(zip(self.task["targets"], row)) for row in values.tolist()]
        classes = self.task["classes"]
        return [
            {"prediction": classes[max(range(len(row)), key=row.__getitem__)], "probabilities": dict(zip(classes, row))}
            for row in outputs.softmax(1).tolist()
        ]

    def _input(self, item, value):
        text = None if value is None or value != value or as_text(value) in self.missing else as_text(value)
        if item["op"] == "missing":
            return float(text is None)
        if item["op"] == "equals":
            return float(text == item["level"])
        if item["op"] == "other":
            return float(text is not None and text not in self.levels[item["column"]])
        if text is None:
            number = item["fill"]
        else:
            number = float(text) if item["op"] == "value" else date_part(text, item["part"])
        if not math.isfinite(number):
            raise ValueError(f"column {item['column']!r} is not finite: {text}")
        return min(max((number - item["mean"]) / item["scale"], -item["clip"]), item["clip"])


def as_text(value):
    """Any value as the text that training saw: the number 3.0 is "3"."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value).strip()


def date_part(text, part):
    """A part of an ISO date or date and time."""
    moment = datetime.datetime.fromisoformat(text)
    if part == "weekday":
        return float(moment.weekday())
    if part == "days":
        return (moment - datetime.datetime(1970, 1, 1)).total_seconds() / 86400
    return float(getattr(moment, part))


def read(path, model):
    """The rows of a text file as dicts, read as the training table was where the file leaves that open."""
    content = Path(path).read_bytes()
    content = gzip.decompress(content) if path.endswith(".gz") else content
    wide = content[:2] in (b"\\xff\\xfe", b"\\xfe\\xff")
    text = content.decode("utf-16" if wide else "utf-8-sig")
    usual = model.table
    delimiter = "\\t" if ".tsv" in Path(path).suffixes else find_delimiter(text.splitlines(), usual["delimiter"])
    rows = [row for row in split(io.StringIO(text), delimiter) if len(row) > 1 or "".join(row).strip()]
    if len(rows) > 1 and len(rows[0]) < len(rows[1]) and rows[0][0].lstrip()[:1] in ("|", "#", "%"):
        del rows[0]
    if any(len(row) != len(rows[0]) for row in rows):
        raise ValueError(f"rows of different lengths, separated by {delimiter!r}")
    numbered = [f"column_{i + 1}" for i in range(len(rows[0]) if rows else 0)]
    names = [name.strip() for name in rows.pop(0)] if usual["header"] and rows else numbered
    comma = delimiter != "," and find_decimal(rows, usual["decimal"]) == ","
    numeric = [comma and model.kinds.get(name) == "number" for name in names]
    return [
        {name: plain(cell) if is_number else cell for name, cell, is_number in zip(names, row, numeric)} for row in rows
    ]


def split(lines, delimiter):
    """Rows of fields."""
    return csv.reader(lines, delimiter=delimiter, skipinitialspace=True)


def find_delimiter(lines, usual):
    """What splits most of the first lines into equally many fields, the more the better; else the usual one."""
    sample, best = [line for line in lines[:200] if line.strip()][:100], (0, 0, False, usual)
    for delimiter in {*",;\\t|", usual}:
        widths = [len(row) for row in split(sample, delimiter)]
        width = max(widths, key=widths.count, default=1)
        if width > 1:
            share = round(widths.count(width) / len(widths), 1)
            best = max(best, (share, width, delimiter == usual, delimiter))
    return best[-1]


def find_decimal(rows, usual):
    """The mark in most numbers that have one, else the usual one."""
    cells = [cell.strip() for row in rows[:500] for cell in row]
    commas = sum("," in cell and is_float(plain(cell)) for cell in cells)
    points = sum("." in cell and is_float(cell) for cell in cells)
    return usual if commas == points else "," if commas > points else "."


def plain(cell):
    """A number with a decimal comma as one with a point."""
    return cell.replace(".", "x").replace(",", ".")


def is_float(text):
    """Whether a text is a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def load(stem="model"):
    """The model, or the point of the front, whose files begin with `stem`."""
    spec = json.loads((HERE / f"{stem}.json").read_text(encoding="utf-8"))
    layers = []
    for layer in spec["layers"]:
        arguments = [layer["in_features"], layer["out_features"], layer["bias"]] if layer["type"] == "Linear" else []
        layers.append(getattr(nn, layer["type"])(*arguments))
    network = NETWORK if stem == "model" else nn.Sequential(*layers)
    network.load_state_dict(load_file(HERE / f"{stem}.safetensors"))
    return Model(spec, network)


if __name__ == "__main__":
    try:
        model = load(*sys.argv[2:3])
        answers = model.predict(read(sys.argv[1], model))
    except (ValueError, OSError, EOFError) as error:
        sys.exit(f"{sys.argv[1]}: {error}")
    for answer in answers:
        print(json.dumps(answer, ensure_ascii=False))
''')
