"""The routes of the service: what each takes and gives. Their models are the OpenAPI document."""

import asyncio
import base64
import functools
import hashlib
import re
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Depends, FastAPI, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from alignvl_cli.artifacts import alignvl_version
from alignvl_cli.errors import UsageError
from alignvl_cli.report.page import EDGE, render
from alignvl_cli.retrieval.queries import Like, cutoff, told, weighted
from alignvl_cli.retrieval.search import Hit
from alignvl_cli.serving import answers
from alignvl_cli.serving.answers import Answer, Picture, Question, Refused, Sum, Wanted
from alignvl_cli.serving.batching import BATCH, Batcher, QueueFull
from alignvl_cli.serving.catalog import Catalog, NotAtHand, Served
from alignvl_cli.serving.gate import LOOPBACK_NAMES, Admission, Gate
from alignvl_cli.serving.metrics import Metrics
from alignvl_cli.serving.server import as_in_url
from alignvl_cli.settings import Gallery, ServeSettings

MOST_TEXTS = 64
"""Of one request."""
MOST_HITS = 200
MOST_TERMS = 16
"""That are added to a query, and that are subtracted."""
PRECISE = "Leave out hits below the score from which on this share was right on the validation split."
GROUP = (
    "Show images that are alike to the eye once: perceptual hashes within 6 of 64 bits and mean colours within 12 of "
    "255; identical files always."
)
MOST_DUPLICATES = 100
"""Of a result, that are named; all are counted."""
ADD = "Words to add to the query, twice as much as `2*at night`; may be repeated."
LARGEST_EDGE = 1024
DECODERS = 2
"""Threads that read pictures of the index for thumbnails."""
KEPT_S = 300
"""That a browser may keep a thumbnail."""
SURROGATES = re.compile("[\ud800-\udfff]")
CODES = {404: "not_found", 405: "wrong_method", 410: "gone"}
DESCRIPTION = (
    "Search pictures by words, captions by pictures, and both by items of the index. Scores are cosines, higher is "
    'nearer, unless an index says otherwise. Errors are JSON, {"error": {"code", "reason"}}: 401 token wanted, 404 '
    "unknown, 410 picture gone, 413 body too large, 422 not to be understood, 429 busy, 504 too slow."
)
NOT_FOUND = "there is nothing at this address; GET /docs says what there is"


class Failure(BaseModel):
    code: str
    reason: str


class Failed(BaseModel):
    """Why a request was not answered."""

    error: Failure


class Found(BaseModel):
    """One result, duplicates folded into it."""

    rank: int
    score: float
    id: str = Field(description="Of the image; of a caption, the id of its image.")
    caption: str
    count: int = Field(description="Rows of the index that it stands for.")
    duplicates: list[str] = Field(
        description=f"With group_duplicates: ids of the other images that it stands for, the first {MOST_DUPLICATES}."
    )
    thumbnail: str = Field(description="Where its picture is, on this service.")


class Result(BaseModel):
    query: str
    hits: list[Found]
    best: float | None = Field(description="The best score, also where the threshold left it out.")


class SearchAnswer(BaseModel):
    index: str
    of: Gallery
    measure: str = Field(description="What a score is: a cosine, or a cosine less a hub penalty.")
    scores: str = Field(description="exact, or approximate where only compressed vectors are at hand.")
    threshold: float | None = Field(description="What every hit scores at least, where that was asked for.")
    notes: list[str] = Field(description="What may mislead, and what min_precision stands for.")
    seconds: float
    results: list[Result]


class TextSearch(BaseModel):
    model_config = ConfigDict(extra="forbid")

    texts: list[str] = Field(min_length=1, max_length=MOST_TEXTS, examples=[["red heart", "a slice of pizza"]])
    index: str | None = Field(None, description="Name of the index. Default: the first.")
    of: Gallery = Field(Gallery.image, description="What to search.")
    k: int = Field(10, ge=1, le=MOST_HITS, description="Hits a query.")
    threshold: float | None = Field(None, allow_inf_nan=False, description="Leave out hits that score less.")
    min_precision: float | None = Field(None, gt=0, le=1, description=PRECISE)
    group_duplicates: bool = Field(False, description=GROUP)


