"""Twenty combined queries on the demo, of pictures and words with weights: python benchmarks/combined_queries.py URL

Asks a running `alignvl serve` with an index of `demo:emoji`. A query is a text or an emoji (by its id), and words that
are added to it or subtracted; beside it stands what a person would expect among the first five, written down before
any was asked. Prints the first five of each, and how many had it. Where a subtraction is to make something vanish, the
expectation is that none of the first five has it.
"""

import json
import sys
import urllib.parse
import urllib.request

QUERIES = [
    ("0120-grinning-cat-with-smiling-eyes", ["heart"], [], "heart"),
    ("0144-red-heart", ["broken"], [], "broken-heart"),
    ("0144-red-heart", ["fire"], [], "heart-on-fire"),
    ("0144-red-heart", ["blue"], ["red"], "blue-heart"),
    ("0724-red-apple", ["green"], ["red"], "green-apple"),
    ("1603-red-circle", ["square"], ["circle"], "red-square"),
    ("1603-red-circle", ["blue"], ["red"], "blue-circle"),
    ("1266-blue-book", ["green"], ["blue"], "green-book"),
    ("1025-crescent-moon", ["face"], [], "moon-face"),
    ("1038-cloud", ["lightning"], [], "lightning"),
    ("1038-cloud", ["sun"], [], "sun-behind"),
    ("1038-cloud", ["snow"], [], "snow"),
    ("0569-cat", ["black"], [], "black-cat"),
    ("0657-fish", ["tropical colourful"], [], "tropical-fish"),
    ("0871-house", ["garden"], [], "house-with-garden"),
    ("text:ball", ["2*american"], [], "american-football"),
    ("text:cat", ["crying"], [], "crying-cat"),
    ("text:heart", [], ["2*red"], "not red-heart"),
    ("text:tree", ["christmas"], [], "christmas-tree"),
    ("text:face", ["cowboy hat"], [], "cowboy-hat-face"),
]


def ask(url: str, base: str, add: list[str], subtract: list[str]) -> tuple[str, list[str]]:
    """What the query is called, and the ids of its first five."""
    words = [("k", "5"), *(("add", one) for one in add), *(("subtract", one) for one in subtract)]
    if base.startswith("text:"):
        path = "search?" + urllib.parse.urlencode([("text", base[5:]), *words])
    else:
        path = f"search/like/{urllib.parse.quote(base, safe='')}?" + urllib.parse.urlencode(words)
    with urllib.request.urlopen(url.rstrip("/") + "/" + path) as answer:
        (result,) = json.load(answer)["results"]
    return result["query"], [hit["id"] for hit in result["hits"]]


def main() -> None:
    had = 0
    for base, add, subtract, expected in QUERIES:
        name, found = ask(sys.argv[1], base, add, subtract)
        is_there = any(expected.removeprefix("not ") in one for one in found)
        is_right = is_there != expected.startswith("not ")
        had += is_right
        print(f"{'yes' if is_right else 'no ':<3} {name}: expected {expected}; found {', '.join(found)}")
    print(f"{had} of {len(QUERIES)} had what was expected in the first five")


if __name__ == "__main__":
    main()
