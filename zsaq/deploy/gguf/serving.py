"""A GGUF in llama.cpp's own server, in this process: its answers, and its OpenAI-compatible endpoint for others."""

import json
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, final

from zsaq.deploy.gguf.ggml import MISSING

WAIT: Final = 600  # seconds for one answer


@final
class LlamaServer:
    """`file` is a GGUF. `context`: tokens that it keeps; `port` 0: one that is free; `exact`: the cache of keys and
    values in float32, instead of float16; `cache`: the type of that cache, such as "q8_0".

    Raises ImportError where xllamacpp is not installed, ValueError for a file that llama.cpp does not open and for
    another type of cache.
    """

    def __init__(
        self, file: Path, *, context: int = 0, threads: int | None = None, host: str = "127.0.0.1", port: int = 0,
        exact: bool = False, cache: str | None = None,
    ) -> None:  # fmt: skip
        try:
            import xllamacpp
        except ImportError as error:
            raise ImportError(MISSING, name="xllamacpp") from error
        llama: Any = xllamacpp
        kinds: Any = llama.ggml_type
        known = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0", "q5_0": "Q5_0", "q4_0": "Q4_0"}
        chosen = "f32" if exact else cache
        if chosen is not None and chosen not in known:
            raise ValueError(f"a cache of {cache!r} is unknown; give one of {', '.join(known)}")
        if port:
            try:
                with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as place:
                    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    place.bind((host, port))
            except OSError as error:
                raise ValueError(f"{host}, port {port}: {error}; give others") from error
        params: Any = llama.CommonParams()
        params.model.path = str(file)
        params.n_ctx, params.n_parallel = context, 1
        params.hostnames, params.port = [host], port
        params.verbosity, params.warmup, params.fit_params = 0, False, False
        if threads is not None:
            params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
        if chosen is not None:
            params.cache_type_k = params.cache_type_v = getattr(kinds, f"GGML_TYPE_{known[chosen]}")
        if exact:
            params.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        try:
            self._server: Any = llama.Server(params)
        except RuntimeError as error:
            raise ValueError(
                f"llama.cpp does not open {file}: {error}. zsaq verify tells whether the file is whole; a smaller "
                "--context needs less memory, and --cache f16 runs with every model"
            ) from error
        self._letter = self.tokens("a")[-1]

    @property
    def address(self) -> str:
        """Such as http://127.0.0.1:8080."""
        return self._server.listening_address

    def ask(self, path: str, **body: Any) -> Any:
        """What the endpoint answers to a POST of JSON."""
        return json.loads(b"".join(self._asked(path, body)))

    def _asked(self, path: str, body: dict[str, Any]) -> Iterator[bytes]:
        data, kind = json.dumps(body).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(self.address + path, data, kind)
        here = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # nothing leaves the machine
        try:
            with here.open(request, timeout=WAIT) as answer:
                yield from answer
        except urllib.error.HTTPError as error:
            told = error.read().decode(errors="replace")[:300]
            more = "; a longer --context has room for more tokens" if "context" in told else ""
            raise ValueError(f"llama.cpp refuses: {told}{more}") from error

    def tokens(self, text: str) -> list[int]:
        """Ids of a text, with what stands around one."""
        return self.ask("/tokenize", content=text, add_special=True, parse_special=True)["tokens"]

    def next_after(self, ids: list[int], size: int) -> list[float]:
        """Log probabilities of all `size` tokens after these."""
        body = {"prompt": ids, "n_predict": 1, "n_probs": size, "temperature": 0.0, "cache_prompt": False}
        body["logit_bias"] = [[self._letter, 1e4]]  # after one that ends a text, or half a letter, nothing is told
        told = self.ask("/completion", **body)["completion_probabilities"][0]["top_logprobs"]
        found = {each["id"]: each["logprob"] for each in told}
        if len(found) != size:
            raise ValueError(f"llama.cpp answers {len(found)} probabilities for {size} tokens")
        return [found[token] for token in range(size)]

    def write(self, ids: list[int], count: int, tick: Callable[[], None]) -> None:
        """`count` tokens after these, the likeliest each, an end of text or not; `tick` is called as each is told, half
        a letter with the other half."""
        body = {"prompt": ids, "n_predict": count, "temperature": 0.0, "cache_prompt": False, "ignore_eos": True}
        known = 0
        for line in self._asked("/completion", body | {"stream": True}):
            if line.startswith(b"data: {"):
                for _ in range(known, known := json.loads(line.removeprefix(b"data: "))["tokens_predicted"]):
                    tick()

    def chat(self, messages: list[dict[str, str]], **options: Any) -> dict[str, Any]:
        """The answer of /v1/chat/completions; `options` as OpenAI has them."""
        return self.ask("/v1/chat/completions", messages=messages, **options)