class Texts(BaseModel):
    model_config = ConfigDict(extra="forbid")

    texts: list[str] = Field(min_length=1, max_length=MOST_TEXTS, examples=[["red heart"]])
    index: str | None = Field(None, description="Name of the index. Default: the first.")


class Embeddings(BaseModel):
    index: str
    adapters_sha256: str = Field(description="Of the run: embeddings of other adapters are not comparable.")
    width: int
    embeddings: list[list[float]] = Field(description="Rows of unit length: a dot product is a cosine.")
    notes: list[str]


class Item(BaseModel):
    index: str
    id: str
    captions: list[str]
    caption_count: int
    sha256: str
    copies: int = Field(description="Images of the index with the same content.")
    has_picture: bool
    missing: str = Field(description="Why the picture is not at hand; empty where it is.")
    thumbnail: str


class IndexAbout(BaseModel):
    name: str
    run: str
    adapters_sha256: str
    vision: str
    text: str
    split: str
    images: int
    captions: int
    width: int
    measure: str
    factory: dict[str, str]
    scores: dict[str, str]
    loaded: str
    problem: str = Field(description="Why a newer index at its path is not served; empty where all is well.")


class Limits(BaseModel):
    body: int
    pixels: int
    text: int
    texts: int
    hits: int
    seconds: float
    waiting: int


class Indexes(BaseModel):
    version: str
    indexes: list[IndexAbout]
    limits: Limits


class Health(BaseModel):
    status: str
    indexes: int


@dataclass(frozen=True)
class Asked:
    """The parameters that searches share."""

    index: Annotated[str | None, Query(description="Name of the index. Default: the first.")] = None
    of: Annotated[Gallery | None, Query(description="What to search.")] = None
    k: Annotated[int, Query(ge=1, le=MOST_HITS, description="Hits.")] = 10
    threshold: Annotated[float | None, Query(allow_inf_nan=False, description="Leave out hits that score less.")] = None
    min_precision: Annotated[float | None, Query(gt=0, le=1, description=PRECISE)] = None
    group_duplicates: Annotated[bool, Query(description=GROUP)] = False
    add: Annotated[list[str] | None, Query(max_length=MOST_TERMS, description=ADD)] = None
    subtract: Annotated[list[str] | None, Query(max_length=MOST_TERMS, description="Words to be far from.")] = None


