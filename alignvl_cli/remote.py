"""Files behind a URL: `s3://`, `gs://`, `hf://` and `https://`, through fsspec and the package of each protocol.

Nothing here is called, and fsspec is not imported, unless the user has named a URL. Credentials are those of the
protocol's own settings or stand in the URL; what is shown, kept or raised has neither user nor query (`shown`).

A dropped connection, a body that ends early, a server's 5xx: asked again, `TRIES` times in all, then DataError names
the object and the cause. An object is a *version* (its size and ETag, or else the time of its last change): what is
read of one in parts is of one version, or DataError says that it changed.
"""

import hashlib
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote, unquote, urlsplit

from alignvl_cli.artifacts import committed
from alignvl_cli.errors import AlignvlError, DataError, UsageError

Found = TypeVar("Found")


class Protocol(NamedTuple):
    """How a scheme is spoken."""

    module: str
    """That fsspec needs for it."""
    install: str
    who: str
    """Whose credentials, in a message."""


WEB = Protocol("aiohttp", "'alignvl[remote]'", "user and password, or a signature, in the URL")
PROTOCOLS = {
    "s3": Protocol("s3fs", "'alignvl[s3]'", "AWS's own: AWS_PROFILE, AWS_ACCESS_KEY_ID, ..."),
    "gs": Protocol("gcsfs", "'alignvl[gs]'", "Google's own: GOOGLE_APPLICATION_CREDENTIALS, ..."),
    "hf": Protocol("huggingface_hub", "'alignvl[remote]'", "the Hub's: HF_TOKEN"),
    "https": WEB,
    "http": WEB,
}
A_URL = re.compile(rf"(?P<scheme>{'|'.join(PROTOCOLS)})://", re.IGNORECASE)
BETWEEN = re.compile(r"::(?=[A-Za-z][\w+.-]*://)")
"""Between two of several URLs; an address of IPv6 and a query may hold `::` as well."""
HERE = re.compile(r"localhost|127(\.\d+){3}|::1")
"""Hosts that plain http may name: nothing on the way can read it."""
AT_ONCE = 8
"""Objects that are fetched beside each other, which is what a distant server needs to be fast."""
TRIES = 6
FIRST_WAIT, LONGEST_WAIT = 0.2, 5.0
"""Seconds before the second try, twice as long before each later one, and at most."""
COPIES_AHEAD = 3
"""Objects of a list that are copied while an earlier one is read."""
TOLD_SECONDS = 0.5
BLOCK = 16 << 20
"""Bytes of a file that are asked for, and asked for again, at once."""
SECONDS = {"connect": 15, "read": 60}
"""Without a byte: the connection counts as dropped."""
TAGS = ("ETag", "etag", "blob_id", "md5Hash")
TIMES = ("LastModified", "Last-Modified", "last_modified", "updated")
"""Where the packages have what tells a version, the surest first."""


def is_url(text: str) -> bool:
    """Whether `text` names something that is fetched."""
    return A_URL.match(text) is not None


def shown(url: str) -> str:
    """`url` without user, password, query and fragment, as it may be printed and kept; a path as it is. Of several,
    each."""
    parts = BETWEEN.split(url)
    if len(parts) > 1:
        return "::".join(map(shown, parts))
    if "://" not in url:
        return url
    scheme, rest = url.split("://", 1)
    host, slash, path = rest.partition("/")
    if scheme.lower() in ("http", "https"):
        path = re.split("[?#]", path, maxsplit=1)[0]
        host = re.split("[?#]", host, maxsplit=1)[0]
    return f"{scheme.lower()}://{host.rpartition('@')[2]}{slash}{path}"


def redacted(text: str) -> str:
    """`text`, a library's message, with each URL in it as `shown`."""
    return re.sub(r"[A-Za-z][\w+.-]*://[^\s'\"<>]+", lambda match: shown(match[0]), text)


def joined(root: str, name: str) -> str:
    """The URL of the file `name` (a relative path) below the folder `root`."""
    name = quote(name) if root.lower().startswith("http") else name
    return f"{root.rstrip('/')}/{name}"


def folder_of(url: str) -> str:
    """The URL of the folder in which `url` lies, without its query, which signs one object."""
    return _without_query(url).rpartition("/")[0]


