"""The demo's page and its data, over HTTP on loopback.

Other users of the machine can reach its loopback, and so can pages of other sites in the visitor's
browser. Every request therefore needs a token, which is new for every server. The page has the
token in its address and sends it in a header, which other sites cannot do. Host names other than
the loopback's are refused, so that no foreign name can be resolved to this server. Time,
connections and memory are limited, see :mod:`toco.demo.limits`. Nothing is written to disk.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import logging
import math
import re
import secrets
import socket
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import uvicorn
from jaxtyping import Shaped, UInt8
from PIL import Image
from starlette.applications import Starlette
from starlette.authentication import AuthenticationBackend, AuthenticationError
from starlette.datastructures import QueryParams
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from toco.data import Dataset
from toco.data.files.images import read_upright
from toco.demo.analysis import Analysis, Analyst
from toco.demo.limits import Limits, limited_protocol
from toco.evaluate.evaluator import evenly_spaced
from toco.evaluate.report import title_of

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"
_HEADERS = {
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
"""Headers of every answer; they prevent storing, framing, and reading by other sites."""
_NUM_EXAMPLES = 8
"""Example images on the page."""
_THUMBNAIL_PX = 96
"""Longer side of an example's thumbnail."""
_MAX_ANALYSES = 3
"""Analyses in memory: enough for the newest images of a few tabs.

One takes 60 MB with VOC's classes, 160 MB with COCO's.
"""

T = TypeVar("T")


def listen(port: int) -> socket.socket:
    """Open a socket on loopback; port 0 takes any free port.

    Raises:
        ValueError: The port is in use, or this user may not use it.
    """
    try:
        return socket.create_server((HOST, port))
    except OSError as error:
        raise ValueError(
            f"Cannot serve on port {port} of {HOST} ({error.strerror}). Choose another with "
            "--port, or 0 for any free one."
        ) from error


def serve(demo: Demo, listening: socket.socket) -> None:
    """Serve until interrupted."""
    with contextlib.suppress(KeyboardInterrupt):
        server_of(demo).run(sockets=[listening])


def server_of(demo: Demo) -> uvicorn.Server:
    """Build the server of a demo."""
    config = uvicorn.Config(
        demo.application(),
        http=limited_protocol(demo.limits),
        ws="none",
        headers=list(_HEADERS.items()),
        limit_concurrency=demo.limits.connections,
        timeout_keep_alive=math.ceil(demo.limits.head_s),
        access_log=False,  # it would print the token with every address
        log_level="error",  # warnings would be a line for every wrong request of any client
        timeout_graceful_shutdown=1,
    )
    return uvicorn.Server(config)


