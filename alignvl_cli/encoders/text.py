"""The text encoder: captions to latents.

Here too: the prefix (asked for, or stated by the model's files, never guessed), lower-casing, truncation and padding.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from alignvl_cli.artifacts import read_json
from alignvl_cli.devices import choose_precision, is_out_of_memory
from alignvl_cli.encoders.folders import NO_TRUST, ModelFolder, Side, code_record, find_model, reason_of, spec_of
from alignvl_cli.encoders.layers import Hidden, Layers, choose_layers, layers_on_record, run_probe
from alignvl_cli.encoders.pooling import OF_ONE_TOKEN, TEXT_VECTORS, choose_pooling, inner_pooling
from alignvl_cli.encoders.quiet import quiet
from alignvl_cli.encoders.records import about, require_known, require_same, tokenizer_record
from alignvl_cli.encoders.sentence_modules import SentenceModules, read_modules
from alignvl_cli.encoders.towers import DTYPES, PROJECTED, Tower, load_tower, probed, require_steady, tower_config
from alignvl_cli.errors import DataError, UsageError, check_flag
from alignvl_cli.settings import LAST_LAYER, Pooling, Precision, Trust

UNMASKED = {"siglip_text_model", "siglip2_text_model"}
"""Trained on captions padded to full length and without a mask: their vector is read at the last place."""

CASE_KEPT = ("Gemma",)
"""Tokenizers, by the start of their class, that keep the case of a text. Folders of SigLIP 2, which was trained on
captions in lower case, name Gemma's; SigLIP's own lower-cases."""

ENDLESS = 1_000_000
"""Tokenizers that state no length give a huge number."""

COUNT_AFTER_PADDING = {
    *("roberta", "roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet"),
    *("data2vec-text", "longformer", "ibert"),
}
"""Model types whose positions start after the padding id."""

LEGACY_END = 2
"""What configurations of CLIP called the end of a caption before transformers read it."""

DEFAULT_LENGTH = 512
"""Where neither module files, tokenizer nor model state one; captions are far shorter."""


@dataclass(frozen=True, eq=False, slots=True)
class CaptionReader:
    """A tokenizer and how captions are put to it."""

    tokenizer: Any
    max_length: int
    """Tokens of a caption that are read, special ones and prefix included."""
    prefix: str = ""
    lowercase: bool = False
    full_length: bool = False
    """Whether captions are padded to `max_length` and unmasked."""

    @property
    def record(self) -> dict[str, Any]:
        return {
            "tokenizer": tokenizer_record(self.tokenizer),
            "prefix": self.prefix,
            "max_length": self.max_length,
            "lowercase": self.lowercase,
            # Recorded where it is not the usual one, so that what other stores say of their encoder stays as it is.
            **({"truncation_side": "left"} if self.tokenizer.truncation_side == "left" else {}),
        }

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """Tokens of each text before it is cut, special ones and prefix included."""
        if not texts:
            return []
        with quiet():  # the tokenizer warns of texts that are too long: the caller counts them
            return [len(ids) for ids in self.tokenizer(self._written(texts), truncation=False)["input_ids"]]

    def batch(self, texts: Sequence[str], device: str) -> dict[str, Tensor]:
        """Ids and attention mask, (B, L) int64 and padded on the right, and what else the tokenizer gives."""
        batch = self.tokenizer(
            self._written(texts),
            truncation=True,
            max_length=self.max_length,
            padding="max_length" if self.full_length else True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        if self.full_length:
            batch["attention_mask"].fill_(1)
        batch["attention_mask"][:, 0] = 1  # a text without any token, in models that add none: its padding is read
        return {name: tensor.to(device) for name, tensor in batch.items()}

    def ends_where_pooled(self, config: Any) -> bool:
        """Whether the pooling of CLIP and its like finds the last token of a caption.

        It looks for the id of a caption's end or, where old files of CLIP say 2, for the highest id; where there is
        none, the first token stands for every caption.
        """
        ids = self.tokenizer("a")["input_ids"]
        is_legacy = config.model_type == "clip_text_model" and config.eos_token_id == LEGACY_END
        end = max(ids) if is_legacy else config.eos_token_id
        return end in ids and ids.index(end) == len(ids) - 1

    def starts_with_class_token(self) -> bool:
        """Whether the first token of every caption is one that was trained to stand for it."""
        first = self.tokenizer("a")["input_ids"][:1]
        return self.tokenizer.cls_token_id is not None and first == [self.tokenizer.cls_token_id]

    def _written(self, texts: Sequence[str]) -> list[str]:
        written = [self.prefix + text for text in texts]
        # Letter by letter, as tokenizers lower them: a whole word may end in another letter (Greek sigma).
        return ["".join(map(str.lower, text)) for text in written] if self.lowercase else written


def load_reader(
    found: ModelFolder, modules: SentenceModules | None, prefix: str, config: Any, trust: Trust = NO_TRUST
) -> CaptionReader:
    """The folder's tokenizer, with `prefix` and what its module files say. DataError when it cannot be loaded."""
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(
                found.path, trust_remote_code=trust.remote_code, local_files_only=True
            )
    except ImportError as problem:
        raise DataError(
            f"{found.spec}: its tokenizer needs a library that is not here ({reason_of(problem)}); {_wanted(problem)}"
        ) from problem
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError) as problem:
        raise DataError(f"{found.spec}: its tokenizer cannot be loaded: {reason_of(problem)}") from problem
    tokenizer.padding_side = "right"  # it then touches no real token of any model
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)  # masked: any token does
    is_unmasked = config.model_type in UNMASKED
    is_case_kept = type(tokenizer).__name__.startswith(CASE_KEPT)
    return CaptionReader(
        tokenizer,
        max_length=_max_length(found, modules, tokenizer, config),
        prefix=prefix,
        lowercase=bool(modules and modules.lowercase) or (is_unmasked and is_case_kept),
        full_length=is_unmasked,
    )