def inner_path(url: str) -> str:
    """The path in a bucket or on a host, as a file here would be called."""
    path = urlsplit(_without_query(url)).path if url.lower().startswith("http") else url.split("://", 1)[1]
    return unquote(path) if url.lower().startswith("http") else path.partition("/")[2]


def _without_query(url: str) -> str:
    return re.split("[?#]", url, maxsplit=1)[0] if url.lower().startswith("http") else url


class _Short(Exception):
    """Fewer bytes came than the object has."""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One object, in the version that it had when it was looked at."""

    url: str = field(repr=False)
    size: int = -1
    """-1: it was not looked at, or the server does not say."""
    version: str = ""
    """Empty where the server says neither an ETag nor a time."""

    @property
    def stamp(self) -> tuple[int, int]:
        """As of a file: its size, and a number that differs between versions. (-1, -1) where nothing tells them."""
        if not self.version or self.size < 0:
            return -1, -1
        return self.size, int(hashlib.sha256(self.version.encode()).hexdigest()[:15], 16)

    def read(self, start: int, length: int) -> bytes:
        """A part of this version. DataError when the object has another by now."""
        data = _tried(self.url, partial(_exactly, start=start, length=length))
        self._require_same()
        return data

    def download(self, path: Path, told: Callable[[int], None] = lambda count: None) -> None:
        """This version as the file `path`, whole or absent; `told` of the bytes that came, part by part."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with committed(path) as scratch:
            with open(scratch, "wb") as stream:
                for data in self._parts():
                    stream.write(data)
                    told(len(data))
            self._require_same()

    def _parts(self) -> Iterator[bytes]:
        if self.size <= BLOCK:
            yield _tried(self.url, partial(_whole, file=self))
            return
        for start in range(0, self.size, BLOCK):
            part = partial(_exactly, start=start, length=min(BLOCK, self.size - start))
            yield _tried(self.url, part)

    def _require_same(self) -> None:
        if look(self.url) != self:
            raise _changed(self.url)


def _changed(url: str) -> DataError:
    return DataError(f"{shown(url)}: changed while it was being read; run the same command again, which reads it anew")


def look(url: str) -> RemoteFile:
    """Size and version of an object. FileNotFoundError when there is none."""
    return _tried(url, lambda files, path: _look(files, path, url))


def fetch(url: str, at_most: int | None = None) -> tuple[RemoteFile, bytes]:
    """An object and its bytes. FileNotFoundError when there is none, OSError when it has more than `at_most`."""
    found = look(url)
    if at_most is not None and found.size > at_most:
        raise OSError(f"{found.size} bytes long, more than {at_most}")
    return found, _tried(url, partial(_whole, file=found))


def list_names(url: str) -> list[str]:
    """The path from a folder on of each file in it or below."""
    if url.lower().startswith("http"):
        raise UsageError(f"{shown(url)}: what lies in a folder of a web server cannot be asked; name the files")

    def listed(files: Any, path: str) -> list[str]:
        root = path.rstrip("/")
        return [name[len(root) + 1 :] for name in files.find(root) if name.startswith(f"{root}/")]

    return _tried(url, listed)


def upload(path: Path, url: str) -> None:
    """Put the file at `path` under `url`, and read it back: DataError when that is not the same."""
    sha256 = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(BLOCK):
            sha256.update(block)
    _tried(url, lambda files, place: files.put_file(str(path), place))
    there = look(url)
    came = hashlib.sha256()
    for start in range(0, there.size, BLOCK):
        came.update(there.read(start, min(BLOCK, there.size - start)))
    if came.digest() != sha256.digest():
        raise DataError(f"{shown(url)}: what stands there is not what was written; is another process at it?")


def _look(files: Any, path: str, url: str) -> RemoteFile:
    about = files.info(path, **({"refresh": True} if _scheme(url) == "hf" else {}))  # the Hub's remembers all the same
    if about.get("type") == "directory":
        raise FileNotFoundError(path)
    size = -1 if about.get("size") is None else int(about["size"])
    if tag := next((about[key] for key in TAGS if about.get(key)), ""):
        return RemoteFile(url, size, str(tag))
    changed = next((about[key] for key in TIMES if about.get(key)), "")
    return RemoteFile(url, size, changed and f"{changed} {urlsplit(url).query}")  # two queries may have one time


