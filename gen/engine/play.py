"""The page at /play, and at /steer/play what it is about. It asks the server it comes from, and nothing else."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

PAGE = "STEER_HEAL_PLAY"  # environment: a JSON object, which gen.play sets
FILE = Path(__file__).with_name("play.html")
# No other origin is asked, no other page may hold this one, and what a model writes can run nowhere
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"


class Play:
    """ASGI: answers /play and /steer/play, and hands everything else on."""

    def __init__(self, app: Any):
        self.app = app
        self.page = FILE.read_text(encoding="utf-8")
        self.data: dict[str, Any] = {"title": "", "model": "", "steered": "", "trait": "", "neutral": "", "prompts": [], "gates": [], "coefficient": 4.0}  # fmt: skip
        self.data |= json.loads(os.environ.get(PAGE, "{}"))

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        from starlette.responses import HTMLResponse, JSONResponse

        path = scope.get("path") if scope["type"] == "http" and scope["method"] == "GET" else None
        if path == "/play":
            headers = {"content-security-policy": POLICY, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}  # fmt: skip
            await HTMLResponse(self.page, headers=headers)(scope, receive, send)
        elif path == "/steer/play":
            await JSONResponse(self.data)(scope, receive, send)
        else:
            await self.app(scope, receive, send)