TOKENIZER_LIBRARIES = {
    "sentencepiece": "sentencepiece protobuf",
    "protobuf": "sentencepiece protobuf",
    "tiktoken": "tiktoken",
    **dict.fromkeys(("fugashi", "unidic", "ipadic"), "fugashi ipadic unidic-lite"),
    "sudachi": "sudachipy sudachidict_core",
    **{name: name for name in ("rhoknp", "rjieba", "sacremoses")},
}
"""Word in what transformers says of a missing library -> what to install."""


def _wanted(problem: ImportError) -> str:
    said = f"{problem.name or ''} {problem}".lower()
    for word, libraries in TOKENIZER_LIBRARIES.items():
        if word in said:
            return f"run: pip install {libraries}"
    return "install the library named there, or choose another text model"


def _max_length(found: ModelFolder, modules: SentenceModules | None, tokenizer: Any, config: Any) -> int:
    """What the module files state, else what the tokenizer does; never more than the model has places for, of which
    rotary positions have no end. Of a model that is read at its last place, all its places."""
    if config.model_type in UNMASKED:
        return int(config.max_position_embeddings)
    length, places = tokenizer.model_max_length, _positions(config)
    if isinstance(length, bool) or not isinstance(length, int | float) or length < 1 or length != int(length):
        raise DataError(
            f"{found.spec}: its tokenizer states {length!r} as model_max_length, not a whole number from 1; put its "
            "tokenizer_config.json right"
        )
    stated = modules.max_length if modules else None
    if stated and getattr(config, "rope_parameters", None):
        return stated
    return min(
        (int(bound) for bound in (stated or length, places) if bound and bound < ENDLESS), default=DEFAULT_LENGTH
    )


def _positions(config: Any) -> int | None:
    """Places that the model has positions for, where it says; XLNet says -1 for no end."""
    places = getattr(config, "max_position_embeddings", None)
    if not isinstance(places, int) or places < 1:
        return None
    if config.model_type not in COUNT_AFTER_PADDING:
        return places
    padding = 1 if config.model_type == "mpnet" else config.pad_token_id  # MPNet's code has it fixed
    return places - padding - 1


WANTED = {
    r"e5[-_]mistral|e5[-_].*instruct": "an instruction before queries and nothing before documents",
    r"multilingual[-_]e5|e5[-_](small|base|large)": "'query: ' or 'passage: ' before every text",
    r"nomic[-_]embed[-_]text|modernbert[-_]embed": "'search_query: ' or 'search_document: ' before every text",
}
"""Names of models that were trained with a prefix, of which many have no file that states it; the first that fits
counts. Not here: BGE and others that want an instruction before questions alone, and nothing before captions."""


