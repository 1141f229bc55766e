"""Pairs for raters: what the page gives away (nothing), what it keeps (everything), and what answers say."""

from __future__ import annotations

import json
import math
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from base64 import b64decode
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from profusion_cli.errors import InputError, OutputError, UsageError
from profusion_cli.evaluation.pairs.answers import Answers, read_answers
from profusion_cli.evaluation.pairs.key import Pair, PairsKey, key_path, read_key
from profusion_cli.evaluation.pairs.page import Entry, write_pairs
from profusion_cli.evaluation.pairs.summary import summarise, table
from profusion_cli.evaluation.statistics import Interval, bootstrap, fleiss_kappa, preference
from profusion_cli.images import encode_png

METHODS = ("profusion", "e4t", "dreambooth")
PROMPTS = ("S* in anime style", 'S* on a "beach" </script><b>')


def make_run(folder: Path, subjects: int = 3, indices: int = 4) -> list[Entry]:
    """Pictures of one colour each, whose files tell of the method, as those of `sample` do."""
    folder.mkdir(exist_ok=True)
    entries = []
    for s in range(subjects):
        photo = folder / f"person-{s}.png"
        Image.new("RGB", (40, 60), (250, 0, 10 * s)).save(photo)
        for m, method in enumerate(METHODS):
            for p, prompt in enumerate(PROMPTS):
                for index in range(indices):
                    picture = folder / f"{method}-{s}-{p}-{index}.png"
                    image = Image.new("RGB", (64, 64), (40 * s, 100 * p + index, 80 * m))
                    picture.write_bytes(encode_png(image, method, {"method": method}))
                    entries.append(Entry(method, f"person-{s}", prompt, index, picture, photo))
    return entries


@pytest.fixture(scope="module")
def entries(tmp_path_factory: pytest.TempPathFactory) -> list[Entry]:
    return make_run(tmp_path_factory.mktemp("run"))


def write(entries: list[Entry], target: Path, **changed: Any) -> tuple[dict[str, Any], dict[str, Any], PairsKey]:
    """A page: what `write_pairs` says, the data within the page, and the key."""
    arguments = {"ours": "profusion", "others": METHODS[1:], "count": 10, "seed": 1} | changed
    result = write_pairs(entries, target, **arguments)
    text = (target / "index.html").read_text(encoding="utf-8")
    return result, json.loads(re.search(r"^const page = (.*);$", text, re.MULTILINE)[1]), read_key(result["key"])


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# The page


def test_the_folder_for_raters_names_no_method(entries, tmp_path):
    write(entries, tmp_path / "page")
    files = contents(tmp_path / "page")
    assert len(files) == 1 + 3 + 2 * 20  # the page, the photos, two pictures a pair
    for name, data in files.items():
        assert name == "index.html" or re.fullmatch(r"pictures/[0-9a-f]{16}\.png", name)
        for method in METHODS:
            assert method.encode() not in (name.encode() + data).lower()
        if name != "index.html":
            kinds = re.findall(rb"IHDR|IDAT|IEND|tEXt|iTXt|zTXt|eXIf|tIME|iCCP", data)
            assert set(kinds) == {b"IHDR", b"IDAT", b"IEND"}


def test_the_page_needs_nothing_from_elsewhere(entries, tmp_path):
    write(entries, tmp_path / "page")
    text = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"https?:|//[a-z]|@import|url\(|<link|fetch\(|XMLHttp", text)
    assert text.count("</script>") == 1 and "{{" not in text


def test_the_key_tells_which_picture_is_whose(entries, tmp_path):
    result, page, key = write(entries, tmp_path / "page")
    assert Path(result["key"]) == key_path(tmp_path / "page") == tmp_path / "page-key.json"
    assert result["id"] == page["id"] == key.page and key.ours == "profusion"
    assert [shown["id"] for shown in page["pairs"]] == list(key.pairs)
    files = {(e.method, e.subject, e.prompt, e.index): e for e in entries}
    for shown in page["pairs"]:
        pair = key.pairs[shown["id"]]
        assert shown["text"] == pair.prompt
        for side, method in (("left", pair.left), ("right", pair.right)):
            entry = files[method, pair.subject, pair.prompt, pair.index]
            for name, source in ((shown[side], entry.picture), (shown["photo"], entry.photo)):
                assert Image.open(tmp_path / "page" / name).tobytes() == Image.open(source).tobytes()


