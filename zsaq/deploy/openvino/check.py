"""An OpenVINO model beside its student."""

from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor
from transformers import PreTrainedModel

from zsaq.deploy.checks import tensors
from zsaq.deploy.comparison import Differences, apply_plainly, difference
from zsaq.deploy.openvino.session import Session
from zsaq.io.added import read_export
from zsaq.quant.packed import PackedEmbedding

SHIFTED: Final = 2.0**-15  # relative distance from a tie that a shift by half of 256 codes can take


def verify_openvino(model: PreTrainedModel, folder: Path, batches: list[dict[str, Tensor]]) -> dict[str, Any]:
    """The model in OpenVINO; token tables whole. It multiplies inputs by 1 / scale and shifts them by 128 before it
    rounds, so that ties reach further there (`SHIFTED`)."""
    place = folder / "openvino"
    places = openvino_places(place)
    differences = Differences(model, near=SHIFTED)
    if unknown := places.keys() - differences.packed.keys():
        raise ValueError(f"the export names {sorted(unknown)[:3]}, which are no packed layers: export again")
    watched = tuple(sorted({name for ends in places.values() for name in ends}))
    deployed, watching = Session(place), Session(place, watched)
    for inputs in batches:
        arrays = {name: value.numpy() for name, value in inputs.items()}
        values = arrays | watching.run(arrays)
        seen = {
            name: [(torch.tensor(values[start]), torch.tensor(values[end]))] for name, (start, end) in places.items()
        }
        answers = {name: values[name] for name in deployed.answers}
        differences.add(inputs, tensors(answers), seen, tensors(deployed.run(arrays)))
    for name, (start, end) in places.items():
        if isinstance(layer := differences.packed[name], PackedEmbedding):
            rows, _ = apply_plainly(layer, torch.arange(layer.num_embeddings))
            got = torch.tensor(watching.rows(start, end, len(rows)))
            differences.alone[name] = max(differences.alone.get(name, 0.0), difference(got, rows))
    return differences.facts()


def openvino_places(place: Path) -> dict[str, tuple[str, str]]:
    """Where each layer of the OpenVINO export in `place` begins and ends. Raises ValueError for others."""
    layers = read_export(place).get("layers")
    if not isinstance(layers, dict):
        raise ValueError(f"{place.name} does not tell of the model's layers: export the student again")
    places = {}
    for name, ends in layers.items():
        if not isinstance(ends, dict) or not all(isinstance(ends.get(end), str) for end in ("input", "output")):
            raise ValueError(f"{place.name} does not tell where {name} stands: export the student again")
        places[name] = (ends["input"], ends["output"])
    return places