def _whole(files: Any, path: str, file: RemoteFile) -> bytes:
    if _scheme(file.url) not in ("http", "https"):  # the packages of the others would ask for the size once more
        return _exactly(files, path, 0, file.size)
    data: bytes = files.cat_file(path)  # not every web server gives parts
    if file.size not in (-1, len(data)):
        raise _Short(f"{len(data)} of {file.size} bytes came")
    return data


def _exactly(files: Any, path: str, start: int, length: int) -> bytes:
    data: bytes = files.cat_file(path, start=start, end=start + length) if length else b""
    if len(data) > length:
        raise DataError(
            f"{shown(path)}: the server gives whole files alone, where a part was asked for; fetch the file, and give "
            "its path"
        )
    if len(data) < length:
        raise _Short(f"{len(data)} of {length} bytes came")
    return data


def _tried(url: str, work: Callable[[Any, str], Found]) -> Found:
    """`work(filesystem, path)`, again after what may pass. All that is raised is without credentials, and without the
    library's own exception, whose text has the URL."""
    files = filesystem(url)
    path = files._strip_protocol(url)
    wait = FIRST_WAIT
    for left in range(TRIES - 1, -1, -1):
        try:
            return work(files, path)
        except AlignvlError:
            raise
        except Exception as problem:  # each package has a family of its own
            failure = _failure(url, problem, is_last=not left)
        if failure is not None:
            raise failure
        time.sleep(wait)
        wait = min(2 * wait, LONGEST_WAIT)
    raise AssertionError("the last try returns or raises")


def _failure(url: str, problem: BaseException, *, is_last: bool) -> Exception | None:
    """What to raise; None to try again."""
    if isinstance(problem, FileNotFoundError) and problem.__cause__ is not None:
        problem = problem.__cause__  # which fsspec makes of whatever went wrong on the web
    status = _status(problem)
    if isinstance(problem, FileNotFoundError) or status in (404, 410):
        return FileNotFoundError(2, "no such object", shown(url))
    cause = redacted(" ".join(str(problem).split())) or type(problem).__name__
    if isinstance(problem, PermissionError) or status in (401, 403) or type(problem).__name__ in NO_CREDENTIALS:
        who = PROTOCOLS[_scheme(url)].who
        return DataError(f"{shown(url)}: not allowed ({cause}); are the credentials right, and not expired? ({who})")
    is_refused = status is not None and 400 <= status < 500 and status not in (408, 425, 429)
    if is_refused or isinstance(problem, ImportError | NotImplementedError):
        return DataError(f"{shown(url)}: cannot be read: {cause}")
    if is_last:
        return DataError(
            f"{shown(url)}: cannot be read, tried {TRIES} times: {cause}; what is finished is kept: run the same "
            "command again"
        )
    return None


NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "DefaultCredentialsError")
"""What the packages raise before any server is asked."""


def _status(problem: BaseException) -> int | None:
    """The HTTP status that a server answered, where a library's exception tells one."""
    for one in filter(None, (problem, problem.__cause__)):
        response = getattr(one, "response", None)
        if isinstance(response, dict):  # botocore's
            found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        elif response is not None:  # requests', httpx's
            found = getattr(response, "status_code", None)
        else:  # aiohttp gives a status to a body cut short as well, which no server answered
            found = {"ClientResponseError": "status", "HttpError": "code"}.get(type(one).__name__)
            found = found and getattr(one, found)
        if isinstance(found, int):
            return found
    return None


def _scheme(url: str) -> str:
    match = A_URL.match(url)
    assert match is not None
    return match["scheme"].lower()


def filesystem(url: str) -> Any:
    """fsspec's file system for `url`. UsageError when a package is missing, for plain http to another machine, and for
    credentials in a URL whose protocol has no place for them."""
    scheme = _scheme(url)
    host = re.split(r"[/?#]", url.split("://", 1)[1], maxsplit=1)[0]
    if scheme not in ("http", "https") and "@" in host:
        raise UsageError(f"{shown(url)}: leave the credentials out of the URL; they are {PROTOCOLS[scheme].who}")
    if scheme == "http" and not HERE.fullmatch(urlsplit(url).hostname or ""):
        raise UsageError(f"{shown(url)}: http is read by everybody on the way; give it as https://")
    return _filesystem(scheme)


