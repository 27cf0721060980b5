"""The dual encoder: texts and pictures in, unit rows of one shared space out. Search and the Python API both use it."""

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps
from torch import Tensor

from alignvl_cli.devices import choose_device, choose_precision
from alignvl_cli.encoders.decoding import UnreadableImage, as_rgb, decode_image
from alignvl_cli.encoders.folders import NO_TRUST, fetch_files
from alignvl_cli.encoders.text import TextEncoder, reload_text, text_list
from alignvl_cli.encoders.vision import VisionEncoder, reload_vision
from alignvl_cli.errors import DataError, MismatchError, UsageError
from alignvl_cli.retrieval.embeddings import PROJECT_ROWS, project
from alignvl_cli.settings import MAX_PIXELS, Device, Precision, Trust
from alignvl_cli.training.run_folder import ADAPTERS, CONFIG, Run, is_complete_run, load_exported, load_run

IMAGE_BATCH = 32
TEXT_BATCH = 64

Picture = str | Path | Image.Image
"""A path, or a picture that is open already."""


class DualEncoder:
    """The frozen encoders and the trained adapters of one run.

    Every method takes and gives numpy arrays; embeddings are float32 rows of unit length, so a dot product is a
    cosine. The frozen encoders load on first use, and must be the very ones the run was trained on.
    """

    def __init__(self, run: Run, device: str, trust: Trust = NO_TRUST) -> None:
        self.run = run
        self._trust = trust
        self.device = device
        self._adapters = run.adapters.to(device)

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles load the frozen encoders again, on first use."""
        return {name: value for name, value in self.__dict__.items() if name not in ("_vision", "_text")}

    @classmethod
    def load(
        cls,
        run: str | Path,
        device: Device | str = Device.auto,
        *,
        trust_remote_code: bool = False,
        allow_pickle: bool = False,
    ) -> "DualEncoder":
        """Load a complete run. Raises DataError when it is not one, UsageError when `device` is none or absent.

        Encoders with Python code of their own, or pickled weights, load only with the flag that says so, whatever
        was said when the latents were extracted.
        """
        place = _place(device)
        return cls(load_run(Path(run), place), place, Trust(remote_code=trust_remote_code, pickle=allow_pickle))

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        device: Device | str = Device.auto,
        *,
        trust_remote_code: bool = False,
        allow_pickle: bool = False,
    ) -> "DualEncoder":
        """Load a folder that `alignvl export --to hub-folder` or `--to safetensors` made, a run folder, or a model of
        the Hub that holds the files of the former (`owner/name`, `owner/name@revision`), which is fetched into the
        Hub's cache. A folder here goes before a name on the Hub. What the folder's encoders may run is asked anew.

        Raises DataError when there is no such folder or model, or it is damaged; UsageError as `load`.
        """
        folder = Path(name).expanduser()
        if not folder.is_dir():
            folder = fetch_files(str(name), [CONFIG, ADAPTERS])
        if is_complete_run(folder):
            return cls.load(folder, device, trust_remote_code=trust_remote_code, allow_pickle=allow_pickle)
        place = _place(device)
        return cls(load_exported(folder, place), place, Trust(remote_code=trust_remote_code, pickle=allow_pickle))

    def with_run(self, run: Run) -> "DualEncoder":
        """The same frozen encoders, loaded once, with the adapters of another run. MismatchError for one of others."""
        if run.encoder_hash != self.run.encoder_hash:
            raise MismatchError(f"{run.path} was trained on other encoders than {self.run.path}")
        other = DualEncoder(run, self.device, self._trust)
        other.__dict__.update(_vision=self._vision, _text=self._text)  # where the cached properties keep them
        return other

    @property
    def temperature(self) -> float:
        """tau: probabilities are softmax(cosine / tau)."""
        return self.run.temperature

    @property
    def width(self) -> int:
        """E, the width of the shared space."""
        return self._adapters.shape.embed_dim

    def encode_text(self, texts: Iterable[str]) -> np.ndarray:
        """Embed texts: (N, E) unit rows. Equal texts are encoded once. UsageError for one text alone."""
        texts = text_list(texts, "encode_text")
        distinct = list(dict.fromkeys(texts))
        lengths = self._text.lengths(distinct)
        by_length = sorted(range(len(distinct)), key=lambda position: lengths[position])
        latent_ND = np.empty((len(distinct), self._text.width), dtype=np.float32)
        for start in range(0, len(by_length), TEXT_BATCH):
            batch = by_length[start : start + TEXT_BATCH]
            latent_ND[batch] = self._text.encode([distinct[position] for position in batch])
        row_of = {text: row for row, text in enumerate(distinct)}
        return self.project_text(latent_ND)[[row_of[text] for text in texts]]

    def encode_image(self, images: Iterable[Picture]) -> np.ndarray:
        """Embed picture files or PIL pictures: (N, E) unit rows; DataError names one that cannot be read.

        Of a generator, `IMAGE_BATCH` pictures are held at once. UsageError for one picture alone.
        """
        if isinstance(images, str | bytes | Path | Image.Image):
            raise UsageError(f"encode_image wants a list of pictures, not one ({type(images).__name__})")
        waiting = iter(images)
        latents = [np.empty((0, self._vision.width), dtype=np.float32)]
        while batch := [self._pixels(image) for image in islice(waiting, IMAGE_BATCH)]:
            latents.append(self._vision.encode(np.stack(batch)))
        return self.project_image(np.concatenate(latents))

    def project_text(self, latent_ND: np.ndarray) -> np.ndarray:
        """Carry stored text latents into the shared space: (N, E) unit rows."""
        return self._project(self._adapters.project_text, latent_ND, self._adapters.shape.text_width)

    def project_image(self, latent_ND: np.ndarray) -> np.ndarray:
        """Carry stored image latents into the shared space: (N, E) unit rows."""
        return self._project(self._adapters.project_image, latent_ND, self._adapters.shape.image_width)

    def _pixels(self, image: Picture) -> np.ndarray:
        if not isinstance(image, str | Path | Image.Image):
            raise UsageError(f"encode_image wants paths or PIL pictures; one of its items is a {type(image).__name__}")
        picture = open_picture(image)
        try:
            return self._vision.prepare(picture)
        except UnreadableImage as problem:
            raise DataError(f"{image}: this image cannot be encoded: {problem}") from problem

    @cached_property
    def _vision(self) -> VisionEncoder:
        return reload_vision(**self.run.vision, device=self.device, precision=self._precision, trust=self._trust)

    @cached_property
    def _text(self) -> TextEncoder:
        return reload_text(**self.run.text, device=self.device, precision=self._precision, trust=self._trust)

    @property
    def _precision(self) -> Precision:
        return choose_precision(Precision.auto, self.device)

    def _project(self, adapter: Callable[[Tensor], Tensor], latent_ND: np.ndarray, width: int) -> np.ndarray:
        latent_ND = np.asarray(latent_ND)  # rows in a list are taken too
        if latent_ND.ndim != 2 or latent_ND.shape[1] != width:
            raise ValueError(f"latents should have the shape (rows, {width}), not {latent_ND.shape}")
        return project(adapter, _blocks(latent_ND), self.device).cpu().numpy()


def _place(device: Device | str) -> str:
    """Where to compute; UsageError for no device, or one that is not there."""
    if device not in list(Device):
        raise UsageError(f"device: wanted one of {', '.join(Device)}, got {device!r}")
    return choose_device(Device(device))


def open_picture(image: Picture) -> Image.Image:
    """The upright RGB picture that an encoder is given; DataError when it is missing or unreadable."""
    try:
        if isinstance(image, Image.Image):
            return as_rgb(ImageOps.exif_transpose(image))
        return decode_image(Path(image).read_bytes(), MAX_PIXELS)
    except OSError as problem:
        raise DataError(f"{image}: cannot read this image: {problem.strerror or problem}") from problem
    except UnreadableImage as problem:
        raise DataError(f"{image}: cannot read this image: {problem}") from problem


def _blocks(latent_ND: np.ndarray) -> Iterator[np.ndarray]:
    """Contiguous float32 copies of blocks (a mapped store cannot be written to); one empty block for no rows."""
    for start in range(0, max(1, len(latent_ND)), PROJECT_ROWS):
        yield np.array(latent_ND[start : start + PROJECT_ROWS], dtype=np.float32, order="C")
