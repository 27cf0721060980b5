import pytest

from alignvl_cli.datasets.formats import open_dataset
from alignvl_cli.errors import DataError, UsageError
from alignvl_cli.settings import DatasetFormat, DatasetOptions


def opened(path, text, **options):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return open_dataset(str(path), DatasetOptions(**options))


def found(dataset):
    return {item.id: item.captions for item in dataset.items}


TOKENS = "b.jpg#0\tA dog , running .\na.jpg#0\tTwo # of them\nb.jpg#1\tAgain\tand again\n\nc.jpg.1#0\t  \n"


@pytest.mark.parametrize("name", ["Flickr8k.token.txt", "results_20130124.token", "x.TXT"])
def test_token_files_group_by_image_whatever_they_are_called(tmp_path, name):
    dataset = opened(tmp_path / name, TOKENS)
    assert found(dataset) == {
        "b.jpg": ("A dog , running .", "Again\tand again"),
        "a.jpg": ("Two # of them",),
        "c.jpg.1": (),
    }
    assert dataset.record["format"] == "flickr-token"
    assert str(dataset.items[0].source.path) == f"{tmp_path}/b.jpg"


def test_numbers_with_a_language_and_windows_line_ends_are_read(tmp_path):
    assert found(opened(tmp_path / "t.token", "a.jpg#en0\tx\r\na.jpg#zh1\ty\r\n")) == {"a.jpg": ("x", "y")}


RESULTS = (
    "image_name| comment_number| comment\n"
    "1.jpg| 0| Two young guys look at their hands .\n"
    "1.jpg| 1| A | in the text\n"
    "2199200615.jpg| 3| A dog runs .\n"
    "2199200615.jpg| 4   A dog runs across the grass .\n"
)


def test_results_csv_mends_the_line_without_its_second_separator_and_says_so(tmp_path):
    path = tmp_path / "results.csv"
    dataset = opened(path, RESULTS)
    assert found(dataset) == {
        "1.jpg": ("Two young guys look at their hands .", "A | in the text"),
        "2199200615.jpg": ("A dog runs .", "A dog runs across the grass ."),
    }
    assert dataset.notes == (f"{path}, line 5: read without its second separator `|`",)
    assert dataset.record["format"] == "flickr-csv"


def test_a_comma_separated_list_in_a_txt_needs_the_format(tmp_path):
    text = 'image,caption\na.jpg,"A dog, running"\na.jpg,Again\n'
    with pytest.raises(UsageError, match="--format csv"):
        opened(tmp_path / "captions.txt", text)
    assert found(opened(tmp_path / "captions.txt", text, format=DatasetFormat.csv)) == {
        "a.jpg": ("A dog, running", "Again")
    }


BAD = {
    "no tab": (
        DatasetFormat.flickr_token,
        "a.jpg#0\tx\nb.jpg#0 y\n",
        r"line 2: not of the form name.jpg#0<tab>caption",
    ),
    "no number": (DatasetFormat.flickr_token, "a.jpg\tx\n", "line 1: not of the form"),
    "other header": (
        DatasetFormat.flickr_csv,
        "image,caption\na,b\n",
        "the first line is not image_name| comment_number",
    ),
    "no separator at all": (
        DatasetFormat.flickr_csv,
        RESULTS + "3.jpg a dog\n",
        "line 6: not of the form name.jpg| 0| ",
    ),
    "a caption for a number": (DatasetFormat.flickr_csv, RESULTS + "3.jpg| a dog\n", "line 6: not of the form"),
    "a number run into a word": (DatasetFormat.flickr_csv, RESULTS + "3.jpg| 4dogs run\n", "line 6: not of the form"),
    "empty": (DatasetFormat.flickr_token, "", "names no image at all"),
    "header only": (DatasetFormat.flickr_csv, RESULTS.splitlines()[0], "names no image at all"),
    "binary": (DatasetFormat.flickr_token, b"\x89PNG\r\n\x1a\n\xff\xfe", "not UTF-8 text at byte 0"),
    "NUL": (DatasetFormat.flickr_token, "a\0.jpg#0\tx\n", "is no file's name"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_lists_are_one_clear_message(tmp_path, case):
    form, text, message = BAD[case]
    with pytest.raises(DataError, match=message.replace("|", r"\|")) as caught:
        opened(tmp_path / "list", text, format=form)
    assert "\n" not in str(caught.value)