class Demo:
    """The state of the demo, and the handlers of its routes.

    Args:
        analyst: Analyses images one at a time, in a thread of its own.
        title: Title of the page: the trained method and its run.
        token: Token that every request needs.
        dataset: Data set, a few of whose images are offered as examples; ``None`` offers none.
            Unreadable images are omitted with a warning.
        limits: Limits on a client.
    """

    def __init__(
        self, analyst: Analyst, title: str, token: str, dataset: Dataset | None, limits: Limits
    ) -> None:
        self.analyst, self.token, self.dataset, self.limits = analyst, token, dataset, limits
        thumbnails = {} if dataset is None else _thumbnails(dataset)
        self.examples = list(thumbnails)
        trained, rule, evaluate = analyst.trained, analyst.rule, analyst.trained.config.evaluate
        self.class_names = trained.class_names
        self._about = {
            "title": title,
            "recipe": trained.recipe,
            "step": trained.step,
            "class_names": self.class_names,
            "low": rule.low_threshold,
            "high": rule.high_threshold,
            "cams": [
                {"name": name, "title": title_of(name), "block": block}
                for name, block in {"cam": None, **trained.config.method.further_cams()}.items()
            ],
            "size_px": evaluate.size_px,
            "scales": list(dict.fromkeys((1.0, *evaluate.cam_scales))),
            "flip": evaluate.cam_flip,
            "max_upload_bytes": limits.upload_bytes,
            "examples": [
                {"name": dataset.names[index], "thumbnail": thumbnail}
                for index, thumbnail in thumbnails.items()
            ]
            if dataset is not None
            else [],
        }
        self._page = resources.files("toco.demo").joinpath("page.html").read_text("utf-8")
        self._policy = _policy(self._page)
        self._kept: OrderedDict[str, Analysis] = OrderedDict()
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="network")
        self._uploads = asyncio.Semaphore(limits.uploads)

    def application(self) -> Starlette:
        """Return the demo as an ASGI application."""
        return Starlette(
            routes=[
                Route("/", self.page),
                Route("/api/about", self.about),
                Route("/api/images", self.upload, methods=["POST"]),
                Route("/api/examples/{number:int}", self.example, methods=["POST"]),
                Route("/api/images/{id}/cams/{class_index:int}", self.cams),
                Route("/api/images/{id}/refined", self.refined),
                Route("/api/images/{id}/similarity", self.similarity),
            ],
            middleware=[
                Middleware(
                    TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"], www_redirect=False
                ),
                Middleware(AuthenticationMiddleware, backend=_Token(self.token), on_error=_refuse),
            ],
            exception_handlers=dict.fromkeys((HTTPException, ValueError, Exception), _answer_error),
        )

    async def page(self, request: Request) -> Response:
        """Answer with the page, which is the same for every run."""
        return HTMLResponse(self._page, headers={"Content-Security-Policy": self._policy})

    async def about(self, request: Request) -> Response:
        """Answer with the facts of the run that the page shows."""
        return JSONResponse(self._about)

    async def upload(self, request: Request) -> Response:
        """Analyse an image whose file is the body of the request."""
        name = request.query_params.get("name") or "The image"
        async with self._uploads:
            try:
                async with asyncio.timeout(self.limits.upload_s):
                    content = await self._content(request)
            except ClientDisconnect:
                return Response(status_code=400)  # the client is gone
            except TimeoutError:
                sentence = (
                    f"The file did not arrive within {self.limits.upload_s:g} s; send it again."
                )
                raise HTTPException(408, sentence, {"Connection": "close"}) from None
            return await self._look(lambda: read_upright(Path(name), self.limits.pixels, content))

    async def _content(self, request: Request) -> bytes:
        """Read the body, also to its end if it is too large.

        A browser does not show an answer that comes before the end of the body.
        """
        content, num_bytes = bytearray(), 0
        async for chunk in request.stream():
            num_bytes += len(chunk)
            if num_bytes <= self.limits.upload_bytes:
                content += chunk
            else:
                content.clear()
        if num_bytes > self.limits.upload_bytes:
            limit = self.limits.upload_bytes / 2**20
            raise HTTPException(
                413, f"Expected a file of at most {limit:g} MiB; take a smaller one."
            )
        return bytes(content)

    async def example(self, request: Request) -> Response:
        """Analyse an image of the data set."""
        number = request.path_params["number"]
        if self.dataset is None or number >= len(self.examples):
            raise HTTPException(
                404, f"There are {len(self.examples)} examples, so number {number} does not exist."
            )
        dataset = self.dataset
        return await self._look(lambda: dataset.image(self.examples[number]))

    async def cams(self, request: Request) -> Response:
        """Answer with all CAMs of a class: float32, little-endian, one after the other."""
        analysis, class_index = self._analysis(request), request.path_params["class_index"]
        if class_index >= len(self.class_names):
            raise HTTPException(
                404,
                (
                    f"There are {len(self.class_names)} classes, so number {class_index} does not "
                    "exist."
                ),
            )
        return _bytes(analysis.cam_maps(class_index))

    async def refined(self, request: Request) -> Response:
        """Answer with the refined pseudo label: a byte for every pixel."""
        analysis, query = self._analysis(request), request.query_params
        cam = query.get("cam") or "cam"
        if cam not in analysis.cams.by_name():
            raise ValueError(
                f"cam is {cam!r}; expected one of {', '.join(analysis.cams.by_name())}."
            )
        low, high = _fraction(query, "low"), _fraction(query, "high")
        class_of = {str(number): number for number in range(len(self.class_names))}
        present = [text for text in query.get("present", "").split(",") if text]
        if not set(present) <= class_of.keys():
            raise ValueError(
                f"present is {query['present']!r}; expected numbers below {len(class_of)}."
            )
        classes = [class_of[text] for text in set(present)]
        return _bytes(
            await self._work(lambda: self.analyst.refined_label(analysis, cam, classes, low, high))
        )

    async def similarity(self, request: Request) -> Response:
        """Answer with the similarity of all patches with one patch.

        The maps of all blocks follow each other, float32, little-endian.
        """
        analysis, query = self._analysis(request), request.query_params
        y, x = _fraction(query, "y"), _fraction(query, "x")
        return _bytes(
            np.concatenate([m.ravel() for m in await self._work(lambda: analysis.similarity(y, x))])
        )

    async def _look(self, read: Callable[[], UInt8[np.ndarray, "h w 3"]]) -> Response:
        analysis = await self._work(lambda: self.analyst.analyse(read()))
        name = secrets.token_hex(8)
        self._kept[name] = analysis
        while len(self._kept) > _MAX_ANALYSES:
            self._kept.popitem(last=False)
        return JSONResponse({"id": name, **_for_page(analysis)})

    def _analysis(self, request: Request) -> Analysis:
        name = request.path_params["id"]
        if name not in self._kept:
            raise HTTPException(
                404,
                f"Only the last {_MAX_ANALYSES} images are stored, and this is an older one; load "
                "it again.",
            )
        self._kept.move_to_end(name)
        return self._kept[name]

    async def _work(self, task: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._worker, task)