class Service:
    """What the routes share: the catalog, the queue, the limits, the counters."""

    def __init__(self, catalog: Catalog, settings: ServeSettings) -> None:
        self.catalog, self.settings = catalog, settings
        self.metrics = Metrics()
        work = functools.partial(answers.answer, max_pixels=settings.max_pixels)
        self.batcher: Batcher[Question, Answer] = Batcher(work, settings.queue)
        self.batcher.sizes = self.metrics.batch.observe
        self.metrics.watch(lambda: self.batcher.waiting, self._rows)
        self._decoders = ThreadPoolExecutor(DECODERS, "thumbnail")

    def _rows(self) -> dict[tuple[str, str], int]:
        return {
            (name, of.value): len(served.index.items[of].id)
            for name, served in self.catalog.served.items()
            for of in Gallery
        }

    @asynccontextmanager
    async def running(self, app: FastAPI) -> AsyncIterator[None]:
        work = [asyncio.create_task(self.batcher.run()), asyncio.create_task(self.catalog.watch())]
        try:
            yield
        finally:
            for task in work:
                task.cancel()
            await asyncio.gather(*work, return_exceptions=True)
            self.batcher.close()
            self._decoders.shutdown(wait=False, cancel_futures=True)

    def served(self, name: str | None) -> Served:
        """The index of this name; 404 without one."""
        if name is None:
            return next(iter(self.catalog.served.values()))
        try:
            return self.catalog.served[name]
        except KeyError:
            there = ", ".join(self.catalog.served)
            raise HTTPException(404, f"there is no index of that name; there is {there}") from None

    def item(self, index: str | None, name: str) -> Served:
        """The index that the image `name` is to be in; 404 when it is not."""
        served = self.served(index)
        if name not in served.row_of:
            raise HTTPException(404, "there is no item of that id in the index")
        return served

    def check_texts(self, texts: list[str]) -> None:
        """422 for a blank text, one that is too long, or no text."""
        for text in texts:
            if not text.strip():
                raise HTTPException(422, "a text is blank; say what to look for")
            if len(text) > self.settings.max_text:
                raise HTTPException(422, f"a text has {len(text):,} characters; {self.settings.max_text:,} are taken")
            if SURROGATES.search(text):
                raise HTTPException(422, "a text has half of a character (a lone surrogate), which is no Unicode")

    async def ask(self, question: Question) -> Answer:
        """The answer, from the queue; 429 when that is full, 422 when there is none."""
        try:
            return await self.batcher.submit(question)
        except QueueFull:
            raise HTTPException(
                429,
                f"{self.settings.queue} requests are waiting, and no more are taken; try again in a second",
                {"retry-after": "1"},
            ) from None
        except Refused as problem:
            raise HTTPException(422, str(problem)) from problem

    async def search(
        self, served: Served, queries: list[tuple[str, Sum]], of: Gallery, asked: "Asked | TextSearch"
    ) -> SearchAnswer:
        """`queries`, each with what it is called in the answer."""
        threshold, notes = asked.threshold, []
        if threshold is not None and threshold > 1 and served.is_cosine:
            raise HTTPException(422, "threshold: a score is a cosine and at most 1, so that no hit can reach it")
        if asked.group_duplicates and of is Gallery.text:
            raise HTTPException(422, "group_duplicates: it groups images, and this search finds captions; add of=image")
        if asked.min_precision is not None:
            terms = [query for _, query in queries]
            try:
                least, how = cutoff(served.index, terms, of, asked.min_precision, served.approximate[of])
            except UsageError as problem:
                raise HTTPException(422, str(problem)) from problem
            threshold = least if threshold is None else max(threshold, least)
            notes.append(how)
        start = time.perf_counter()
        wanted = Wanted(of, asked.k, threshold, asked.group_duplicates)
        found = await self.ask(Question(served, tuple(query for _, query in queries), wanted))
        return SearchAnswer(
            index=served.name,
            of=of,
            measure=served.index.record.metric,
            scores="approximate" if served.approximate[of] else "exact",
            threshold=threshold,
            notes=[*notes, *found.notes],
            seconds=round(time.perf_counter() - start, 6),
            results=[
                Result(query=query, hits=[self.found(served, hit) for hit in hits], best=best)
                for (query, _), hits, best in zip(queries, found.found, found.best, strict=True)
            ],
        )

    async def ask_one(self, asked: "Asked", name: str, part: answers.Part, of: Gallery) -> SearchAnswer:
        """Search with `part`, called `name`, and what is added to it; `of` where the request does not say."""
        terms: list[tuple[float, str]] = []
        for sign, written in ((1, asked.add or []), (-1, asked.subtract or [])):
            found = [weighted(one) for one in written]
            self.check_texts([text for _, text in found])
            terms += [(sign * weight, text) for weight, text in found]
        named = told([(1.0, name), *terms])
        return await self.search(self.served(asked.index), [(named, ((1.0, part), *terms))], asked.of or of, asked)

    def found(self, served: Served, hit: Hit) -> Found:
        return Found(
            rank=hit.rank,
            score=hit.score,
            id=hit.id,
            caption=hit.caption,
            count=hit.count,
            duplicates=list((hit.duplicates or ())[:MOST_DUPLICATES]),
            thumbnail=self.thumbnail_url(served, hit.id),
        )

    def thumbnail_url(self, served: Served, name: str) -> str:
        return f"/thumbnails/{quote(name, safe='')}?index={quote(served.name, safe='')}"

    async def thumbnail(self, served: Served, name: str, edge: int) -> bytes:
        return await asyncio.get_running_loop().run_in_executor(self._decoders, served.thumbnail, name, edge)


