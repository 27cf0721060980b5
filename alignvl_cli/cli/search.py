"""`alignvl search`: ask an index with words or with a picture; `--html` writes a page of what was found."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from alignvl_cli.cli.console import Session
from alignvl_cli.cli.report import require_free
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.settings import Gallery, SearchSettings, Trust

if TYPE_CHECKING:
    from alignvl_cli.datasets.lookalikes import Lookalikes
    from alignvl_cli.report.search import SearchPage
    from alignvl_cli.retrieval.queries import Query
    from alignvl_cli.retrieval.search import Hit


def search(
    session: Session,
    text: Annotated[list[str] | None, typer.Argument(metavar="TEXT", help="Queries, one an argument.")] = None,
    image: Annotated[
        list[Path] | None, typer.Option("--image", "-i", help="A picture to search with; may be repeated.")
    ] = None,
    queries: Annotated[Path | None, typer.Option(help="File of texts to search with, one a line.")] = None,
    like: Annotated[
        list[str] | None, typer.Option("--like", metavar="ID", help="An image of the index to search with.")
    ] = None,
    add: Annotated[
        list[str] | None, typer.Option("--add", metavar="[W*]TEXT", help="Add words to each query, W times as much.")
    ] = None,
    subtract: Annotated[
        list[str] | None,
        typer.Option("--subtract", metavar="[W*]TEXT", help="Words to be far from."),
    ] = None,
    add_image: Annotated[
        list[str] | None, typer.Option("--add-image", metavar="[W*]FILE", help="Add a picture to each query.")
    ] = None,
    subtract_image: Annotated[
        list[str] | None,
        typer.Option("--subtract-image", metavar="[W*]FILE", help="A picture to be far from."),
    ] = None,
    index: Annotated[
        Path | None, typer.Option(help="Index to ask. Default: the newest; none: one is built for the newest run.")
    ] = None,
    *,
    trust: Trust,
    asked: SearchSettings,
) -> None:
    """Find images by words, captions by a picture, images like one of the index.

    Duplicates (the same caption text, the same image content) are folded into one hit. --add and --subtract make a
    weighted sum of each query: alignvl search --image photo.jpg --of image --add "2*at night" --subtract truck
    """
    if [bool(text or queries), bool(image), bool(like)].count(True) != 1:
        raise UsageError('search wants either TEXT or --image FILE or --like ID, e.g. `alignvl search "red heart"`')

    from alignvl_cli.cli.workspace import open_or_make_index, run_of, store_behind
    from alignvl_cli.devices import choose_device
    from alignvl_cli.report.search import hits_table
    from alignvl_cli.retrieval.dual_encoder import DualEncoder
    from alignvl_cli.retrieval.queries import Combined, Like, cutoff, embed, itself, terms_of, told
    from alignvl_cli.retrieval.search import cut_texts, scoring
    from alignvl_cli.retrieval.search import search as ask

    if any(not words.strip() for words in text or []):
        raise UsageError('search: TEXT is blank; say what to look for, e.g. `alignvl search "red heart"`')
    extra, extra_names = _extra_terms(add, subtract, add_image, subtract_image)
    words = [*(text or []), *(_lines(queries) if queries else [])]
    bases: list[str | Path | Like] = [*words, *(image or []), *map(Like, like or [])]
    sums: list[Query] = [Combined((1.0, base), *extra) if extra else base for base in bases]
    queried = [told([(1.0, base.id if isinstance(base, Like) else str(base)), *extra_names]) for base in bases]
    place = choose_device(asked.device)
    page_path = gallery_place(session, asked.html, asked.overwrite) if asked.html or asked.open_page else None
    opened = open_or_make_index(session, index, place)
    is_cosine = opened.record.hubness is None
    if asked.threshold is not None and asked.threshold > 1 and is_cosine:
        raise UsageError(f"--threshold {asked.threshold:g}: no hit can score that, a score is a cosine and at most 1")
    encoder = DualEncoder.load(
        run_of(session, opened), device=place, trust_remote_code=trust.remote_code, allow_pickle=trust.pickle
    )
    texts = dict.fromkeys(part for query in sums for _, part in terms_of(query) if isinstance(part, str))
    for sentence in cut_texts(encoder, texts):
        session.warn(sentence)
    query_QE = embed(opened, encoder, lambda: store_behind(session, opened).store, sums)
    gallery = asked.of or (Gallery.text if image and not extra else Gallery.image)
    look = _lookalikes(asked, gallery)
    without = [itself(opened, terms_of(query), gallery) for query in sums]
    rescore, approximate = scoring(opened, encoder, gallery, lambda: store_behind(session, opened))
    if approximate:
        session.warn(approximate)
    lowest = asked.threshold
    if asked.min_precision is not None:
        least, how = cutoff(opened, map(terms_of, sums), gallery, asked.min_precision, approximate)
        session.note(how)
        lowest = least if lowest is None else max(lowest, least)
    found = ask(opened, encoder, query_QE, k=asked.k, of=gallery, rescore=rescore, without=without, look=look)
    if look is not None and (unseen := look.unseen(hit.uri for hits in found for hit in hits)):
        session.warn(unseen)
    if lowest is not None:
        found = [_above(session, lowest, query, hits) for query, hits in zip(queried, found, strict=True)]
    if page_path is not None:
        from alignvl_cli.report.search import SearchPage

        pictures = [query_picture(path) for path in image] if image else [None] * len(queried)
        page = SearchPage(
            index=str(opened.path),
            gallery=gallery,
            items=len(opened.items[gallery].id),
            measure=("approximate " if approximate else "") + opened.record.metric,
            threshold=lowest,
            answers=list(zip(queried, pictures, found, strict=True)),
        )
        write_gallery(session, page, page_path, is_shown=asked.open_page)
    if asked.as_json:
        results = [
            {"query": query, "hits": [hit.to_json() for hit in hits]}
            for query, hits in zip(queried, found, strict=True)
        ]
        answer = {"schema": "alignvl.search/1", "index": str(opened.path), "of": gallery.value, "threshold": lowest}
        session.document({**answer, "scores": "approximate" if approximate else "exact", "results": results})
        return
    for query, hits in zip(queried, found, strict=True):
        session.show(hits_table(query, gallery, hits, is_cosine=is_cosine))


def _lookalikes(asked: SearchSettings, gallery: Gallery) -> "Lookalikes | None":
    """What tells near duplicates, where they are to be grouped. UsageError where captions are searched."""
    if not asked.group_duplicates:
        return None
    if gallery is not Gallery.image:
        raise UsageError(
            "--group-duplicates groups pictures, and this search finds captions, of which equal ones are one hit "
            "anyway; leave it out, or add --of image"
        )
    from alignvl_cli.datasets.lookalikes import Lookalikes
    from alignvl_cli.encoders.decoding import decode_image

    return Lookalikes(decode_image)


def _extra_terms(
    add: list[str] | None, subtract: list[str] | None, add_image: list[str] | None, subtract_image: list[str] | None
) -> "tuple[list[tuple[float, str | Path]], list[tuple[float, str]]]":
    """What is added to each query: weights and parts, and the same with their names. UsageError for a blank one."""
    from alignvl_cli.retrieval.queries import weighted

    extra: list[tuple[float, str | Path]] = []
    for flag, written, sign, kind in (
        ("add", add, 1, str),
        ("subtract", subtract, -1, str),
        ("add-image", add_image, 1, Path),
        ("subtract-image", subtract_image, -1, Path),
    ):
        for weight, part in map(weighted, written or []):
            if not part.strip() or weight == 0:
                raise UsageError(f"--{flag}: wanted what to {flag.partition('-')[0]}, with a weight above 0 if any")
            extra.append((sign * weight, kind(part)))
    return extra, [(weight, str(part)) for weight, part in extra]


def _above(session: Session, threshold: float, query: str, hits: "list[Hit]") -> "list[Hit]":
    """The hits that score `threshold` or more; where there are none, what the best one scores is said."""
    kept = [hit for hit in hits if hit.score >= threshold]
    if hits and not kept:
        session.note(f"{query[:40]!r}: no hit scores {threshold:g}; the best one scores {hits[0].score:.3f}")
    return kept


def _lines(path: Path) -> list[str]:
    """The lines of a UTF-8 file that are not blank."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as problem:
        raise DataError(f"{path}: not a file of texts, one a line (not UTF-8: {problem.reason})") from problem
    if not (found := [line.strip() for line in lines if line.strip()]):
        raise DataError(f"{path}: no text in it; write one query a line")
    return found


