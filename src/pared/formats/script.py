"""A readable model.py that rebuilds network and preprocessing with torch and safetensors alone."""

from pathlib import Path
from string import Template

from torch import nn

from pared.formats.document import Document
from pared.storage import write_atomically


def write_script(path: Path, document: Document) -> None:
    """Write `path`, the script that answers for tables with the model document beside it."""
    network = "\n".join(f"    nn.{_describe(layer)}," for layer in document.model)
    task = document.task
    what = f"{task.kind} of {', '.join(task.targets)} from {len(document.encoder.columns)} columns"
    write_atomically(path, _SCRIPT.substitute(what=what.replace('"', "'").replace("\\", "/"), network=network))


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
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

# The network of model.safetensors, as rebuilt below.
NETWORK = nn.Sequential(
$network
)
MISSING = {"", "?", "NA", "N/A", "NaN", "nan", "null", "NULL", "None", "none", "#N/A", "<NA>"}
HERE = Path(__file__).resolve().parent


class Model:
    """Preprocessing, network and task of one point."""

    def __init__(self, spec, network):
        self.encoder, self.task, self.network = spec["encoder"], spec["task"], network.eval()
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
        text = None if value is None or value != value or as_text(value) in MISSING else as_text(value)
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
    with open(sys.argv[1], newline="", encoding="utf-8-sig") as file:
        first = file.readline()
        file.seek(0)
        delimiter = max(",;\\t|", key=first.count)
        rows = list(csv.DictReader(file, delimiter=delimiter, skipinitialspace=True))
    try:
        answers = load(*sys.argv[2:3]).predict(rows)
    except ValueError as error:
        sys.exit(f"{sys.argv[1]}: {error}")
    for answer in answers:
        print(json.dumps(answer, ensure_ascii=False))
''')