def test_sides_are_balanced_and_pairs_spread_over_subjects_and_mixed(entries, tmp_path):
    result, _, key = write(entries, tmp_path / "page")
    assert result["pairs"] == {"e4t": 10, "dreambooth": 10} and result["warnings"] == []
    for other in METHODS[1:]:
        mine = [pair for pair in key.pairs.values() if other in (pair.left, pair.right)]
        assert sum(pair.left == "profusion" for pair in mine) == 5
        assert sorted(Counter(pair.subject for pair in mine).values()) == [3, 3, 4]
    order = [pair.left + pair.right for pair in key.pairs.values()]
    assert sum(a != b for a, b in pairwise(order)) > 5
    # ours has 8 pictures of each subject, and 6 or 7 are wanted: none is shown twice
    ours = Counter((pair.subject, pair.prompt, pair.index) for pair in key.pairs.values())
    assert max(ours.values()) == 1


def test_a_seed_gives_one_page(entries, tmp_path):
    write(entries, tmp_path / "a")
    write(list(reversed(entries)), tmp_path / "b")
    write(entries, tmp_path / "c", seed=2)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert not set(contents(tmp_path / "a")) & set(contents(tmp_path / "c")) - {"index.html"}


def test_other_pictures_make_another_page(entries, tmp_path):
    first, _, _ = write(entries, tmp_path / "a")
    changed = make_run(tmp_path / "run")
    for entry in changed:
        Image.new("RGB", (64, 64), "red").save(entry.picture)
    second, _, _ = write(changed, tmp_path / "b")
    assert first["id"] != second["id"]


def test_fewer_pictures_than_asked_for(entries, tmp_path):
    result, page, _ = write(entries, tmp_path / "page", others=["e4t"], count=100)
    assert len(page["pairs"]) == result["pairs"]["e4t"] == 24
    assert result["warnings"] == ["'profusion' and 'e4t' have only 24 pairs, not 100."]


def test_an_empty_folder_is_taken_and_anything_else_is_left_alone(entries, tmp_path):
    (tmp_path / "page").mkdir()
    write(entries, tmp_path / "page")
    before = contents(tmp_path)
    with pytest.raises(OutputError, match=r"page-key.json' already exists"):
        write(entries, tmp_path / "page")
    (tmp_path / "page-key.json").rename(tmp_path / "kept")
    with pytest.raises(OutputError, match=r"page' already exists"):
        write(entries, tmp_path / "page")
    (tmp_path / "kept").rename(tmp_path / "page-key.json")
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"count": 0}, UsageError, "0 pairs are not enough"),
        ({"others": []}, UsageError, "has to be compared with other methods"),
        ({"others": ["e4t", "profusion"]}, UsageError, "has to be compared with other methods"),
        ({"others": ["e5t"]}, InputError, "no picture by 'e5t'"),
        ({"ours": "nobody"}, InputError, "no picture by 'nobody'"),
    ],
)
def test_refused_questions(entries, tmp_path, changed, error, message):
    with pytest.raises(error, match=message) as caught:
        write(entries, tmp_path / "page", **changed)
    assert caught.value.hint.endswith(".")
    assert not list(tmp_path.iterdir())


def test_refused_runs(entries, tmp_path):
    with pytest.raises(InputError, match="no picture by 'profusion'"):
        write([], tmp_path / "page")
    with pytest.raises(InputError, match="two pictures number 0"):
        write([*entries, entries[0]], tmp_path / "page")
    apart = [e for e in entries if (e.method == "profusion") == (e.subject == "person-0")]
    with pytest.raises(InputError, match="no picture of the same subject"):
        write(apart, tmp_path / "page")
    photo = entries[-1].photo
    other_photo = [
        Entry(e.method, e.subject, e.prompt, e.index, e.picture, photo) for e in entries if e.method != "e4t"
    ]
    with pytest.raises(InputError, match="no picture of the same subject"):
        write([e for e in entries if e.method == "e4t" and e.photo != photo] + other_photo, tmp_path / "page")
    broken = make_run(tmp_path / "run")
    for entry in broken:
        entry.picture.write_bytes(entry.picture.read_bytes()[:60])
    with pytest.raises(InputError, match="damaged"):
        write(broken, tmp_path / "page")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