HEAD_BYTES = 1024
"""Of a page, within which it says what made it."""


def gallery_place(session: Session, output: Path | None, overwrite: bool) -> Path:
    """Where the page goes (default: `search.html` in the workspace). UsageError when a file is there that is no page
    of an earlier search, unless `overwrite` is set."""
    from alignvl_cli.report.search import GENERATOR

    path = output or session.workspace.root / "search.html"
    if path.is_file():
        with open(path, "rb") as stream:
            overwrite |= f'name="generator" content="{GENERATOR}"'.encode() in stream.read(HEAD_BYTES)
    require_free(path, overwrite)
    return path


def write_gallery(session: Session, page: "SearchPage", path: Path, *, is_shown: bool) -> None:
    """Write `page` to `path`, and show it in a browser if asked."""
    from alignvl_cli.artifacts import committed
    from alignvl_cli.report.search import gallery_page

    html = gallery_page(page, _picture)
    with committed(path) as scratch:
        scratch.write_text(html, encoding="utf-8")
    session.note(f"wrote {path}")
    if not is_shown:
        return
    import webbrowser  # loads more than the rest of this file

    if not webbrowser.open(path.resolve().as_uri()):
        session.warn(f"no browser to show it with; open {path} yourself")


def query_picture(path: Path) -> str | None:
    """The thumbnail of a picture that was searched with."""
    from alignvl_cli.datasets.dataset import ImageSource
    from alignvl_cli.report.page import thumbnail

    return thumbnail(ImageSource(path).read())


def _picture(hit: "Hit") -> str | None:
    from alignvl_cli.datasets.formats import picture_bytes
    from alignvl_cli.report.page import thumbnail

    data = picture_bytes(hit.uri)
    return None if data is None else thumbnail(data)