def make_app(
    catalog: Catalog,
    settings: ServeSettings,
    *,
    token: str | None,
    is_loopback: bool,
    warn: Callable[[str], None],
) -> Gate:
    """The service as an ASGI application. `warn` is told of bugs, which a client sees as a 500 without their text."""
    service = Service(catalog, settings)
    app = FastAPI(
        title="alignvl",
        version=alignvl_version(),
        description=DESCRIPTION,
        lifespan=service.running,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        responses={422: {"model": Failed}},
    )
    _refusals(app)
    _pages(app)
    _searches(app, service)
    _items(app, service)
    _embeddings(app, service)
    _state(app, service)
    admission = Admission(
        token=token,
        hosts=LOOPBACK_NAMES | {as_in_url(settings.host)} if is_loopback and token is None else None,
        requests=settings.queue + BATCH,
        body=settings.max_body,
        seconds=settings.timeout,
    )
    return Gate(app, admission, service.metrics, warn)


def _refusals(app: FastAPI) -> None:
    """Whatever goes wrong is answered with a code and a reason in JSON."""

    def failed(status: int, code: str, reason: str, headers: Any = None) -> JSONResponse:
        return JSONResponse({"error": {"code": code, "reason": reason}}, status, headers)

    @app.exception_handler(HTTPException)
    async def refused(request: Request, problem: HTTPException) -> JSONResponse:
        code = CODES.get(problem.status_code, "busy" if problem.status_code == 429 else "invalid")
        reason = NOT_FOUND if problem.detail == "Not Found" else problem.detail
        return failed(problem.status_code, code, reason, problem.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, problem: RequestValidationError) -> JSONResponse:
        """What was sent is not repeated: it may be anything."""
        said = [f"{'.'.join(map(str, one['loc'][:3]))}: {one['msg']}" for one in problem.errors()[:5]]
        return failed(422, "invalid", "; ".join(said).encode("ascii", "backslashreplace").decode())

    @app.exception_handler(Exception)
    async def bug(request: Request, problem: Exception) -> JSONResponse:
        return failed(500, "bug", "a bug in alignvl; what it was is in the output of the service")


def _pages(app: FastAPI) -> None:
    search_page = _Html(render("service.html"))

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        return search_page.response()

    @functools.cache
    def api_page() -> _Html:
        return _Html(render("api.html", api=app.openapi()))

    @app.get("/docs", include_in_schema=False)
    async def documentation() -> HTMLResponse:
        return api_page().response()


def _searches(app: FastAPI, service: Service) -> None:
    @app.get("/search", tags=["search"], summary="Search by one text")
    async def search_text(
        asked: Annotated[Asked, Depends()], text: Annotated[str, Query(description="What to look for.")]
    ) -> SearchAnswer:
        service.check_texts([text])
        return await service.ask_one(asked, text, text, Gallery.image)

    @app.post("/search", tags=["search"], summary="Search by several texts")
    async def search_texts(asked: TextSearch) -> SearchAnswer:
        service.check_texts(asked.texts)
        served = service.served(asked.index)
        queries: list[tuple[str, Sum]] = [(text, ((1.0, text),)) for text in asked.texts]
        return await service.search(served, queries, asked.of, asked)

    @app.post("/search/image", tags=["search"], summary="Search by a picture", openapi_extra=PICTURE_BODY)
    async def search_image(request: Request, asked: Annotated[Asked, Depends()]) -> SearchAnswer:
        """The body is the picture's file, as it is. Captions are searched, or images where words are added or
        subtracted, unless `of` says otherwise."""
        picture = Picture(await _picture(request))
        of = Gallery.image if asked.add or asked.subtract else Gallery.text
        return await service.ask_one(asked, "picture", picture, of)

    @app.get("/search/like/{id:path}", tags=["search"], summary="Search by an item of the index")
    async def search_like(
        id: Annotated[str, Path(description="Of an image of the index.")], asked: Annotated[Asked, Depends()]
    ) -> SearchAnswer:
        """Images by their likeness to one of the index, which is left out itself, with its copies."""
        service.item(asked.index, id)
        return await service.ask_one(asked, id, Like(id), Gallery.image)


