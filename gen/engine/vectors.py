"""Vectors that come and go while a server runs: /steer/vectors and /steer/info, a layer inside vLLM's application.

An API key's vectors are its own: other keys neither see nor name them, and the operator's are everybody's to use and nobody's to change.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import tempfile
from pathlib import Path
from typing import Any

from gen.engine.limits import KINDS, LIMIT, NAME, metrics, owner
from gen.engine.requests import BankFull, LoadedVector, Registry, vector_key
from gen.engine.settings import settings_of
from gen.engine.steering import TERMS, VERSION
from gen.engine.terms import POSITIONS
from shared.errors import SteerHealError
from shared.publish import atomic_file
from shared.vector_gguf import holds_gguf
from shared.vectors import Vector, load_vector

RETRY = 5  # seconds after which a full bank may have a slot, since requests end


class RefusedRequest(Exception):
    """An answer that is an error: its HTTP status and its sentence."""

    def __init__(self, code: int, message: str):
        super().__init__(message)
        self.code, self.message = code, message


class Vectors:
    """ASGI: answers under /steer, and hands everything else on."""

    def __init__(self, app: Any):
        self.app = app
        self._loading = asyncio.Lock()  # one vector at a time: a slot is free until its vector is in it

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.requests import Request
        from starlette.responses import JSONResponse

        if scope["type"] != "http" or not scope["path"].startswith("/steer/"):
            await self.app(scope, receive, send)
            return
        request, headers = Request(scope, receive), {}
        engine = scope["app"].state.engine_client
        try:
            answer, code = await self._answer(request, Steered(engine)), 200
        except RefusedRequest as refused:
            code = refused.code
            metrics.refusals.labels(str(code)).inc()
            answer = {"error": {"message": refused.message, "type": KINDS[code], "param": None, "code": code}}
            headers = {"retry-after": str(RETRY)} if code == 429 else {}
        await JSONResponse(answer, code, headers)(scope, receive, send)

    async def _answer(self, request: Any, steered: Steered) -> dict[str, Any]:
        method, name = request.method, request.url.path.removeprefix("/steer/vectors").strip("/")
        if request.url.path == "/steer/info" and method == "GET":
            return steered.info()
        if request.url.path == "/steer/vectors" and method == "POST":
            return await self._upload(request, steered)
        visible = steered.registry.visible(owner.get())
        if request.url.path == "/steer/vectors" and method == "GET":
            return {"object": "list", "data": [described_vector(name, entry, steered, owner.get()) for name, entry in sorted(visible.items())]}  # fmt: skip
        if method not in ("GET", "DELETE") or "/" in name or request.url.path == "/steer/info":
            raise RefusedRequest(405, f"{method} {request.url.path}: POST /steer/vectors?name=N, GET or DELETE /steer/vectors/N, GET /steer/info")  # fmt: skip
        if name not in visible:
            raise RefusedRequest(404, f"no such vector: {name!r}; there are {', '.join(sorted(visible)) or 'none'}")
        if method == "DELETE":
            async with self._loading:
                steered.remove(name)
            return {"id": name, "object": "steering_vector", "deleted": True}
        return described_vector(name, visible[name], steered, owner.get())

    async def _upload(self, request: Any, steered: Steered) -> dict[str, Any]:
        if not owner.get():
            raise RefusedRequest(403, "a vector is taken with an API key alone: start the server with VLLM_API_KEY and send it as the bearer token")  # fmt: skip
        if set(request.query_params) != {"name"} or not NAME.fullmatch(name := request.query_params["name"]):
            raise RefusedRequest(400, "POST /steer/vectors?name=N: a name of letters, digits, '.', '_' and '-', and no other parameter")  # fmt: skip
        if name in steered.registry.loaded:
            raise RefusedRequest(409, f"{name!r} is the operator's vector: choose another name")
        body = await request.body()
        async with self._loading:
            return described_vector(name, await steered.put(name, body), steered, owner.get())


class Steered:
    """The engine that a request under /steer is about.

    Raises:
        Refused: 404 for an engine that does not steer.
    """

    def __init__(self, engine: Any):
        settings = settings_of(engine.vllm_config)
        if settings is None:
            raise RefusedRequest(404, "this engine does not steer")
        self.engine, self.settings = engine, settings
        self.registry: Registry = engine.input_processor.steering_registry
        self.text = engine.model_config.hf_text_config

    async def put(self, name: str, body: bytes) -> LoadedVector:
        """Put a client's vector into the bank and offer it to requests. Running requests keep the content that they began with.

        Args:
            name: of the vector.
            body: of a safetensors file.

        Raises:
            RefusedRequest: the vector, or an engine that several API servers share.
        """
        if self.engine.vllm_config.parallel_config._api_process_count > 1:
            raise RefusedRequest(400, "several API servers share this engine, and one would not know of the vector: --api-server-count 1")  # fmt: skip
        key = vector_key(name, owner.get())
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "vector.safetensors"
            path.write_bytes(body)
            vector = await asyncio.to_thread(self._checked, name, path)
            if key in self.registry.loaded and self.registry.loaded[key].digest == vector.digest()[:16]:
                return self.registry.loaded[key]
            try:
                loaded = self.registry.placed(key, vector, elsewhere=True)
            except BankFull:  # whose sentence names the vectors of other keys
                raise RefusedRequest(429, f"all {self.registry.slots} slots hold vectors that are offered or that running requests use: delete one, or try again in {RETRY} seconds") from None  # fmt: skip
            if key in self.registry.loaded and self.registry.loaded[key].slot == loaded.slot:
                del self.registry.loaded[key]  # nobody may name it while its slot is written
            await self.engine.collective_rpc("steer_load", args=(loaded.slot, str(path)))
            if self.settings.folder is not None:
                self._kept(name).parent.mkdir(parents=True, exist_ok=True)
                with atomic_file(self._kept(name)) as kept:
                    Path(kept).write_bytes(body)
        self.registry.loaded[key] = loaded
        return loaded

    def _checked(self, name: str, path: Path) -> Vector:
        try:
            if holds_gguf(path):
                raise RefusedRequest(400, "the body is GGUF: send safetensors, `steer-heal vector convert` makes them")
            vector = load_vector(path)
            vector.check(name, hidden=self.text.hidden_size, depth=self.text.num_hidden_layers)
        except SteerHealError as error:
            raise RefusedRequest(400, str(error).replace(str(path), name)) from None
        if outside := sorted(set(vector.layers) - set(self.settings.layers)):
            raise RefusedRequest(400, f"{name} steers layers {outside}, which this server has not patched: start it with --layers, it has {self.settings.layers}")  # fmt: skip
        return vector

    def remove(self, name: str) -> None:
        """Offer one of the client's vectors no longer."""
        key = vector_key(name, owner.get())
        if "/" not in key or key not in self.registry.loaded:
            raise RefusedRequest(403, f"{name!r} is the operator's vector")
        self.registry.remove(key)
        if self.settings.folder is not None:
            self._kept(name).unlink(missing_ok=True)

    def _kept(self, name: str) -> Path:
        return Path(str(self.settings.folder)) / owner.get() / f"{name}.safetensors"

    def info(self) -> dict[str, Any]:
        """What a client needs in order to extract a vector for this server: model, layers, depth and hidden size."""
        model = self.engine.model_config
        return {
            "model": model.served_model_name,
            "fingerprint": self.settings.model,
            "layers": self.settings.layers,
            "depth": self.text.num_hidden_layers,
            "hidden": self.text.hidden_size,
            "dtype": str(model.dtype).removeprefix("torch."),
            "slots": {"total": self.registry.slots, "free": self.registry.free},
            "terms": TERMS,
            "positions": list(POSITIONS),
            "reading": self.settings.read,
            "upload": {"bytes": LIMIT, "key": bool(owner.get()), "kept": self.settings.folder is not None},
            "versions": {
                "vllm": importlib.metadata.version("vllm"),
                "steer_heal": importlib.metadata.version("steer-heal"),
                "op": VERSION,
            },
        }


def described_vector(name: str, entry: LoadedVector, steered: Steered, client: str) -> dict[str, Any]:
    """A vector as the server's API returns it.

    relative_dose is given for coefficient 1, by layer. It is null in a layer where the norm of the residual stream was not measured.
    """
    return {
        "id": name,
        "object": "steering_vector",
        "owner": "client" if client and steered.registry.loaded.get(vector_key(name, client)) == entry else "operator",
        "digest": entry.digest,
        "positions": entry.positions,
        "largest_coefficient": entry.largest,
        "norm": {str(layer): norm for layer, norm in entry.norms.items()},
        "relative_dose": {str(layer): entry.dose.get(layer) for layer in entry.norms},
    }
