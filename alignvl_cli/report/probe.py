"""What a probe found, as tables and one plain sentence."""

from rich.console import RenderableType

from alignvl_cli.probing.measures import Measured
from alignvl_cli.probing.probe import Probe
from alignvl_cli.report.tables import Cell, Table, terminal


def probe_tables(found: Probe) -> RenderableType:
    """The measures beside those of shuffled pairs, the recall of a linear map beside chance, and the reading."""
    measures = {"mutual 10-nearest neighbours": found.mutual_knn, "linear CKA, debiased": found.cka}
    rows = [_row(name, split, one) for name, by_split in measures.items() for split, one in by_split.items()]
    ways = {"image to text": "image_to_text", "text to image": "text_to_image"}
    recall_rows = [
        (
            Cell(name),
            *(Cell(f"{getattr(found.cca, way)[k]:.1f}", below=f"{by_chance:.1f}") for k, by_chance in chance.items()),
        )
        for name, way in ways.items()
        for chance in [found.cca.chance[way]]
    ]
    held = next(split for split in found.images if split != "train")
    tables = [
        Table(
            "Do the frozen spaces agree?",
            ("measure", "split", "value", "shuffled", "largest of 20"),
            (0, 1),
            tuple(rows),
        ),
        Table(
            f"Recall of one linear map (CCA) on {held}; below it, by chance",
            ("direction", *found.cca.image_to_text),
            (0,),
            tuple(recall_rows),
        ),
    ]
    counted = ", ".join(
        f"{found.images[split]:,} of {found.of[split]:,} images and {found.captions[split]:,} captions of {split}"
        for split in found.images
    )
    return terminal(tables, [f"{found.vision} and {found.text}", f"sampled: {counted}", found.reading])


def _row(name: str, split: str, one: Measured) -> tuple[Cell, ...]:
    figures = (one.value, one.shuffled_mean, one.shuffled_max)
    return (Cell(name), Cell(split), *(Cell(f"{figure:.3f}") for figure in figures))
