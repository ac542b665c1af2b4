"""A run as a service: judges what is posted to it, shows a page to drop photographs on, and counts."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import io
import socket
import time
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from .. import __version__
from ..datasets.folder import open_file, open_image
from ..detector import AnomalyDetector, fitted
from ..errors import ConfigError, DataError, extra, first_line
from ..heatmaps import ERROR, NOK, OK, Outputs, judge

with extra("serve"):
    from fastapi import Depends, FastAPI, HTTPException, Request
    from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper ends, in seconds, of the histogram of how long requests took."""
WORKERS = 2
"""Threads that read images and draw heatmaps; one of them scores at a time."""
BODIES = 16
"""Requests whose images are in memory at a time; others wait."""


class Limits(NamedTuple):
    """What a request may ask for.

    Attributes
    ----------
    megabytes, megapixels : float
        Of an image, as it is sent and when it is read.
    seconds : float
        From the first byte to the answer.
    """

    megabytes: float = 20.0
    megapixels: float = 100.0
    seconds: float = 30.0


class Metrics:
    """Counts since the start, as text for Prometheus."""

    def __init__(self) -> None:
        self._lock, self._codes, self._verdicts = Lock(), Counter[int](), Counter[str]({OK: 0, NOK: 0, ERROR: 0})
        self._buckets, self._sum = [0] * (len(BUCKETS) + 1), 0.0

    def add(self, code: int, verdict: str, seconds: float) -> None:
        """Count an answered request; its verdict is ERROR where its image could not be judged."""
        with self._lock:
            self._codes[code] += 1
            self._verdicts[verdict] += 1
            self._buckets[next((i for i, top in enumerate(BUCKETS) if seconds <= top), len(BUCKETS))] += 1
            self._sum += seconds

    def text(self) -> str:
        """Return the counts in Prometheus' text format, version 0.0.4."""
        with self._lock:
            total = sum(self._buckets)
            lines = [
                "# HELP mlffn_requests_total Answered requests to /predict.",
                "# TYPE mlffn_requests_total counter",
            ]
            lines += [f'mlffn_requests_total{{code="{code}"}} {n}' for code, n in sorted(self._codes.items())]
            lines += ["# HELP mlffn_verdicts_total Images by verdict.", "# TYPE mlffn_verdicts_total counter"]
            lines += [f'mlffn_verdicts_total{{verdict="{verdict}"}} {n}' for verdict, n in self._verdicts.items()]
            lines += ["# HELP mlffn_seconds Time to answer.", "# TYPE mlffn_seconds histogram"]
            tops = [*map(str, BUCKETS), "+Inf"]
            lines += [f'mlffn_seconds_bucket{{le="{t}"}} {sum(self._buckets[: i + 1])}' for i, t in enumerate(tops)]
            lines += [f"mlffn_seconds_sum {self._sum:.6f}", f"mlffn_seconds_count {total}"]
        return "\n".join(lines) + "\n"


