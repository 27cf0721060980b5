"""Every adapter, under every latent norm and reduction, is the chain of modules that it is exported as."""

import itertools
from importlib import import_module

import pytest
import torch
from sentence_transformers import SentenceTransformer
from support import tiny_models
from torch import nn

from alignvl_cli.align.adapters import LATENT_NORM, AdapterShape, Columns, Joined, new_pair
from alignvl_cli.align.streams import Streams
from alignvl_cli.encoders.text import load_text
from alignvl_cli.export import alignvl_blocks
from alignvl_cli.export.sentence_transformers import MODULES, OURS, _write, chain
from alignvl_cli.settings import AdapterKind, LatentNorm, Loss, Pooling, Precision

WIDTH, ROWS = 12, 40


def adapter_of(kind: AdapterKind, norm: LatentNorm, latent_width: int) -> tuple[nn.Module, torch.Tensor]:
    """A text adapter with fitted statistics, and latents with a mean and unequal scales."""
    shape = AdapterShape(
        kind=kind,
        image_width=9,
        text_width=WIDTH,
        depth=2,
        expansion=3,
        embed_dim=7,
        dropout=0.5,
        latent_norm=norm,
        temperature=None,
        loss=Loss.infonce,
        latent_width=latent_width,
    )
    generator = torch.Generator().manual_seed(5)
    latent_ND = torch.randn(ROWS, WIDTH, generator=generator) * torch.linspace(0.1, 3, WIDTH) + 0.5
    adapter = new_pair(shape, Streams(3)).eval().text
    adapter.norm.fit([latent_ND])
    adapter.reduce.fit([adapter.norm(latent_ND)])
    return adapter.requires_grad_(False), latent_ND


def run_chain(modules, latent_ND: torch.Tensor) -> torch.Tensor:
    """What sentence-transformers' own classes make of it, with the weights loaded strictly."""
    features = {"sentence_embedding": latent_ND}
    for module in modules:
        name = module.type.rsplit(".", 1)[1]
        home = (
            alignvl_blocks
            if module.type.startswith(OURS)
            else import_module("sentence_transformers.sentence_transformer.modules")
        )
        config = dict(module.config)
        if "activation_function" in config:
            path, _, activation = config["activation_function"].rpartition(".")
            config["activation_function"] = getattr(import_module(path), activation)()
        layer = getattr(home, name)(**config).eval()
        layer.load_state_dict(module.weights, strict=True)
        features = layer(features)
    return features["sentence_embedding"].detach()


@pytest.mark.parametrize(("kind", "norm", "latent_width"), list(itertools.product(AdapterKind, LatentNorm, [0, 8])))
def test_the_chain_is_the_adapter(kind, norm, latent_width):
    adapter, latent_ND = adapter_of(kind, norm, latent_width)
    found = run_chain(chain(adapter), latent_ND)
    wanted = nn.functional.normalize(adapter(latent_ND), dim=1)
    assert found.shape == (ROWS, 7)
    torch.testing.assert_close(found, wanted, atol=2e-6, rtol=0)


def test_the_chain_takes_the_columns_of_a_run():
    latent_ND = torch.randn(ROWS, WIDTH)
    columns = Columns(WIDTH, [(0, 2), (3, WIDTH)])
    found = run_chain(MODULES[Columns](columns, None), latent_ND)
    assert torch.equal(found, latent_ND[:, [column for column in range(WIDTH) if column != 2]])


@pytest.mark.parametrize("kind", list(AdapterKind))
def test_only_residual_and_gated_layers_need_code(kind):
    adapter, _ = adapter_of(kind, LatentNorm.standardize, 8)
    needs_code = any(module.needs_code for module in chain(adapter))
    assert needs_code == (kind in (AdapterKind.fusemix, AdapterKind.glu))


def test_every_latent_norm_has_its_line():
    assert {type(norm(WIDTH)) for norm in LATENT_NORM.values()} <= MODULES.keys()


def test_the_chain_of_an_ensemble_is_the_ensemble():
    """Of members of every kind, norm and reduction."""
    made = [adapter_of(*which) for which in itertools.product(AdapterKind, LatentNorm, [0, 8])]
    joined = Joined([adapter for adapter, _ in made], [7] * len(made), 5)
    draw = torch.Generator().manual_seed(1)
    joined.root_M.copy_(torch.rand(len(made), generator=draw))
    joined.map_ES.copy_(torch.randn(joined.map_ES.shape, generator=draw))
    modules, latent_ND = MODULES[Joined](joined, None), made[0][1]
    torch.testing.assert_close(run_chain(modules, latent_ND), joined(latent_ND), atol=1e-5, rtol=0)


TEXTS = ["a red heart", "two dogs running in the snow", "z", ""]
ENCODERS = {
    "mean": (tiny_models.save_bert, Pooling.mean, "auto"),
    "a sentence-transformers folder": (tiny_models.save_sentence_transformer, None, "all"),
    "class token": (tiny_models.save_bert, Pooling.cls, "1,last"),
    "class token and mean": (tiny_models.save_bert, Pooling.cls_mean, "last,1"),
    "last token": (tiny_models.save_bert, Pooling.last, "1,last"),
    "one layer, raw": (tiny_models.save_bert, Pooling.mean, "1"),
    "t5": (tiny_models.save_t5, Pooling.mean, "0,1,last"),
    "clip, with a norm after its highest layer": (tiny_models.save_clip, Pooling.mean, "0,2,last"),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_the_pooling_of_layers_is_the_encoders(name, tmp_path):
    save, pooling, layers = ENCODERS[name]
    folder = save(tmp_path / "model")
    encoder = load_text(str(folder), pooling=pooling, layers=layers, device="cpu", precision=Precision.fp32)
    (tmp_path / "export").mkdir()
    _write(encoder, [], tmp_path / "export")
    model = SentenceTransformer(str(tmp_path / "export"), device="cpu", trust_remote_code=True, local_files_only=True)
    assert model.get_embedding_dimension() == encoder.width
    found = torch.from_numpy(model.encode(TEXTS))
    torch.testing.assert_close(found, torch.from_numpy(encoder.encode(TEXTS)), atol=1e-5, rtol=1e-5)