def choose_prefix(found: ModelFolder, asked: str | None, modules: SentenceModules | None) -> str:
    """The prefix `asked` for, else the one that the model's files state for captions, else none.

    UsageError for one that is not text, and where a model that is known to want one states nothing.
    """
    if asked is not None:
        check_flag(_is_text(asked), "text-prefix", "text in UTF-8", ascii(asked))
        return asked
    if modules is None or not modules.states_prompts:
        _require_none_wanted(found)
    return modules.prefix if modules else ""


def _require_none_wanted(found: ModelFolder) -> None:
    for name in _names(found):
        for pattern, wanted in WANTED.items():
            if re.search(f"(?<![a-z0-9])(?:{pattern})", name, re.IGNORECASE):
                raise UsageError(
                    f"{found.spec}: by its name ({name}) it was trained with {wanted}, and its files state no prompt; "
                    "say what to put before captions and queries alike: --text-prefix 'query: ' for one, "
                    "--text-prefix '' for none"
                )


def _names(found: ModelFolder) -> list[str]:
    """What a model is called: its Hub id, its folder, the Hub's cache around it, and where it was saved from."""
    path = Path(found.id)
    saved_from = read_json(found.path / "config.json", "model configuration").get("_name_or_path")
    around = [part for part in path.parts if part.startswith("models--")]
    return [path.name, *around, *([saved_from] if isinstance(saved_from, str) else [])]


def _is_text(prefix: str) -> bool:
    try:
        return bool(prefix.encode() or True)
    except UnicodeEncodeError:
        return False


PROBE_TEXTS = ["a", "a"]
LONGER_TEXT = "a photograph of two dogs that run along a beach in the rain"
MOST_TOKENS = 1 << 15
"""Tokens, padding included, that go through a text model at once: 64 captions of 512. One caption of 32,768 among 63
short ones would pad them all to its length."""
SHOWN_LETTERS = 60
SURROGATE = re.compile(r"[\ud800-\udfff]")


def text_list(texts: Iterable[str], asker: str) -> list[str]:
    """The texts of any iterable, a generator too, which is gone through once. UsageError for one text alone, of which
    the letters would be taken, and for items that are no text."""
    if isinstance(texts, str | bytes):
        raise UsageError(f"{asker} wants a list of texts: [{texts!r}]")
    if hasattr(texts, "columns"):  # a DataFrame's items are its columns' names
        raise UsageError(f"{asker} wants a list of texts, or one column of them, not a {type(texts).__name__}")
    try:
        listed = [*texts]
    except TypeError as problem:
        raise UsageError(f"{asker} wants a list of texts, not {texts!r} ({type(texts).__name__})") from problem
    for text in listed:
        if not isinstance(text, str):
            raise UsageError(f"{asker} wants a list of texts; one of its items is {text!r} ({type(text).__name__})")
        if SURROGATE.search(text):
            raise UsageError(
                f"{asker}: {text[:SHOWN_LETTERS]!r} has half of a character in it, or a byte that is not UTF-8; is the "
                "terminal's encoding right?"
            )
    return listed


