"""From captions to the tensors a text tower takes: prefix, lower-casing, cutting, padding."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import AutoTokenizer

from alignvl_cli.config import Trust
from alignvl_cli.encoders.folders import NO_TRUST, ModelFolder
from alignvl_cli.encoders.modules import SentenceModules
from alignvl_cli.encoders.quiet import quiet
from alignvl_cli.encoders.records import tokenizer_record
from alignvl_cli.encoders.trust import reason_of
from alignvl_cli.errors import DataError

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
        return [text.lower() for text in written] if self.lowercase else written


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
            f"{found.spec}: its tokenizer needs a library that is not here ({reason_of(problem).partition('. ')[0]}); "
            "run: pip install sentencepiece protobuf"
        ) from problem
    except (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError) as problem:
        raise DataError(f"{found.spec}: its tokenizer cannot be loaded: {reason_of(problem)}") from problem
    tokenizer.padding_side = tokenizer.truncation_side = "right"  # padding then touches no real token of any model
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)  # masked: any token does
    is_unmasked = config.model_type in UNMASKED
    is_case_kept = type(tokenizer).__name__.startswith(CASE_KEPT)
    return CaptionReader(
        tokenizer,
        max_length=_max_length(modules, tokenizer, config),
        prefix=prefix,
        lowercase=bool(modules and modules.lowercase) or (is_unmasked and is_case_kept),
        full_length=is_unmasked,
    )


def _max_length(modules: SentenceModules | None, tokenizer: Any, config: Any) -> int:
    """The smallest length that anything states; of a model that is read at its last place, all its places."""
    if config.model_type in UNMASKED:
        return config.max_position_embeddings
    stated = [modules.max_length if modules else None, tokenizer.model_max_length, _positions(config)]
    return min((length for length in stated if length and length < ENDLESS), default=DEFAULT_LENGTH)


def _positions(config: Any) -> int | None:
    """Places that the model has positions for, where it says."""
    places = getattr(config, "max_position_embeddings", None)
    if places is not None and config.model_type in COUNT_AFTER_PADDING:
        return places - config.pad_token_id - 1
    return places