# Statistics


def test_bootstrap_is_over_subjects():
    mean, low, high = bootstrap({"a": [0, 0, 0, 0], "b": [1], "c": []})
    assert (mean, low, high) == (0.5, 0, 1)
    many = {str(number): [number % 10] for number in range(400)}
    found = bootstrap(many)
    half_width = 1.96 * math.sqrt(8.25 / 400)
    assert found == bootstrap(many) and found.mean == 4.5
    assert found.low == pytest.approx(4.5 - half_width, abs=0.06)
    assert found.high == pytest.approx(4.5 + half_width, abs=0.06)


def test_bootstrap_of_too_little():
    assert all(map(math.isnan, bootstrap({"a": []})))
    mean, low, high = bootstrap({"a": [1, 2]})
    assert mean == 1.5 and math.isnan(low) and math.isnan(high)


def test_preference_counts_ties_as_half():
    found = preference({"a": [1, 0.5], "b": [0, 0, 0, 0.5]})
    assert found.rate.mean == pytest.approx((0.75 + 0.125) / 2)
    assert found.ties == pytest.approx(2 / 6) and found.answers == 6
    assert math.isnan(preference({}).ties)


def test_kappa_of_the_textbook():
    # Fleiss (1971) as worked out in Wikipedia's article: 14 raters, 10 items, 5 answers
    counts = [
        *([0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1]),
        *([7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]),
    ]
    assert fleiss_kappa(counts) == pytest.approx(0.210, abs=5e-4)


def test_kappa_by_hand():
    assert fleiss_kappa([[2, 0], [0, 2]]) == 1
    assert fleiss_kappa([[1, 1], [1, 1]]) == -1
    # P = (1 + 1/3) / 2 = 2/3; shares 4/6 and 2/6, so Pe = 5/9; kappa = (2/3 - 5/9) / (4/9)
    assert fleiss_kappa([[3, 0], [1, 2]]) == pytest.approx(1 / 4)
    # items of fewer than two raters do not count
    assert fleiss_kappa([[3, 0], [1, 2], [1, 0], [0, 0]]) == pytest.approx(1 / 4)
    assert all(math.isnan(fleiss_kappa(counts)) for counts in ([], [[1, 0]], [[2, 0], [3, 0]]))


# What answers say


def synthetic() -> PairsKey:
    """Four pairs of ours against X, of two subjects, and one against Y that nobody answers."""
    sides = [("ours", "X"), ("X", "ours"), ("ours", "X"), ("X", "ours"), ("Y", "ours")]
    return PairsKey(
        "page", "ours", {f"p{n}": Pair(*side, f"s{n // 2}", "S* on a beach", n) for n, side in enumerate(sides)}
    )


def test_a_summary_by_hand():
    key = synthetic()
    ann = Answers("a.json", "page", "ann", {"p0": "left", "p1": "right", "p2": "right", "p3": "equal"})
    bob = Answers("b.json", "page", "bob", {"p0": "left", "p1": "left", "p2": "right"})
    summary = summarise(key, [ann, bob])
    x, y = summary.comparisons
    assert (x.other, x.subjects, x.pairs, x.kappa_pairs, x.preference.answers) == ("X", 2, 4, 3, 7)
    # s0: ours, ours, ours, X = 3/4; s1: X, tie, X = 1/6
    assert x.preference.rate.mean == pytest.approx((3 / 4 + 1 / 6) / 2)
    assert x.preference.rate[1:] == pytest.approx((1 / 6, 3 / 4))
    assert x.preference.ties == pytest.approx(1 / 7)
    # p0 and p2 agree, p1 does not: P = 2/3; left and right 3 times each: Pe = 1/2
    assert x.kappa == pytest.approx(1 / 3)
    assert y.pairs == y.preference.answers == 0 and math.isnan(y.kappa)
    assert summary.raters == ("ann", "bob")
    assert summary.warnings == (
        "'a.json' is unfinished: 'ann' answered 4 of 5 pairs.",
        "'b.json' is unfinished: 'bob' answered 3 of 5 pairs.",
        "Nobody has answered a pair of 'ours' and 'Y'.",
    )
    assert table(summary).splitlines()[2:] == [
        "| X | 2 | 4 | 7 | 45.8 [16.7, 75.0] | 14.3 | 0.33 (3) |",
        "| Y | 0 | 0 | 0 | – | – | – |",
    ]
    plain = json.loads(json.dumps(summary.as_dict(), allow_nan=False))
    assert plain["comparisons"][1]["preference"]["rate"] == {"mean": None, "low": None, "high": None}
    assert plain["comparisons"][0]["preference"]["rate"]["mean"] == x.preference.rate.mean