def parts_of(lengths: Sequence[int]) -> Iterator[tuple[list[int], int]]:
    """Rows of a batch that go through the model together, and the longest of them: one part in the given order where
    that is at most `MOST_TOKENS`, else parts of like lengths, the longest first."""
    if len(lengths) * max(lengths) <= MOST_TOKENS:
        yield [*range(len(lengths))], max(lengths)
        return
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    while order:
        longest = lengths[order[0]]
        count = max(1, MOST_TOKENS // longest)
        yield order[:count], longest
        order = order[count:]


@dataclass(frozen=True, eq=False, slots=True)
class TextEncoder:
    """A frozen text model, its tokenizer and the vector that is read from it."""

    record: dict[str, Any]
    """What decides a latent."""
    about: dict[str, Any]
    """Recorded beside it, only warned about."""
    width: int
    device: str
    precision: Precision
    reader: CaptionReader
    model: nn.Module
    pooling: Pooling
    layers: Layers
    """The parts of a latent."""
    inner: Pooling
    """How a layer below the last is read."""

    @property
    def max_length(self) -> int:
        """Tokens of a caption that are read, special ones and prefix included."""
        return self.reader.max_length

    def lengths(self, texts: Iterable[str]) -> list[int]:
        """Tokens of each text before it is cut, special ones and prefix included."""
        return self.reader.lengths(text_list(texts, "lengths"))

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Latents (B, C) float32, raw, unless of several parts: each is then of unit length. The caller cuts batches;
        they do not depend on the rest of the batch or its padding beyond rounding (in float32 about 1e-6 of their
        length).

        A batch that would be padded to more than `MOST_TOKENS` goes through the model in parts. UsageError for a
        text alone; DataError for one that does not fit in memory even by itself.
        """
        texts = text_list(texts, "encode")  # a generator is taken too
        latent_BC = np.empty((len(texts), self.width), dtype=np.float32)
        if not texts:
            return latent_BC
        batch = self.reader.batch(texts, "cpu")
        for rows, longest in parts_of(batch["attention_mask"].sum(dim=1).tolist()):
            part = {name: tensor[rows, :longest].to(self.device) for name, tensor in batch.items()}
            try:
                output = _forward(self.model, self.reader, part, **self.layers.arguments)
                mask_BL = part["attention_mask"]
                last_BP = TEXT_VECTORS[self.pooling](output, mask_BL)
                pool = partial(_pooled, self.inner, mask_BL)
                latent_BC[rows] = self.layers.vectors(output, last_BP, pool).cpu().numpy()
            except (RuntimeError, MemoryError) as problem:
                if len(rows) > 1 or not is_out_of_memory(problem):
                    raise
                raise DataError(
                    f"{self.about['id']}: the text {texts[rows[0]][:SHOWN_LETTERS]!r}... of {longest:,} tokens does "
                    "not fit in memory by itself; shorten it, or state a smaller max_seq_length in the "
                    "sentence_bert_config.json of a copy of the model"
                ) from problem
        return latent_BC


def load_text(
    model_id: str,
    *,
    pooling: Pooling | None,
    layers: str = LAST_LAYER,
    prefix: str | None = None,
    device: str,
    precision: Precision,
    trust: Trust = NO_TRUST,
) -> TextEncoder:
    """The text tower of a Hub id, `id@revision`, local folder or bundled name, on a torch device.

    Without `pooling` or `prefix` (put before every text) the model's sentence-transformers files decide; then, for
    pooling, the table by model type. `layers` as `--text-layers` has them. UsageError, DataError: see `find_model`,
    `choose_prefix`, `load_tower`, `choose_pooling` and `choose_layers`.
    """
    found = find_model(model_id, Side.text, trust)
    modules = read_modules(found.root, prefix)
    prefix = choose_prefix(found, prefix, modules)
    tower = load_tower(found, Side.text, pooling, trust)
    reader = load_reader(found, modules, prefix, tower.config, trust)
    with probed(found, tower):
        batch = reader.batch(PROBE_TEXTS, "cpu")
        output = run_probe(partial(_forward, tower.model, reader, batch), layers)
        hidden = output.last_hidden_state
    require_steady(found, tower, hidden)
    chosen, source = choose_pooling(
        Side.text,
        found.spec,
        asked=pooling,
        stated=modules.pooling if modules else None,
        why_not_stated=modules.problem if modules else "",
        model_type=tower.model_type,
        able=_able(output, tower, reader),
    )
    if tower.model_type in PROJECTED and chosen in (Pooling.pooler, Pooling.projection):
        _require_end(found, tower, reader)
    mask_2L = batch["attention_mask"]
    last_2P = TEXT_VECTORS[chosen](output, mask_2L)
    _require_padding_is_masked(found, tower, reader, chosen, last_2P)
    inner = inner_pooling(Side.text, chosen, tower.model_type, None) or chosen
    parts = choose_layers(
        Side.text,
        found.spec,
        layers,
        output,
        last_2P,
        partial(_pooled, inner, mask_2L),
        of_one_token=inner in OF_ONE_TOKEN,
    )
    precision = choose_precision(precision, device)
    return TextEncoder(
        # A Normalize module is never applied: see `SentenceModules`.
        record=tower.record
        | code_record(found, tower.model, reader.tokenizer)
        | reader.record
        | {"pooling": chosen.value, "normalize": False}
        | parts.record,
        about=about(found.id, found.commit, precision.value, device, source, trust),
        width=sum(parts.widths) or last_2P.shape[1],
        device=device,
        precision=precision,
        reader=reader,
        model=tower.model.to(device, DTYPES[precision]),
        pooling=chosen,
        layers=parts,
        inner=inner,
    )


PADDING_MOVES = 0.02
"""Largest difference, as a share of the largest entry, that padding may make to a vector: rounding is far below it."""


def _require_padding_is_masked(
    found: ModelFolder, tower: Tower, reader: CaptionReader, pooling: Pooling, vector_2P: Tensor
) -> None:
    """UsageError where a text's vector is another in a batch with a longer one: the model reads its padding, as FNet
    does, and latents would depend on what they happen to be encoded with."""
    batch = reader.batch([PROBE_TEXTS[0], LONGER_TEXT], "cpu")
    with probed(found, tower):
        beside_2P = TEXT_VECTORS[pooling](_forward(tower.model, reader, batch), batch["attention_mask"])
    moved = ((beside_2P[0] - vector_2P[0]).abs().max() / vector_2P[0].abs().max()).item()
    if not moved <= PADDING_MOVES:
        raise UsageError(
            f"{found.spec}: a text has another vector beside a longer one (by {moved:.0%} of its largest entry): this "
            "model reads the padding of a batch, so that its latents would depend on chance; choose another text model"
        )


def load_caption_reader(model_id: str, *, prefix: str | None, trust: Trust = NO_TRUST) -> CaptionReader:
    """How `load_text` would read captions, without the model's weights and whatever its pooling."""
    found = find_model(model_id, Side.text, trust)
    modules = read_modules(found.root, prefix)
    return load_reader(
        found, modules, choose_prefix(found, prefix, modules), tower_config(found, Side.text, trust), trust
    )


def reload_text(
    record: Mapping[str, Any], about: Mapping[str, Any], device: str, precision: Precision, trust: Trust = NO_TRUST
) -> TextEncoder:
    """The encoder that a store's `record` and `about` describe; MismatchError if it has changed since, or if
    the latents were imported. What the record trusts is not trusted again: `trust` is asked anew."""
    require_known(record, about)
    spec = spec_of(about["id"], about["commit"])
    encoder = load_text(
        spec,
        pooling=Pooling(record["pooling"]),
        layers=layers_on_record(record),
        prefix=record["prefix"],
        device=device,
        precision=precision,
        trust=trust,
    )
    require_same(spec, record, encoder.record)
    return encoder


def _pooled(pooling: Pooling, mask_BL: Tensor, state: Tensor) -> Tensor:
    """A layer's hidden state (B, L, P) as vectors (B, P)."""
    return TEXT_VECTORS[pooling](Hidden(state), mask_BL)


def _forward(model: nn.Module, reader: CaptionReader, batch: dict[str, Tensor], **arguments: bool) -> Any:
    """The model's output."""
    if reader.full_length:
        batch = {"input_ids": batch["input_ids"]}
    return model(**batch, **arguments)


def _require_end(found: ModelFolder, tower: Tower, reader: CaptionReader) -> None:
    if not reader.ends_where_pooled(tower.config):
        end = reader.tokenizer("a")["input_ids"][-1]
        raise DataError(
            f"{found.spec}: its configuration says that captions end with token {tower.config.eos_token_id}, and its "
            f"tokenizer ends them with {end}: another token than the last would stand for a caption; put eos_token_id "
            "in its config.json right, or choose --text-pooling last"
        )


def _able(output: Any, tower: Tower, reader: CaptionReader) -> set[Pooling]:
    able = set()
    if getattr(output, "pooler_output", None) is not None and tower.has_pooler:
        able.add(Pooling.pooler)
    if tower.model_type in PROJECTED:
        able.add(Pooling.projection)
    if not reader.full_length:
        able |= {Pooling.mean, Pooling.last}
        if reader.starts_with_class_token():
            able |= {Pooling.cls, Pooling.cls_mean}
    return able
