"""The model card: what an exported folder is, written from the run's own record and nothing else."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from alignvl_cli.align.adapters import AdapterShape
from alignvl_cli.artifacts import alignvl_version, read_json
from alignvl_cli.export.parity import TOLERANCE, Parity
from alignvl_cli.recipes import ACT_ON_CLOSED_FORMS
from alignvl_cli.retrieval.evaluate import SCHEMA as EVALUATION
from alignvl_cli.settings import LAST_LAYER, ExportTarget, Method
from alignvl_cli.training.run_folder import Run

NOT_GIVEN = {
    "temperature": "learned",
    "loss_tile": "by batch size and memory",
    "memory_budget": "all latents in memory",
    "cca_weight": "by validation",
}
"""What a setting without a value means."""
KINDS = {
    ExportTarget.onnx: "Two ONNX graphs, from latents of frozen encoders to a shared space of images and texts.",
    ExportTarget.sentence_transformers: "A text encoder whose embeddings share a space with those of images.",
    ExportTarget.safetensors: "The weights of two adapters, from frozen latents to a shared space.",
    ExportTarget.hub_folder: "Two adapters that carry images and texts into one space.",
    ExportTarget.parquet: "Embeddings of images and their captions in one space, a row each.",
}
"""What the folder is."""
USES = {
    ExportTarget.onnx: """import numpy as np, onnxruntime

session = onnxruntime.InferenceSession("text_adapter.onnx")
latents = np.load("latents.npy")  # (rows, {text_width}) float32, from the frozen text encoder, {as_stored}
(embeddings,) = session.run(None, {{"latent": latents}})  # (rows, {embed_dim}), of unit length""",
    ExportTarget.sentence_transformers: """from sentence_transformers import SentenceTransformer

model = SentenceTransformer("."{trust})
embeddings = model.encode(["a red heart"])  # (1, {embed_dim}), of unit length""",
    ExportTarget.safetensors: """from safetensors.torch import load_file

weights = load_file("adapters.safetensors")  # image.* and text.*; config.json has the shapes""",
    ExportTarget.hub_folder: """from alignvl_cli import DualEncoder  # pip install alignvl

encoder = DualEncoder.from_pretrained(".")  # this folder, or its id on the Hub
words = encoder.encode_text(["a red heart"])  # (1, {embed_dim}), of unit length
pictures = encoder.encode_image(["photo.jpg"])""",
    ExportTarget.parquet: """import pyarrow.parquet

table = pyarrow.parquet.read_table("embeddings.parquet")  # id, uri, caption, split, modality, vector
vectors = table["vector"].combine_chunks().flatten().to_numpy().reshape(len(table), {embed_dim})""",
}
"""How it is used."""
WAYS = {"image_to_text": "image to text", "text_to_image": "text to image"}
assert KINDS.keys() == USES.keys() == set(ExportTarget)


def model_card(run: Run, target: ExportTarget, compared: Sequence[Parity], folder: Path) -> str:
    """Markdown with the metadata block that model hubs read."""
    shape = run.adapters.shape
    has_code = any(folder.glob("*.py"))
    use = USES[target].format(
        text_width=shape.text_width,
        embed_dim=shape.embed_dim,
        as_stored="each part of unit length" if len(_parts(run.text)) > 1 else "not normalised",
        trust=", trust_remote_code=True" if has_code else "",
    )
    code = (
        "\n`alignvl_blocks.py` holds modules that sentence-transformers lacks; it is the only code here, and\n"
        "`trust_remote_code=True` lets it run.\n"
        if has_code
        else ""
    )
    encoders = [_encoder("image", run.vision, shape.image_width), _encoder("text", run.text, shape.text_width)]
    library = target.value if target in (ExportTarget.onnx, ExportTarget.sentence_transformers) else "alignvl"
    name = run.path.resolve().name
    about = ModelCardData(
        library_name=library,
        pipeline_tag="sentence-similarity" if target is ExportTarget.sentence_transformers else "feature-extraction",
        tags=["alignvl", "image-text-retrieval"],
        base_model=_hub_ids(run),
        model_name=name,
        eval_results=list(_eval_results(run)),
    )
    return f"""---
{about.to_yaml().strip()}
---

# {name}

{KINDS[target]} It comes from a run of alignvl {alignvl_version()}: {_adapters(shape)} that put two
frozen encoders into one space of {shape.embed_dim} dimensions. Embeddings have unit length; a dot product is a cosine,
and `softmax(cosine / {run.temperature:.4g})` are the run's probabilities.

```python
{use}
```
{code}
## Encoders

Both were frozen. Their licences hold for what is made with them.

{_table(("side", "model", "revision", "pooling", "layers", "width"), encoders)}
{_views(run.vision["record"])}
## Training

{_training(run)}

{_table(("setting", "value"), _settings(run))}

## Results

{_results(run)}

## Parity

Compared with the run when this folder was written; above {TOLERANCE:g} it is not.

{_table(("what", "rows", "largest difference"), [(one.what, one.rows, f"{one.largest:.2g}") for one in compared])}
"""


