"""A GGUF beside its student: each layer's product by ggml itself, the tokens of texts, and whole answers of llama.cpp.

llama.cpp has no hook between its layers, so that what is compared is: every stored tensor, bit for bit; every layer
alone, on the inputs that it has in the student, with ggml's rule in float64 (weights of the file; inputs in blocks of
8 bits, whose scales are of float16 in blocks of 32); and from tokens to log probabilities a student by that rule.
There float noise takes inputs across rounding ties, as from layer to layer, so that ends are near and not equal.
"""

from pathlib import Path
from typing import Any, Final, final

import gguf
import torch
from torch import Tensor
from transformers import PreTrainedModel

from zsaq.deploy.comparison import NEAR, TOLERANCE, difference, see, worst
from zsaq.deploy.gguf.blocks import Stored
from zsaq.deploy.gguf.families import family_of
from zsaq.deploy.gguf.ggml import product
from zsaq.deploy.gguf.serving import LlamaServer
from zsaq.deploy.gguf.tensors import own_layers, parts, stored_layer, table_rows
from zsaq.deploy.gguf.write import FILE, otherwise
from zsaq.io.added import sealed_export
from zsaq.io.readers import tokenizer_of
from zsaq.quant.packed import PackedEmbedding, packed_layers
from zsaq.quant.plan import plan_of

ROWS: Final = 64  # inputs of a layer that are compared
PROMPTS: Final = (1, 7, 24, 60)  # tokens, and one longer than each window
USUAL: Final = 3  # batches that are not for windows
ENDS: Final = 0.05  # of the spread of log probabilities, or three times what NOISE does, up to MOST: a wrong model is 1
MOST: Final = 0.3
NOISE: Final = 2.0**-21  # relative, of inputs
TEXTS: Final = (
    "The quick brown fox jumps over 13 lazy dogs, doesn't it?", "  two spaces\tand\ttabs\n\n\nlines", "1234567 3.14159",
    "naïve café, Ünïcödé, 你好世界, こんにちは, Привет, مرحبا", "def f(x):\n    return x ** 2  # code",
    "🙂 emoji 👩‍👩‍👧", "a", " ",
)  # fmt: skip
ADDED: Final = 256  # tokens of the tokenizer's own that are tried between words and spaces, the first


