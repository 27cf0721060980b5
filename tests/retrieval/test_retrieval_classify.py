"""Zero-shot classification with encoders whose answers are known."""

import numpy as np
import pytest
from support.fake_runs import make_run
from support.fakes import concept, make_store

from alignvl_cli.errors import DataError, MismatchError, UsageError
from alignvl_cli.retrieval.classify import classify, read_labels
from alignvl_cli.store.reader import open_store
from alignvl_cli.training.run_folder import load_run

IMAGES, CLASSES = 50, 5


@pytest.fixture
def parts(tmp_path):
    """Image i has label `label i % 5`, and its latent is the concept of that label with some noise."""
    latent = np.stack([concept(f"label {i % CLASSES}", 32) + 0.3 * concept(f"noise {i}", 32) for i in range(IMAGES)])
    store = open_store(make_store(tmp_path / "s.h5", images=IMAGES, splits=["test"] * IMAGES, image_latent=latent))
    return load_run(make_run(tmp_path / "run", store)), store


def by_name(prompts):
    """A prompt embeds as the concept of the label that ends it."""
    latent = np.stack([concept(prompt[prompt.index("label") :], 32) for prompt in prompts])
    return latent / np.linalg.norm(latent, axis=1, keepdims=True)


def test_images_near_their_class_are_all_right(parts):
    found = classify(parts[0], by_name, parts[1], "test")
    assert (found.top1, found.top5, found.mean_per_class, found.largest_class) == (100.0, 100.0, 100.0, 20.0)
    assert found.labels == tuple(f"label {n}" for n in range(CLASSES))
    assert [result.images for result in found.per_class] == [10] * CLASSES
    low, high = found.top1_ci95
    assert 90 < low < high == 100
    assert found.to_json()["schema"] == "alignvl.classify/1"


def test_a_class_that_is_nowhere_pulls_the_mean_over_classes(parts):
    def one_lost(prompts):
        unit = by_name(prompts)
        unit[[prompt.endswith("label 0") for prompt in prompts]] *= -1
        return unit

    found = classify(parts[0], one_lost, parts[1], "test")
    assert (found.top1, found.mean_per_class, found.per_class[0].top1) == (80.0, 80.0, 0.0)
    assert found.top5 == 100.0


def test_equal_classes_tie_and_ties_lose(parts):
    found = classify(parts[0], lambda prompts: np.full((len(prompts), 32), 32**-0.5, np.float32), parts[1], "test")
    assert (found.top1, found.top5) == (0.0, 100.0)


def test_prompts_are_averaged_before_they_are_compared(parts):
    asked = []

    def half_wrong(prompts):
        asked.extend(prompts)
        unit = by_name(prompts)
        unit[[prompt.startswith("bad") for prompt in prompts]] = 0.5 * unit[0]
        return unit

    found = classify(parts[0], half_wrong, parts[1], "test", templates=["good {}", "bad {}"])
    assert asked[:2] == ["good label 0", "bad label 0"]
    assert found.top1 == 100.0


def test_labels_can_have_words_of_their_own_and_classes_without_images_compete(parts, tmp_path):
    path = tmp_path / "labels.txt"
    path.write_text("".join(f"label {n}\tthe label {n}\n" for n in range(CLASSES)) + "\nlabel none\n")
    classes = read_labels(path)
    assert classes["label 0"] == "the label 0"
    assert classes["label none"] == "label none"
    found = classify(parts[0], by_name, parts[1], "test", classes=classes)
    assert len(found.labels) == CLASSES + 1
    assert found.top1 == 100.0
    assert len(found.per_class) == CLASSES


@pytest.mark.parametrize(
    ("text", "message"),
    [(b"", "no label"), (b"a\nb\na\n", "twice"), (b"a\n\tb c\n", "no label before"), (b"\xff\xfe\x00", "UTF-8")],
)
def test_a_file_of_labels_that_is_none(tmp_path, text, message):
    (tmp_path / "labels.txt").write_bytes(text)
    with pytest.raises(DataError, match=message):
        read_labels(tmp_path / "labels.txt")


def test_refusals(parts, tmp_path):
    run, store = parts
    with pytest.raises(UsageError, match=r"'a photo'.*\{\}"):
        classify(run, by_name, store, "test", templates=["a photo"])
    with pytest.raises(DataError, match=r"4 labels.*'label 1'"):
        classify(run, by_name, store, "test", classes={"label 0": "zero"})
    with pytest.raises(DataError, match="nowhere"):
        classify(run, by_name, store, "nowhere")
    other = open_store(make_store(tmp_path / "o.h5", images=10, encoders="other", splits=["test"] * 10))
    with pytest.raises(MismatchError, match="other"):
        classify(run, by_name, other, "test")