class _Token(AuthenticationBackend):
    """Refuses requests without the token.

    The page has the token in its address, all other requests in a header.
    """

    def __init__(self, token: str) -> None:
        self.token = token

    async def authenticate(self, conn: HTTPConnection) -> None:
        # Not the path of conn.url, which is built with the host name that the client sent.
        if conn.scope["path"] == "/":
            token = conn.query_params.get("token", "")
        else:
            token = conn.headers.get("authorization", "").removeprefix("Bearer ")
        if not hmac.compare_digest(token.encode(), self.token.encode()):
            raise AuthenticationError(
                "The token is missing or wrong: open the address that `python -m toco demo` "
                "printed last."
            )


def _for_page(analysis: Analysis) -> dict[str, Any]:
    segmentation = analysis.segmentation
    return {
        "image": _pixels(analysis.image),
        "full_size": analysis.full_size,
        "segmentation": None if segmentation is None else _pixels(segmentation),
        "map_size": tuple(analysis.network_input.shape[-2:]),
        "logits": analysis.class_logits.tolist(),
        "mean_similarity": analysis.mean_similarity,
        "grids": [tuple(tokens.shape[:2]) for tokens in analysis.unit_tokens],
    }


def _pixels(pixels: UInt8[np.ndarray, "h w *c"]) -> dict[str, Any]:
    height, width = pixels.shape[:2]
    return {"height": height, "width": width, "bytes": base64.b64encode(pixels.tobytes()).decode()}


def _thumbnails(dataset: Dataset) -> dict[int, str]:
    """Small versions of a few images as data URIs, by their index in the data set."""
    thumbnails = {}
    for index in evenly_spaced(len(dataset), _NUM_EXAMPLES):
        try:
            small = Image.fromarray(dataset.image(index))
        except (ValueError, OSError) as error:
            logger.warning("An example image is omitted: %s", error)
            continue
        small.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
        file = BytesIO()
        small.save(file, "PNG")
        thumbnails[index] = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return thumbnails


def _bytes(array: Shaped[np.ndarray, "*shape"]) -> Response:
    return Response(
        array.astype(array.dtype.newbyteorder("<")).tobytes(), media_type="application/octet-stream"
    )


def _fraction(query: QueryParams, name: str) -> float:
    try:
        value = float(query.get(name, ""))
    except ValueError:
        value = np.nan
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {query.get(name)!r}; expected a number from 0 to 1.")
    return value


def _policy(page: str) -> str:
    """Content security policy that allows only this page's own style and script.

    The page can connect to its own server alone.
    """

    def hashes(element: str) -> str:
        contents: Sequence[str] = re.findall(rf"<{element}>(.*?)</{element}>", page, re.DOTALL)
        digests = (
            base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
            for content in contents
        )
        return " ".join(f"'sha256-{digest}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; img-src "
        "data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'"
    )


def _refuse(conn: HTTPConnection, error: AuthenticationError) -> Response:
    return JSONResponse({"error": str(error)}, 403)


async def _answer_error(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)
    if isinstance(error, ValueError):
        return JSONResponse({"error": str(error)}, 422)
    sentence = (
        f"The server failed ({type(error).__name__}); the terminal in which it was started shows "
        "the reason."
    )
    return JSONResponse({"error": sentence}, 500)