class Service:
    """Judges images as they are posted, a few at a time.

    Parameters
    ----------
    detector : AnomalyDetector
        A fitted one.
    limits : Limits
        What a request may ask for.
    """

    def __init__(self, detector: AnomalyDetector, limits: Limits) -> None:
        self.detector, self.limits, self.metrics = detector, limits, Metrics()
        self._pool, self._scoring = ThreadPoolExecutor(WORKERS), Lock()
        self._bodies = asyncio.Semaphore(BODIES)

    async def answer(self, request: Request, form: str) -> tuple[dict[str, Any], bytes]:
        """Return the judgement of the posted image, and its heatmap as PNG where ``form`` asks for one.

        HTTPException says what is wrong: 400 no image, 408 too slow to arrive, 413 too large, 415 not sent as the body,
        500 no finite score, 503 too busy.
        """
        started, code, verdict, arrived = time.perf_counter(), 500, ERROR, False
        try:
            async with asyncio.timeout(self.limits.seconds), self._bodies:
                body = await self._read(request)
                arrived = True
                loop = asyncio.get_running_loop()
                found, picture = await loop.run_in_executor(self._pool, self._judge, body, form != "none")
            code, verdict = 200, str(found["verdict"])
            return {**found, "seconds": round(time.perf_counter() - started, 4)}, picture
        except TimeoutError as error:
            code, why = (503, "too busy; try again") if arrived else (408, "the image took too long to arrive")
            raise HTTPException(code, why, {"Retry-After": "1"}) from error
        except HTTPException as error:
            code = error.status_code
            raise
        finally:
            self.metrics.add(code, verdict, time.perf_counter() - started)

    async def _read(self, request: Request) -> bytes:
        """Return the body of a request, and stop reading where it is too large."""
        if request.headers.get("content-type", "").startswith("multipart/"):
            raise HTTPException(415, "send the image itself as the body: curl --data-binary @photo.jpg")
        limit, parts, size = self.limits.megabytes * 1e6, [], 0
        if int(request.headers.get("content-length", 0)) > limit:
            raise HTTPException(413, f"the image has more than {self.limits.megabytes:g} MB")
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise HTTPException(413, f"the image has more than {self.limits.megabytes:g} MB")
            parts.append(part)
        if not size:
            raise HTTPException(400, "there is no image; send it as the body: curl --data-binary @photo.jpg")
        return b"".join(parts)

    def _judge(self, body: bytes, drawn: bool) -> tuple[dict[str, Any], bytes]:
        """Read, score and draw an image."""
        image = self._open(body)
        outputs = Outputs("png" if drawn else "none", longest_side=1600)
        found = judge(self.detector, image, outputs, name="the image", lock=self._scoring)
        if found.row["verdict"] == ERROR:
            raise HTTPException(500 if found.readable else 400, found.row["error"])
        regions = [{k: v for k, v in line.items() if k != "image"} for line in found.regions]
        row = {k: found.row[k] for k in ("verdict", "score", "threshold")}
        size = {"width": image.width, "height": image.height}
        return {**row, **size, "regions": regions}, found.picture(self.detector) if drawn else b""

    def _open(self, body: bytes) -> Image.Image:
        """Decode an image, after its header has said that it is small enough."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's own limit is another
                with open_file(io.BytesIO(body), "the image") as header:  # nothing is decoded yet
                    pixels = header.width * header.height
        except (DataError, Image.DecompressionBombError) as error:
            raise HTTPException(413, first_line(error)) from error
        except Exception as error:  # Pillow raises anything
            raise HTTPException(400, "the body is not an image of a known format") from error
        if pixels > self.limits.megapixels * 1e6:
            raise HTTPException(
                413, f"the image has {pixels / 1e6:.0f} megapixels, more than {self.limits.megapixels:g}"
            )
        try:
            return open_image(io.BytesIO(body), name="the image")
        except DataError as error:
            raise HTTPException(400, first_line(error)) from error


def create_app(detector: AnomalyDetector, *, limits: Limits | None = None, token: str = "") -> FastAPI:
    """Return the service as an ASGI application.

    Parameters
    ----------
    detector : AnomalyDetector
        A fitted one.
    limits : Limits, optional
        What a request may ask for.
    token : str
        What ``/predict`` and ``/metrics`` want as ``Authorization: Bearer``, in ASCII; empty for nothing.

    Raises
    ------
    ConfigError
        If no client could send the token.
    """
    if not token.isascii() or any(x.isspace() for x in token):
        raise ConfigError("a token is made of ASCII letters, digits and signs, without blanks")
    service = Service(detector, limits or Limits())
    # No pages of its own: they load scripts from elsewhere.
    app = FastAPI(title="mlffn", version=__version__, docs_url=None, redoc_url=None)

    def allowed(request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if token and not hmac.compare_digest(given.encode("latin-1"), token.encode()):
            raise HTTPException(401, "the token is missing or wrong", {"WWW-Authenticate": "Bearer"})

    @app.post("/predict", dependencies=[Depends(allowed)])
    async def predict(request: Request, picture: bool = False, heatmap: bool = False) -> Response:
        """Judge the image in the body: JSON, with ``heatmap`` a PNG in base64 too, with ``picture`` that PNG alone."""
        found, png = await service.answer(request, "png" if picture or heatmap else "none")
        if picture:
            headers = {"X-Verdict": found["verdict"], "X-Score": repr(found["score"])}
            return Response(png, media_type="image/png", headers=headers)
        return JSONResponse({**found, **({"heatmap": base64.b64encode(png).decode()} if heatmap else {})})

    @app.get("/metrics", dependencies=[Depends(allowed)])
    async def metrics() -> Response:
        """Return the counts since the start."""
        return PlainTextResponse(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Say that the service is there, and what it judges by."""
        return {"status": "ok", "method": detector.method, "decision": fitted(detector).describe()}

    page = _page(bool(token))

    @app.get("/")
    async def index() -> Response:
        """Return the page."""
        return HTMLResponse(page)

    return app


def _page(token: bool) -> str:
    """Return the page, which loads nothing from elsewhere and runs no script but its own."""
    pages = Environment(
        loader=PackageLoader("mlffn_lite"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    script = (Path(__file__).parent.parent / "templates" / "serve.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return pages.get_template("serve.html.j2").render(script=script, digest=digest, token=token)


def listen(app: FastAPI, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve until the process is told to end; ``ready`` is told the address.

    Raises
    ------
    ConfigError
        If the address cannot be listened on.
    """
    with extra("serve"):
        import uvicorn
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        door = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port} ({error.strerror or error}); choose another --port"
        ) from error
    with door:
        place = f"[{host}]" if ":" in host else host
        ready(f"http://{place}:{door.getsockname()[1]}/")
        uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=10)).run(sockets=[door])