def test_raters_who_always_prefer_ours_agree(entries, tmp_path):
    _, _, key = write(entries, tmp_path / "page")
    choices = {id: "left" if pair.left == key.ours else "right" for id, pair in key.pairs.items()}
    summary = summarise(key, [Answers(name, key.page, name, choices) for name in ("ann", "bob", "cem")])
    assert [one.other for one in summary.comparisons] == ["dreambooth", "e4t"]
    for one in summary.comparisons:
        assert one.preference.rate == Interval(1, 1, 1) and one.kappa == 1 and one.preference.answers == 30
    assert summary.warnings == ()


def test_one_rater_and_one_subject_tell_no_agreement_and_no_interval():
    key = PairsKey("page", "ours", {"p": Pair("ours", "a|b", "s", "S*", 0)})
    summary = summarise(key, [Answers("a", "page", "ann", {"p": "left"})])
    assert table(summary).splitlines()[2] == r"| a\|b | 1 | 1 | 1 | 100.0 | 0.0 | – |"


def answers_file(path: Path, **changed: Any) -> Path:
    content = {"kind": "answers", "page": "page", "rater": "ann", "answers": {"p0": "left"}} | changed
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def test_answers_are_read(tmp_path):
    path = answers_file(tmp_path / "a.json", rater="  Ann  Ö ")
    assert read_answers([path]) == [Answers(str(path), "page", "Ann Ö", {"p0": "left"})]


@pytest.mark.parametrize(
    "changed",
    [
        {"answers": {"p0": "up"}},
        {"answers": {"p0": ["left"]}},
        {"answers": ["left"]},
        {"rater": " "},
        {"page": None},
        {"kind": "key"},
        {"kind": ["answers"]},
    ],
)
def test_damaged_answers(tmp_path, changed):
    path = answers_file(tmp_path / "a.json", **changed)
    with pytest.raises(InputError, match=r"a\.json") as caught:
        read_answers([path])
    assert caught.value.hint.endswith(".")


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b'{"kind": "answers"', b"\xff\xfe\0", b"[" * 100_000])
def test_files_that_are_no_answers(tmp_path, data):
    path = tmp_path / "a.json"
    path.write_bytes(data)
    for read in (lambda: read_answers([path]), lambda: read_key(path)):
        with pytest.raises(InputError, match=r"a\.json"):
            read()


def test_no_files_and_missing_files(tmp_path):
    with pytest.raises(UsageError):
        read_answers([])
    with pytest.raises(InputError, match="There is no file"):
        read_answers([tmp_path / "a.json"])


def test_the_same_rater_twice(tmp_path):
    paths = [answers_file(tmp_path / "a.json"), answers_file(tmp_path / "b.json", rater="Ann ")]
    with pytest.raises(InputError, match=r"a\.json' and '.*b\.json' are both by the rater 'Ann'"):
        read_answers(paths)


def test_answers_that_do_not_belong_to_the_page(tmp_path):
    key = synthetic()
    with pytest.raises(InputError, match="another page"):
        summarise(key, read_answers([answers_file(tmp_path / "a.json", page="x")]))
    with pytest.raises(InputError, match="no pair 'p9'"):
        summarise(key, read_answers([answers_file(tmp_path / "a.json", answers={"p9": "left"})]))


