"""Adapters: an independent rewrite of FuseMix's, latent norms, temperature, initialisation."""

import json
import math

import pytest
import torch
import torch.nn.functional as F

from alignvl_cli.align.adapters import LATENT_NORM, AdapterPair, AdapterShape, PrincipalComponents, new_pair
from alignvl_cli.align.streams import Streams
from alignvl_cli.settings import AdapterKind, LatentNorm, Loss


def shape(**changes) -> AdapterShape:
    plain = {
        "kind": AdapterKind.fusemix,
        "image_width": 6,
        "text_width": 4,
        "depth": 2,
        "expansion": 4,
        "embed_dim": 3,
        "dropout": 0.5,
        "latent_norm": LatentNorm.none,
        "temperature": None,
    }
    return AdapterShape(**(plain | changes))


def rows(width: int, count: int = 40) -> torch.Tensor:
    return 3 + 2 * torch.randn(count, width, generator=torch.Generator().manual_seed(width))


def fusemix_by_hand(weights: dict[str, torch.Tensor], x: torch.Tensor, depth: int) -> torch.Tensor:
    def layer_norm(x, name):
        centred = x - x.mean(dim=1, keepdim=True)
        unit = centred / (centred.square().mean(dim=1, keepdim=True) + 1e-5).sqrt()
        return unit * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def affine(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    for block in range(depth):
        hidden = affine(layer_norm(x, f"body.{block}.norm"), f"body.{block}.widen")
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        x = x + affine(hidden, f"body.{block}.narrow")
    return affine(layer_norm(x, f"body.{depth}"), f"body.{depth + 1}")


def test_fusemix_adapter_equals_a_rewrite_from_its_weights():
    pair = new_pair(shape(), Streams(0)).eval()
    latents = rows(6)
    by_hand = fusemix_by_hand(pair.image.state_dict(), latents, depth=2)
    assert torch.allclose(pair.image(latents), by_hand, atol=1e-5)
    assert torch.allclose(pair.project_image(latents), F.normalize(by_hand, dim=1), atol=1e-5)
    assert pair.image.body[0].widen.weight.shape == (4 * 6, 6)


def test_linear_adapter_is_affine():
    pair = new_pair(shape(kind=AdapterKind.linear), Streams(0)).eval()
    one, two = rows(4)[:5], rows(4)[5:10]
    assert torch.allclose(pair.text(0.5 * (one + two)), 0.5 * (pair.text(one) + pair.text(two)), atol=1e-5)
    assert sum(parameter.numel() for parameter in pair.text.parameters()) == 4 * 3 + 3


@pytest.mark.parametrize("kind", [AdapterKind.mlp, AdapterKind.glu])
def test_mlp_and_glu_equal_a_rewrite_from_their_weights(kind):
    pair = new_pair(shape(kind=kind, expansion=3), Streams(0)).eval()
    weights = {name.removeprefix("body."): tensor for name, tensor in pair.image.state_dict().items()}
    latents = rows(6)
    unit = (latents - latents.mean(dim=1, keepdim=True)) / (latents.var(dim=1, correction=0) + 1e-5).sqrt()[:, None]
    if kind is AdapterKind.mlp:  # LN, (Linear, GELU, dropout) twice, Linear
        for layer in (1, 4):
            unit = unit @ weights[f"{layer}.weight"].T + weights[f"{layer}.bias"]
            unit = unit * 0.5 * (1 + torch.erf(unit / math.sqrt(2)))
        by_hand = unit @ weights["7.weight"].T + weights["7.bias"]
    else:
        gate, value = (unit @ weights[f"{name}.weight"].T + weights[f"{name}.bias"] for name in ("gate", "value"))
        by_hand = (gate.clamp(0, 6) * value) @ weights["out.weight"].T + weights["out.bias"]
    assert torch.allclose(pair.image(latents), by_hand, atol=1e-5)
    widest = max(tensor.shape[0] for tensor in weights.values())
    assert widest == 3 * 6


@pytest.mark.parametrize("kind", [AdapterKind.mlp, AdapterKind.glu])
def test_their_dropout_acts_in_training_alone(kind):
    pair = new_pair(shape(kind=kind), Streams(0))
    assert not torch.equal(pair.image(rows(6)), pair.image(rows(6)))
    pair.eval()
    assert torch.equal(pair.image(rows(6)), pair.image(rows(6)))


def test_projections_are_unit_rows():
    pair = new_pair(shape(), Streams(0)).eval()
    assert torch.allclose(pair.project_text(rows(4)).norm(dim=1), torch.ones(40), atol=1e-6)


@pytest.mark.parametrize("norm", LATENT_NORM)
def test_latent_norms_do_what_they_say(norm):
    latents = rows(6)
    latents[:, 5] = 7.0  # a coordinate that never varies
    module = LATENT_NORM[norm](6)
    module.fit(latents.split(11))
    normalised = module(latents)
    expected = {
        LatentNorm.none: latents,
        LatentNorm.l2: latents / latents.norm(dim=1, keepdim=True),
        LatentNorm.standardize: torch.cat(
            [
                (latents[:, :5] - latents[:, :5].mean(dim=0)) / latents[:, :5].std(dim=0, correction=0),
                torch.zeros(40, 1),
            ],
            dim=1,
        ),
        LatentNorm.rms: (latents - latents.mean(dim=0)) / latents.var(dim=0, correction=0).mean().sqrt(),
    }
    assert torch.allclose(normalised, expected[norm], atol=1e-5)


def test_unit_mean_square_says_by_how_much_it_enlarges():
    latents = 0.03 * rows(6)
    module = LATENT_NORM[LatentNorm.rms](6)
    module.fit(latents.split(11))
    assert module(latents).square().mean().item() == pytest.approx(1, rel=1e-5)
    distance = (latents[0] - latents[1]).norm()
    assert (module(latents[0]) - module(latents[1])).norm().item() == pytest.approx(module.factor * distance.item())
    reduced = PrincipalComponents(6, 3, rescales=True)
    reduced.fit([latents])
    assert reduced(latents).square().mean().item() == pytest.approx(1, rel=1e-5)
    whole = PrincipalComponents(6, 3)
    whole.fit([latents])
    assert torch.allclose(reduced(latents), reduced.factor * whole(latents), atol=1e-6)
    flat = LATENT_NORM[LatentNorm.rms](6)
    flat.fit([torch.ones(10, 6)])
    assert torch.equal(flat(torch.ones(2, 6)), torch.zeros(2, 6))


def test_the_statistics_travel_with_the_weights():
    pair = new_pair(shape(latent_norm=LatentNorm.standardize), Streams(0)).eval()
    pair.image.norm.fit([rows(6)])
    loaded = AdapterPair(pair.shape)
    loaded.load_state_dict(pair.state_dict(), strict=True, assign=True)
    assert torch.equal(loaded.eval().project_image(rows(6)), pair.project_image(rows(6)))


def test_initialisation_depends_on_the_seed_alone_and_towers_apart():
    before = torch.random.get_rng_state()
    one, again, other = (new_pair(shape(), Streams(seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name
    assert not torch.equal(one.image.body[0].widen.weight, other.image.body[0].widen.weight)
    wider_images = new_pair(shape(image_width=12), Streams(0))
    assert torch.equal(wider_images.text.body[0].widen.weight, one.text.body[0].widen.weight)
    bound = 1 / math.sqrt(6)
    assert one.image.body[0].widen.weight.abs().max().item() <= bound
    assert one.image.body[0].widen.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.15)
    assert torch.equal(one.image.body[0].norm.weight, torch.ones(6))


def test_temperature_is_learned_and_clamped_or_fixed():
    learned, fixed = new_pair(shape(), Streams(0)), new_pair(shape(temperature=0.05), Streams(0))
    assert learned.tau.requires_grad
    assert learned.tau.item() == pytest.approx(0.07)
    assert not fixed.tau.requires_grad
    assert fixed.tau.item() == pytest.approx(0.05)
    for value, clamped in ((2.0, 0.5), (-1.0, 0.001), (0.3, 0.3)):
        with torch.no_grad():
            learned.tau.fill_(value)
        learned.clamp_tau()
        assert learned.tau.item() == pytest.approx(clamped)


def test_the_sigmoid_loss_learns_log_t_and_a_bias():
    learned = new_pair(shape(loss=Loss.sigmoid), Streams(0))
    assert {name for name, _ in learned.named_parameters() if "." not in name} == {"log_t", "bias"}
    scale, bias = learned.scale_and_bias()
    assert scale.item() == pytest.approx(10.0)
    assert bias.item() == -10.0
    assert learned.temperature.item() == pytest.approx(0.1)
    for value, clamped in ((100.0, 0.001), (-100.0, 0.5), (3.0, math.exp(-3.0))):
        with torch.no_grad():
            learned.log_t.fill_(value)
        learned.clamp_tau()
        assert learned.temperature.item() == pytest.approx(clamped)
    fixed = new_pair(shape(loss=Loss.sigmoid, temperature=0.05), Streams(0))
    assert {name for name, _ in fixed.named_parameters() if "." not in name} == {"bias"}
    assert fixed.scale_and_bias()[0].item() == pytest.approx(20.0)
    for loss in Loss:
        begun = new_pair(shape(loss=loss), Streams(0))
        begun.start_at(0.05)
        assert begun.temperature.item() == pytest.approx(0.05)


@pytest.mark.parametrize("kind", AdapterKind)
@pytest.mark.parametrize("loss", Loss)
def test_a_shape_survives_json(kind, loss):
    made = shape(kind=kind, loss=loss)
    assert AdapterShape.from_json(json.loads(json.dumps(made.to_json()))) == made


def test_a_shape_from_before_the_sigmoid_loss_is_that_of_infonce():
    record = shape().to_json()
    del record["loss"]
    assert AdapterShape.from_json(record) == shape()


def test_training_mode_needs_its_streams_and_draws_each_tower_from_its_own():
    pair = new_pair(shape(), Streams(0))
    assert not torch.equal(pair.image(rows(6)), pair.image(rows(6)))
    pair.image.body[0].dropout.generator = None
    with pytest.raises(ValueError, match="generator"):
        pair.image(rows(6))


def test_principal_components_are_those_of_a_singular_value_decomposition():
    draw = torch.Generator().manual_seed(3)
    latents = 4 + torch.randn(200, 7, generator=draw) @ torch.randn(7, 7, generator=draw)
    reduce = PrincipalComponents(7, 3)
    reduce.fit(latents.split(33))
    centred = latents.double() - latents.double().mean(dim=0)
    left, value, _ = torch.linalg.svd(centred, full_matrices=False)
    by_hand = left[:, :3] * value[:3]
    reduced = reduce(latents).double()
    assert torch.allclose(reduced.abs(), by_hand.abs(), atol=1e-3)  # a component's sign is free
    assert torch.allclose(reduced.T @ reduced / len(latents), torch.diag(value[:3] ** 2 / len(latents)), atol=1e-3)
    assert torch.allclose(reduce.basis_DK.T @ reduce.basis_DK, torch.eye(3), atol=1e-5)
    largest = reduce.basis_DK.gather(0, reduce.basis_DK.abs().argmax(dim=0, keepdim=True))
    assert (largest > 0).all()


def test_only_latents_wider_than_the_wanted_width_are_reduced():
    pair = new_pair(shape(latent_width=5), Streams(0)).eval()
    names = {name for name in pair.state_dict() if ".reduce." in name}
    assert names == {"image.reduce.mean_D", "image.reduce.basis_DK"}  # 6 and 4 wide
    assert pair.project_image(rows(6)).shape == pair.project_text(rows(4)).shape
    first_five = F.normalize(pair.image.body(rows(6)[:, :5]), dim=1)
    assert torch.allclose(pair.project_image(rows(6)), first_five)  # before it is fitted
