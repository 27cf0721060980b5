"""Complete run folders made without training, whose adapters have a known effect."""

from pathlib import Path

import torch

from alignvl_cli.align.adapters import AdapterShape, new_pair
from alignvl_cli.align.streams import Streams
from alignvl_cli.settings import AdapterKind, LatentNorm
from alignvl_cli.store.reader import Store
from alignvl_cli.training.run_folder import RunWriter, claim_run


def make_run(
    path: Path,
    store: Store,
    *,
    seed: int | None = None,
    collapsed: bool = False,
    embed_dim: int | None = None,
    selection_split: str = "val",
) -> Path:
    """Write a run over `store`; returns `path`.

    Without a seed its adapters are the identity, which recalls every pair of `fakes.make_store`; with one they are
    untrained; `collapsed` sends everything to one and the same vector.
    """
    widths = store.image_latent.shape[1], store.text_latent.shape[1]
    shape = AdapterShape(
        kind=AdapterKind.linear,
        image_width=widths[0],
        text_width=widths[1],
        depth=1,
        expansion=4,
        embed_dim=embed_dim or widths[0],
        dropout=0.0,
        latent_norm=LatentNorm.none,
        temperature=0.05,
    )
    adapters = new_pair(shape, Streams(seed or 0))
    for tower in (adapters.image, adapters.text):
        linear = tower.body[0]
        with torch.no_grad():
            if collapsed:
                linear.weight.zero_()
                linear.bias.fill_(1.0)
            elif seed is None:
                linear.weight.copy_(torch.eye(*linear.weight.shape))
                linear.bias.zero_()
    claim_run(path, overwrite=False)
    config = {
        "adapters": shape.to_json(),
        "encoder_hash": store.encoder_hash,
        "vision": store.vision,
        "text": store.text,
        "stores": [{"path": str(store.path), "content_hash": store.content_hash}],
        "selection_split": selection_split,
    }
    with RunWriter(path, config, {}) as writer:
        writer.save_adapters(adapters.state_dict())
        writer.finish({"best": {"mean_recall": 100.0}})
    return path