@pytest.mark.parametrize(
    "changed",
    [
        {"pairs": {}},
        {"pairs": []},
        {"pairs": {"p": {"left": "X"}}},
        {"ours": None},
        {"page": 1},
        {"pairs": {"p": {"left": "X", "right": "Y", "subject": "s", "prompt": "S*", "index": 0}}},
        {"pairs": {"p": {"left": "X", "right": "profusion", "subject": [], "prompt": "S*", "index": 0}}},
    ],
)
def test_damaged_keys(entries, tmp_path, changed):
    _, _, key = write(entries, tmp_path / "page")
    path = key_path(tmp_path / "page")
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(InputError, match="damaged"):
        read_key(path)
    assert key.pairs


# The page in a browser, by the W3C WebDriver protocol, which needs no library

LEFT, RIGHT, UP, DOWN, BACKSPACE, ENTER = "\ue012", "\ue014", "\ue013", "\ue015", "\ue003", "\ue007"


class Browser:
    """A headless Chromium."""

    def __init__(self, address: str, binary: str, downloads: Path) -> None:
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        options = {
            "args": [*arguments, "--window-size=1280,800"],
            "binary": binary,
            "prefs": {"download.default_directory": str(downloads)},
        }
        self.url = f"{address}/session"
        wanted = {"alwaysMatch": {"browserName": "chrome", "goog:chromeOptions": options}}
        self.url += "/" + self.ask("", {"capabilities": wanted})["sessionId"]

    def ask(self, command: str, content: Any = None, method: str = "POST") -> Any:
        body = None if method != "POST" else json.dumps(content or {}).encode()
        request = urllib.request.Request(self.url + command, body, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(error.read().decode()) from None

    def open(self, page: Path) -> None:
        self.ask("/url", {"url": page.as_uri()})

    def run(self, script: str) -> Any:
        return self.ask("/execute/sync", {"script": script, "args": []})

    def press(self, *keys: str) -> None:
        """Keys, one after the other, each once the pictures of the pair are there."""
        for key in keys:
            self.wait_for_pictures()
            actions = [{"type": kind, "value": key} for kind in ("keyDown", "keyUp")]
            self.ask("/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def wait_for_pictures(self) -> None:
        """Until then, the page takes no choice."""
        self.wait("return IMAGES.every(id => $('pair').hidden || shown(id))")

    def wait(self, script: str) -> None:
        for _ in range(200):
            if self.run(script):
                return
            time.sleep(0.05)
        raise AssertionError(f"never true: {script}")

    def text(self, id: str) -> str:
        return self.run(f"return $('{id}').textContent.trim()")

    def shown(self) -> str:
        return self.run("return ['start', 'pair', 'end'].filter(id => !$(id).hidden).join()")

    def screenshot(self, path: Path) -> None:
        path.write_bytes(b64decode(self.ask("/screenshot", method="GET")))


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    driver = shutil.which("chromedriver")
    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if driver is None or binary is None:
        pytest.skip("chromium and chromedriver are not here")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen([driver, f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    opened = None
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        try:
            opened = Browser(f"http://127.0.0.1:{port}", binary, tmp_path)
        except (RuntimeError, OSError) as error:
            pytest.skip(f"chromium does not start: {error}")
        yield opened
    finally:
        if opened is not None:
            opened.ask("", method="DELETE")
        process.terminate()
        process.wait()


def test_answers_by_keyboard_survive_a_reload_and_come_back_as_a_file(entries, tmp_path, browser):
    _, page, key = write(entries, tmp_path / "page", count=3)
    ids = [shown["id"] for shown in page["pairs"]]
    browser.open(tmp_path / "page" / "index.html")
    assert browser.shown() == "start"
    browser.press(ENTER)
    assert browser.shown() == "start", "a name is wanted"
    browser.press(*"Ann B", LEFT, RIGHT, "-", ENTER)  # in the name, arrows are arrows
    assert browser.shown() == "pair" and browser.text("who") == "Ann B-"

    for number, shown in enumerate(page["pairs"][:4]):
        assert browser.text("count") == f"Pair {number + 1} of 6, {number} of 6 answered"
        assert browser.text("text") == shown["text"]
        assert browser.run("return IMAGES.map(id => image(id).getAttribute('src'))") == [
            shown[side] for side in ("photo", "left", "right")
        ]
        browser.press((LEFT, RIGHT, DOWN, " ")[number])
    expected = dict(zip(ids, ("left", "right", "equal", "equal"), strict=False))
    assert browser.run("return session.answers") == expected

    browser.ask("/refresh")
    assert browser.shown() == "pair" and browser.text("who") == "Ann B-"
    assert browser.text("count") == "Pair 5 of 6, 4 of 6 answered"
    assert browser.run("return session.answers") == expected

    browser.press(BACKSPACE, UP, UP)
    assert browser.text("count") == "Pair 2 of 6, 4 of 6 answered"
    pressed = "return CHOICES.filter(id => $(id).getAttribute('aria-pressed') === 'true')"
    assert browser.run(pressed) == ["right"]
    browser.ask("/refresh")
    assert browser.text("count") == "Pair 2 of 6, 4 of 6 answered"
    browser.press(LEFT)  # another answer, and on to the first pair without one
    assert browser.text("count") == "Pair 5 of 6, 4 of 6 answered"
    browser.wait_for_pictures()
    browser.run("$('right').click()")
    browser.press(RIGHT)
    assert browser.shown() == "end"
    browser.press(LEFT, DOWN)  # nothing to choose any more
    expected |= dict(zip(ids, ("left", "left", "equal", "equal", "right", "right"), strict=True))

    browser.run("$('finish').click()")
    path = tmp_path / "answers-Ann-B.json"
    for _ in range(200):
        if path.exists() and path.stat().st_size:
            break
        time.sleep(0.05)
    (answers,) = read_answers([path])
    assert (answers.page, answers.rater, answers.choices) == (key.page, "Ann B-", expected)
    summary = summarise(key, [answers])
    assert summary.warnings == () and sum(one.preference.answers for one in summary.comparisons) == 6

    browser.run("$('change').click()")
    browser.run("$('rater').value = 'Cem'; $('form').requestSubmit()")
    assert browser.text("count") == "Pair 1 of 6, 0 of 6 answered", "another rater begins anew"
    browser.run("$('change').click()")
    browser.run("$('rater').value = 'ann b-'; $('form').requestSubmit()")
    assert browser.shown() == "end" and browser.run("return session.answers") == expected


def test_a_missing_picture_is_told_of_and_not_judged(entries, tmp_path, browser):
    _, page, _ = write(entries, tmp_path / "page", count=1)
    (tmp_path / "page" / page["pairs"][0]["left"]).unlink()
    browser.open(tmp_path / "page" / "index.html")
    browser.run("$('rater').value = 'Ann'; $('form').requestSubmit()")
    browser.wait("return !$('missing').hidden")
    browser.run("choose('left')")
    assert browser.run("return Object.keys(session.answers).length") == 0


def test_a_storage_that_is_damaged_or_refuses(entries, tmp_path, browser):
    write(entries, tmp_path / "page", count=1)
    browser.open(tmp_path / "page" / "index.html")
    browser.run(
        "localStorage.setItem(current, '\"Ann\"'); localStorage.setItem(slot('Ann'), '{\"at\": 9, \"answers\": 1')"
    )
    browser.ask("/refresh")
    assert browser.text("count") == "Pair 1 of 2, 0 of 2 answered"
    browser.run(r"""localStorage.setItem(slot('Ann'), '{"at": 9, "answers": {"x": "left"}}')""")
    browser.ask("/refresh")
    assert browser.text("count") == "Pair 1 of 2, 0 of 2 answered"
    assert browser.run("return $('unkept').hidden")
    browser.run("Storage.prototype.setItem = () => { throw new Error('no'); }")
    browser.press(LEFT)
    assert browser.text("count") == "Pair 2 of 2, 1 of 2 answered"
    assert not browser.run("return $('unkept').hidden")