def rounded(x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Inputs [n, in] float32 as ggml rounds them in blocks of `size`, float64, and the step where one is so near a tie
    that either of its neighbours is right, else 0."""
    view = x.unflatten(-1, (-1, size))
    most = view.abs().amax(-1, keepdim=True)
    scale = most / 127
    place = view * torch.where(most > 0, 127 / most, 0)
    tie = (place - place.floor() - 0.5).abs() <= NEAR * place.abs().clamp_min(1)
    held = scale.half().double() if size == 32 else scale.double()
    return (place.round().double() * held).flatten(-2), (tie.double() * held).flatten(-2)


def alone(layer: Stored, x: Tensor) -> float:
    """How far ggml's product is from its rule, relative to the largest output."""
    got = torch.from_numpy(product(layer.rows, layer.layout.name, x.numpy()))
    weight = torch.from_numpy(layer.values).double()
    values, steps = rounded(x, layer.layout.size)
    return difference(got, values @ weight.T, steps @ weight.abs().T)


@final
class ByTheirRule:
    """Inside, the packed layers of `model` compute with the file's weights, on inputs as ggml rounds them; with
    relative `noise` of a fixed seed on these."""

    def __init__(self, model: PreTrainedModel, layers: dict[str, Stored], noise: float = 0.0) -> None:
        self.model, self.layers, self.noise, self.handles = model, layers, noise, list[Any]()

    def __enter__(self) -> None:
        tied, rng = plan_of(self.model).tied, torch.Generator().manual_seed(0)
        for name, layer in packed_layers(self.model):
            stored = self.layers[tied.get(name, name)]

            def instead(module: Any, args: tuple[Tensor, ...], out: Tensor, stored: Stored = stored) -> Tensor:
                if isinstance(module, PackedEmbedding):
                    return out
                x = args[0].flatten(0, -2).float()
                if self.noise:
                    x = x + x * self.noise * torch.randn(x.shape, generator=rng)
                x = rounded(x, stored.layout.size)[0].float()
                return torch.nn.functional.linear(x, torch.from_numpy(stored.values), module.bias).view(out.shape)

            self.handles.append(layer.register_forward_hook(instead))

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


def verify_gguf(model: PreTrainedModel, folder: Path, batches: list[dict[str, Tensor]]) -> dict[str, Any]:
    """Facts for the parity report. Raises ValueError for a file of another student or that does not open, ImportError
    where xllamacpp is not installed."""
    place = folder / "gguf"
    facts = sealed_export(place)
    wrong = otherwise(place / FILE, list(parts(model, family_of(model.config))))
    layers, tied = {name: stored_layer(name, layer) for name, layer in own_layers(model)}, plan_of(model).tied
    names = [name for name, layer in packed_layers(model) if not isinstance(layer, PackedEmbedding)]
    most = max(batches[:USUAL], key=lambda inputs: inputs["input_ids"].numel())
    _, seen = see(model, names, most)
    far = {n: alone(layers[tied.get(n, n)], c[0][0].flatten(0, -2)[:ROWS].float()) for n, c in seen.items()}
    most_read = int(gguf.GGUFReader(place / FILE).fields[f"{facts['architecture']}.context_length"].contents())
    longest = min(most_read - 2, max(*PROMPTS, *(inputs["input_ids"].shape[1] for inputs in batches)))
    prompts = sorted({min(count, longest) for count in (*PROMPTS, longest)})
    server = LlamaServer(place / FILE, context=longest + 8, threads=torch.get_num_threads(), exact=True)
    ends, texts = ending(model, layers, server, prompts), words(folder, server)
    far_off = sorted([name for name, value in far.items() if not value <= TOLERANCE] + wrong)
    near = ends["relative"] <= max(ENDS, min(MOST, 3 * ends["rounding_ties"]))
    return {
        "agrees": bool(far) and near and not far_off and not texts.get("differ"),
        "disagree": far_off,
        "worst": {"alone": worst(far)},
        "end_to_end": ends,
        "tokens": texts,
        "types": facts.get("types"),
        "rule": "inputs in blocks of 8 bits, as ggml rounds them for each type",
        "layers": far,
    }


@torch.no_grad()
def ending(
    model: PreTrainedModel, layers: dict[str, Stored], server: LlamaServer, prompts: list[int]
) -> dict[str, Any]:
    """Log probabilities after random tokens: llama.cpp beside the student by its rule, and by the student's own."""
    rng, size = torch.Generator().manual_seed(0), table_rows(model)
    theirs, by_rule, own, noisy = list[Tensor](), list[Tensor](), list[Tensor](), list[Tensor]()
    for count in prompts:
        ids = torch.randint(3, size, (1, count), generator=rng)
        theirs.append(torch.tensor(server.next_after(ids[0].tolist(), size)))
        own.append(last(model, ids))
        for answers, noise in ((by_rule, 0.0), (noisy, NOISE)):
            with ByTheirRule(model, layers, noise):
                answers.append(last(model, ids))
    got, want, ours, other = (torch.stack(each) for each in (theirs, by_rule, own, noisy))
    return {
        "tokens": prompts,
        "relative": apart(got, want),
        "rounding_ties": apart(other, want),
        "kl": float((want.exp() * (want - got)).sum(-1).mean()),
        "same_answer": float((got.argmax(-1) == want.argmax(-1)).float().mean()),
        "student_by_this_rule": apart(ours, want),
    }


def last(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Log probabilities after a row of tokens."""
    return model(input_ids=ids).logits[0, -1].float().log_softmax(-1)


def apart(got: Tensor, want: Tensor) -> float:
    """The distance of two rows of log probabilities over their spread, at most, over all rows."""
    spread = (want - want.mean(-1, keepdim=True)).norm(dim=-1)
    return float(((got - want).norm(dim=-1) / spread.clamp_min(1e-30)).max())


def words(folder: Path, server: LlamaServer) -> dict[str, Any]:
    """Which of a few texts, and of added tokens within words, llama.cpp takes for other tokens than the student's own
    tokenizer."""
    reader = tokenizer_of(folder)
    if reader is None:
        return {"texts": 0}
    added = [token.content for _, token in sorted(reader.added_tokens_decoder.items())][:ADDED]
    tried = (*TEXTS, *(f"the {token} fox{token}s" for token in added))
    pairs = {text: {"llama.cpp": server.tokens(text), "student": list(reader(text)["input_ids"])} for text in tried}
    differ = {text: ids for text, ids in pairs.items() if ids["llama.cpp"] != ids["student"]}
    return {"texts": len(tried), "differ": differ}