def _encoder(side: str, encoder: dict[str, Any], width: int) -> tuple[object, ...]:
    about, record = encoder["about"], encoder["record"]
    name = Path(about["id"]).name if Path(about["id"]).is_absolute() else about["id"]
    layers = ", ".join(_parts(encoder))
    return (side, name, about.get("commit") or "not pinned", record.get("pooling", "unknown"), layers, width)


def _adapters(shape: AdapterShape) -> str:
    kinds = [f"`{member.kind}`" for member in shape.members]
    return f"an ensemble of adapters ({', '.join(kinds)})" if kinds else f"adapters of the kind `{shape.kind}`"


def _views(record: dict[str, Any]) -> str:
    """How an image latent is made of several views of a picture."""
    if "views" not in record:
        return ""
    views = record["views"]
    named = "; ".join(views)
    return f"\nAn image latent is the mean direction, part by part, of {len(views)} views of a picture: {named}.\n"


def _parts(encoder: dict[str, Any]) -> list[str]:
    """Names of the layers whose vectors are the latent."""
    return [part["name"] for part in encoder["record"].get("parts", [])] or [LAST_LAYER]


def _training(run: Run) -> str:
    stores = ", ".join(f"`{Path(one['path']).name}` ({one['content_hash'][:12]})" for one in run.config["stores"])
    pairs = f" {run.result['pairs']:,} pairs of" if "pairs" in run.result else ""
    if "objective" in run.result.get("best", {}):
        share = run.config["settings"].get("pair_share", 0)
        known = f"with known pairs at a share of {share:g}" if share else "without any pair"
        return f"Solved for {known} on {stores}: pictures and captions were matched by the shapes of their latents."
    if _is_solved(run):
        return f"Solved for on{pairs} {stores}; the ridge was chosen on the split `{run.split_used}`."
    return f"Trained on{pairs} {stores}; the epoch was selected on the split `{run.split_used}`."


def _settings(run: Run) -> list[tuple[str, object]]:
    """Every setting that acted, in its own words where it has no value."""
    settings = dict(run.config.get("settings", {}))
    meaning = dict(NOT_GIVEN)
    if _is_solved(run):
        settings = {key: value for key, value in settings.items() if key.replace("_", "-") in ACT_ON_CLOSED_FORMS}
        meaning["temperature"] = f"fitted on the split {run.split_used}"
    return [(key, meaning.get(key, "none") if value is None else value) for key, value in settings.items()]


def _is_solved(run: Run) -> bool:
    return run.config.get("settings", {}).get("method", Method.contrastive) != Method.contrastive


def _hub_ids(run: Run) -> list[str] | None:
    """The encoders that are models of the Hub."""
    return [one["about"]["id"] for one in (run.vision, run.text) if one["about"].get("commit")] or None


def _evaluations(run: Run) -> dict[str, Any]:
    """The metrics of every evaluation that was saved beside the run, by its name."""
    saved = {path.stem: read_json(path, "evaluation") for path in sorted((run.path / "eval").glob("*.json"))}
    # and nothing that somebody else put there
    return {name: one["metrics"] for name, one in saved.items() if one.get("schema") == EVALUATION}


def _eval_results(run: Run) -> Iterator[EvalResult]:
    """Recalls as the Hub's index of results has them."""
    for evaluation, metrics in _evaluations(run).items():
        for way, words in WAYS.items():
            for metric, value in metrics[way].items():
                if metric.startswith("R@"):
                    yield EvalResult(
                        task_type="feature-extraction",
                        task_name="image-text retrieval",
                        dataset_type=evaluation,
                        dataset_name=evaluation,
                        metric_type="recall",
                        metric_name=f"{words} {metric}",
                        metric_value=round(float(value), 2),
                    )


def _results(run: Run) -> str:
    """Recall on validation, and every evaluation that was saved beside the run, at the K that each has."""
    best = run.result.get("best", {})
    label = run.split_used if "objective" in best else f"{run.split_used} (selected on)"
    found = {label: best} if "image_to_text" in best else {}
    found |= _evaluations(run)
    if not found:
        return "No recall was measured."
    depths = {int(name[2:]) for metrics in found.values() for name in metrics["image_to_text"] if name.startswith("R@")}
    columns = [(way, f"R@{k}") for way in WAYS for k in sorted(depths)]
    headers = ("evaluation", *(f"{WAYS[way]} {name}" for way, name in columns))
    rows = [
        (title, *(f"{metrics[way][name]:.1f}" if name in metrics[way] else "" for way, name in columns))
        for title, metrics in found.items()
    ]
    return _table(headers, rows) + "\n\nPercentages; ties lose; an image is found when any of its captions is."


def _table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