def _items(app: FastAPI, service: Service) -> None:
    @app.get("/items/{id:path}", tags=["items"], summary="An image of the index")
    async def item(id: str, index: str | None = None) -> Item:
        served = service.item(index, id)
        about = await asyncio.to_thread(served.item, id)
        return Item(index=served.name, thumbnail=service.thumbnail_url(served, id), **about)

    @app.get(
        "/thumbnails/{id:path}",
        tags=["items"],
        summary="Its picture, small",
        response_class=Response,
        responses={200: {"content": {"image/jpeg": {}}}, 410: {"model": Failed}},
    )
    async def thumbnail(
        id: str, index: str | None = None, edge: Annotated[int, Query(ge=16, le=LARGEST_EDGE)] = EDGE
    ) -> Response:
        """A JPEG of at most `edge` x `edge` pixels; 410 with the reason when the picture is gone, or another by
        now; a small one that was shown before may still be."""
        served = service.item(index, id)
        try:
            jpeg = await service.thumbnail(served, id, edge)
        except NotAtHand as problem:
            raise HTTPException(410, str(problem)) from problem
        return Response(jpeg, media_type="image/jpeg", headers={"cache-control": f"private, max-age={KEPT_S}"})


def _embeddings(app: FastAPI, service: Service) -> None:
    async def embedded(served: Served, parts: tuple[answers.Part, ...]) -> Embeddings:
        found = await service.ask(Question(served, tuple(((1.0, part),) for part in parts), None))
        return Embeddings(
            index=served.name,
            adapters_sha256=served.index.record.adapters_sha256,
            width=found.vector_QE.shape[1],
            embeddings=found.vector_QE.tolist(),
            notes=list(found.notes),
        )

    @app.post("/embeddings/texts", tags=["embeddings"], summary="Embed texts")
    async def embed_texts(asked: Texts) -> Embeddings:
        service.check_texts(asked.texts)
        return await embedded(service.served(asked.index), tuple(asked.texts))

    @app.post("/embeddings/image", tags=["embeddings"], summary="Embed a picture", openapi_extra=PICTURE_BODY)
    async def embed_image(request: Request, index: str | None = None) -> Embeddings:
        """The body is the picture's file, as it is."""
        data = await _picture(request)
        return await embedded(service.served(index), (Picture(data),))


def _state(app: FastAPI, service: Service) -> None:
    settings = service.settings

    @app.get("/indexes", tags=["service"], summary="What is served, and the limits")
    async def indexes() -> Indexes:
        return Indexes(
            version=alignvl_version(),
            indexes=[
                IndexAbout(**served.about(), problem=service.catalog.problem.get(name, ""))
                for name, served in service.catalog.served.items()
            ],
            limits=Limits(
                body=settings.max_body,
                pixels=settings.max_pixels,
                text=settings.max_text,
                texts=MOST_TEXTS,
                hits=MOST_HITS,
                seconds=settings.timeout,
                waiting=settings.queue,
            ),
        )

    @app.get("/health", tags=["service"], summary="Whether it answers")
    async def health() -> Health:
        status = "ok" if not service.catalog.problem else "ok, of an older index"
        return Health(status=status, indexes=len(service.catalog.served))

    @app.get("/metrics", tags=["service"], summary="Counters for Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


PICTURE_BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


async def _picture(request: Request) -> bytes:
    data = await request.body()
    if not data:
        raise HTTPException(422, "the body is empty; send a picture's file as it is: curl --data-binary @photo.jpg")
    return data


class _Html:
    """A page with the policy that lets its own style and script act, told by their hashes, and nothing else."""

    def __init__(self, html: str) -> None:
        self._html = html
        style, script = (
            " ".join(
                f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
                for text in re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
            )
            or "'none'"
            for tag in ("style", "script")
        )
        self._policy = (
            f"default-src 'none'; script-src {script}; style-src {style}; img-src 'self' blob: data:; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        )

    def response(self) -> HTMLResponse:
        return HTMLResponse(self._html, headers={"content-security-policy": self._policy})