@cache
def _filesystem(scheme: str) -> Any:
    """One for all threads: each would have connections of its own. What a listing said is not remembered: objects
    change."""
    protocol = PROTOCOLS[scheme]
    try:
        import fsspec

        __import__(protocol.module)
    except ImportError as problem:
        raise UsageError(
            f"{scheme}:// needs the package {problem.name or protocol.module}: pip install {protocol.install}"
        ) from problem
    if scheme in ("http", "https"):
        import aiohttp

        patience = aiohttp.ClientTimeout(total=None, sock_connect=SECONDS["connect"], sock_read=SECONDS["read"])
        client = {"trust_env": True, "timeout": patience}
        return fsspec.filesystem(scheme, skip_instance_cache=True, encoded=True, client_kwargs=client)
    options: dict[str, Any] = {"use_listings_cache": False}
    if scheme == "hf":
        options["expand_info"] = True  # one question about a file, where it would list the folder
    if scheme == "s3":  # `_tried` tries again; its package would too, in each of the tries
        options["config_kwargs"] = {
            "retries": {"total_max_attempts": 1},
            "connect_timeout": SECONDS["connect"],
            "read_timeout": SECONDS["read"],
            "max_pool_connections": 2 * AT_ONCE,
        }
    files = fsspec.filesystem(scheme, skip_instance_cache=True, **options)
    if scheme == "s3":
        files.retries = 1
    return files


@dataclass(frozen=True, slots=True)
class Cache:
    """A folder of whole copies, each under a name that its version is part of: what is there is right, and stays until
    somebody removes it."""

    folder: Path
    most: int
    """Bytes of all copies together; what does not fit is not kept."""
    told: Callable[[int, int], None] = lambda done, total: None
    """Called now and then with the bytes that came, and those of all that is fetched."""

    def copies(self, urls: Sequence[str], *, keep_all: bool = False) -> Iterator[tuple[RemoteFile, Path]]:
        """Each object with a copy of it, in order, fetched some ahead. One that does not fit is gone when the next is
        asked for; DataError instead where all are wanted."""
        with ExitStack() as until_done:
            pool = ThreadPoolExecutor(AT_ONCE)
            until_done.callback(pool.shutdown, cancel_futures=True)
            files = list(pool.map(look, urls))
            places = [self._place(file) for file in files]
            if len({*places}) < len(places):
                raise UsageError(f"{shown(urls[0])} and what is named with it: one object is named twice")
            missing = [number for number, place in enumerate(places) if not place.exists()]
            self.folder.mkdir(parents=True, exist_ok=True)
            passing = Path(until_done.enter_context(tempfile.TemporaryDirectory(prefix=".", dir=self.folder)))
            room = self.most - sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())
            for number in missing:
                room -= files[number].size
                if room < 0:
                    if keep_all:
                        raise DataError(
                            f"{shown(files[number].url)}: its {files[number].size:,} bytes do not fit into "
                            f"--cache-size; give a larger one, or remove what you no longer need from {self.folder}"
                        )
                    room += files[number].size
                    places[number] = passing / places[number].relative_to(self.folder)
            came: list[int] = []
            total = sum(files[number].size for number in missing)
            begun: dict[int, Future[None]] = {}
            for number, (file, place) in enumerate(zip(files, places, strict=True)):
                for wanted in [one for one in missing if one <= number + COPIES_AHEAD and one not in begun]:
                    begun[wanted] = pool.submit(files[wanted].download, places[wanted], came.append)
                while number in begun and wait([begun[number]], TOLD_SECONDS).not_done:
                    self.told(sum(came), total)
                if number in begun:
                    begun[number].result()
                    self.told(sum(came), total)
                yield file, place
                if place.is_relative_to(passing):
                    place.unlink()

    def _place(self, file: RemoteFile) -> Path:
        """Where a copy is, or would be; its path ends as the URL's does."""
        if not file.version or file.size < 0:
            raise DataError(
                f"{shown(file.url)}: the server says neither size nor ETag nor the time of the last change, so that "
                "nothing would tell a changed file; fetch it, and give its path"
            )
        key = hashlib.sha256(f"{shown(file.url)}\0{file.size}\0{file.version}".encode()).hexdigest()[:16]
        parts = [part for part in inner_path(file.url).split("/") if part not in ("", ".", "..")]
        return self.folder.joinpath(key, *parts)
