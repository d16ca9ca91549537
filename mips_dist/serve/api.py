"""The web interface: typed JSON, one page, limits. Knows neither Ray nor chemistry."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from difflib import get_close_matches
from importlib.resources import files
from typing import Annotated, Any, Literal, Protocol

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, ConfigDict, Field, field_validator
from starlette.exceptions import HTTPException as StarletteHTTPException

from mips_dist.serve.guard import Guard

MAX_POLYMERS = 200  # in one request
MAX_SECONDS = 120.0  # of one request
MAX_CHARACTERS = 20_000  # of a P-SMILES in an address; in a body a longer one costs its row alone

PAGE = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/table.js": ("table.js", "text/javascript; charset=utf-8"),
}
_STRICT = ConfigDict(extra="forbid")


class PredictRequest(BaseModel):
    """Polymers and what to predict of them."""

    model_config = _STRICT

    psmiles: Annotated[
        list[str],
        Field(
            min_length=1,
            max_length=MAX_POLYMERS,
            description="P-SMILES in any spelling, such as *CC(*)c1ccccc1",
        ),
    ]
    properties: Annotated[
        list[str] | None,
        Field(min_length=1, description="of those that /models lists; left out: all of them"),
    ] = None

    @field_validator("psmiles")
    @classmethod
    def _is_text(cls, texts: list[str]) -> list[str]:
        for row, text in enumerate(texts):
            if any("\ud800" <= c <= "\udfff" for c in text):  # JSON has them, UTF-8 has not
                raise ValueError(f"row {row} holds half of a character")
        return texts


class Value(BaseModel):
    """One predicted value; null is what the model does not know."""

    value: float
    lower: Annotated[float | None, Field(description="interval that holds nine values in ten")]
    upper: float | None
    distance: Annotated[
        float | None, Field(description="to the nearest training polymer, from 0 (same) to 1")
    ]
    in_domain: Annotated[bool | None, Field(description="whether that distance is a usual one")]
    unit: str


class Row(BaseModel):
    """What is known of one polymer of the request."""

    psmiles: Annotated[str, Field(description="as it was sent")]
    canonical: Annotated[str, Field(description="the one canonical spelling; empty if rejected")]
    status: Literal["ok", "rejected"]
    reason: Annotated[str, Field(description="of the rejection; else a remark or nothing")]
    values: Annotated[dict[str, Value], Field(description="property -> value")]


class PredictResponse(BaseModel):
    """Rows in the order of the request."""

    properties: list[str]
    rows: list[Row]


class ModelCard(BaseModel):
    """One model that is served."""

    property: str
    description: str
    unit: str
    r2: Annotated[float | None, Field(description="cross-validated")]
    rmse: Annotated[float | None, Field(description="cross-validated, in `unit`")]
    protocol: str | None
    model: str | None
    num_parameters: Annotated[int, Field(description="of the network")]


class ModelsResponse(BaseModel):
    """What is served, and within which limits."""

    models: list[ModelCard]
    pictures: dict[str, str]
    max_polymers: int
    max_seconds: float


class State(BaseModel):
    """Of /health and /ready."""

    status: str


class Problem(BaseModel):
    """Why a request was not answered."""

    detail: str


class Overloaded(Exception):
    """More is waiting than will be taken on."""


class Unavailable(Exception):
    """No replica can answer now."""


class Backend(Protocol):
    """What answers: `mips_dist.serve.deployments.Front`."""

    async def predict(
        self, texts: Sequence[str], properties: tuple[str, ...]
    ) -> tuple[list[dict[str, Any]], int]:
        """Return the rows, and the largest batch that one of them was computed in."""

    async def picture(self, text: str, kind: str, name: str) -> tuple[str, str]:
        """Return an SVG, or nothing and the reason."""

    async def is_ready(self) -> bool:
        """Say whether a replica answers."""


def build_api(
    backend: Backend,
    models: list[dict[str, Any]],
    pictures: dict[str, str],
    hosts: Sequence[str],
) -> Callable[..., Awaitable[None]]:
    """Return the ASGI application.

    Parameters
    ----------
    models
        What `mips_dist.serve.worker.describe` says of them.
    pictures
        Kind -> what it shows.
    hosts
        Names that a request may call this server by; empty: any.
    """
    # The usual pages of documentation load scripts from elsewhere; /openapi.json is what they show.
    api = FastAPI(
        title="mips_dist",
        summary="Properties of polymers from P-SMILES",
        docs_url=None,
        redoc_url=None,
        responses={code: {"model": Problem} for code in (400, 408, 413, 415, 422, 503, 504)},
    )
    served = [card["property"] for card in models]

    @api.post("/predict", summary="Predict properties of polymers")
    async def predict(request: PredictRequest, response: Response) -> PredictResponse:
        properties = _known(request.properties or served, served)
        rows, batch = await _within(backend.predict(request.psmiles, properties))
        response.headers["X-Batch-Size"] = str(batch)
        answer = [Row(psmiles=text, **row) for text, row in zip(request.psmiles, rows, strict=True)]
        _note_twins(answer)
        return PredictResponse(properties=list(properties), rows=answer)

    @api.get("/picture.svg", summary="Draw a polymer", response_class=Response)
    async def picture(
        psmiles: Annotated[str, Query(max_length=MAX_CHARACTERS)],
        kind: Annotated[str, Query(description="of those that /models lists")] = "unit",
        name: Annotated[
            str | None, Query(alias="property", description="of kind=why; left out: the first")
        ] = None,
    ) -> Response:
        if kind not in pictures:
            raise HTTPException(422, f"kind: there are {', '.join(pictures)}")
        (shown,) = _known([name or served[0]], served)
        svg, reason = await _within(backend.picture(psmiles, kind, shown))
        if reason:
            raise HTTPException(422, reason)
        return Response(svg, media_type="image/svg+xml")

    @api.get("/models", summary="List the models that are served, and the limits")
    async def list_models() -> ModelsResponse:
        return ModelsResponse(
            models=[ModelCard(**card) for card in models],
            pictures=pictures,
            max_polymers=MAX_POLYMERS,
            max_seconds=MAX_SECONDS,
        )

    @api.get("/health", summary="Say that the process of the interface lives")
    async def health() -> State:
        return State(status="ok")

    @api.get("/ready", summary="Say whether models are loaded and a replica answers")
    async def ready() -> State:
        if not await backend.is_ready():
            raise HTTPException(503, "no replica has its models loaded", {"Retry-After": "2"})
        return State(status="ready")

    for path, (name, media_type) in PAGE.items():
        content = files("mips_dist.serve").joinpath("page", name).read_bytes()
        api.add_api_route(path, _file(content, media_type), include_in_schema=False)

    api.add_exception_handler(RequestValidationError, _explain_invalid)
    api.add_exception_handler(StarletteHTTPException, _explain_http)
    api.add_exception_handler(Exception, _explain_defect)
    return Guard(api, hosts)


def _file(content: bytes, media_type: str) -> Callable[[], Awaitable[Response]]:
    async def send() -> Response:
        return Response(content, media_type=media_type)

    return send


def _known(names: list[str], served: list[str]) -> tuple[str, ...]:
    for name in names:
        if name not in served:
            near = get_close_matches(name.lower(), served, n=3, cutoff=0.5)
            meant = f" (did you mean {' or '.join(near)}?)" if near else ""
            raise HTTPException(
                422, f"properties: no model of '{name[:40]}'{meant}; there are {', '.join(served)}"
            )
    return tuple(dict.fromkeys(names))


def _note_twins(rows: list[Row]) -> None:
    """Say of every polymer that stood in an earlier row which one that was."""
    first: dict[str, int] = {}
    for number, row in enumerate(rows):
        earlier = first.setdefault(row.canonical, number)
        if row.canonical and earlier < number:
            note = f"same polymer as row {earlier}"
            row.reason = f"{row.reason}; {note}" if row.reason else note


async def _within(answer: Awaitable[Any]) -> Any:
    """Wait for an answer as long as a request may take."""
    try:
        return await asyncio.wait_for(answer, MAX_SECONDS)
    except TimeoutError:
        raise HTTPException(
            504, f"no answer within {MAX_SECONDS:g} s; send fewer polymers at a time"
        ) from None
    except Overloaded:
        raise HTTPException(
            503, "too many requests wait already; try again", {"Retry-After": "1"}
        ) from None
    except Unavailable:
        raise HTTPException(
            503, "no replica answers at the moment; try again", {"Retry-After": "5"}
        ) from None


def _problem(status: int, detail: str, headers: Any = None) -> JSONResponse:
    # What a user sent may hold halves of characters, which UTF-8 has no bytes for.
    safe = detail.encode("utf-8", "replace").decode()
    return JSONResponse({"detail": safe}, status, headers)


async def _explain_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first, *others = error.errors()
    if first["type"] == "json_invalid":
        return _problem(400, f"no JSON: {first.get('ctx', {}).get('error', 'malformed')}")
    place = ".".join(str(part)[:40] for part in first["loc"][1:]) or "body"
    more = f" (and {len(others)} more)" if others else ""
    return _problem(422, f"{place}: {first['msg']}{more}")


async def _explain_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    return _problem(error.status_code, str(error.detail), error.headers)


async def _explain_defect(request: Request, error: Exception) -> Response:
    return _problem(500, "a defect of the server; its log says more")
