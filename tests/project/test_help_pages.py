"""Every node has a help page in English and in Chinese, in the form that ComfyUI's narrow panel shows well."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "web/docs"
LEADS = {
    "en": ("**When to take it**: ", "**Set first**: "),
    "zh": ("**何时使用**：", "**先设置**："),
}
WORDS = {
    language: json.loads((ROOT / f"locales/{language}/nodeDefs.json").read_text(encoding="utf-8"))
    for language in LEADS
}
PAGES = [(name, language) for name in WORDS["en"] for language in LEADS]


def read(name, language):
    return (DOCS / name / f"{language}.md").read_text(encoding="utf-8")


def tables(page):
    """Return the tables of a page, each a list of rows, each a list of cells."""
    found, before = [], ""
    for line in page.splitlines():
        if line.startswith("|"):
            if not before.startswith("|"):
                found.append([])
            found[-1].append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
        before = line
    return found


def test_every_node_has_a_page_in_both_languages_and_no_page_is_without_a_node():
    pages = {(file.parent.name, file.stem) for file in DOCS.glob("*/*.md")}
    assert pages == set(PAGES)


@pytest.mark.parametrize(("name", "language"), PAGES)
class TestPage:
    def test_begins_with_when_to_take_the_node_and_what_to_set_first(self, name, language):
        title, blank, when, between, first, *_ = read(name, language).splitlines()
        assert title == f"# {WORDS[language][name]['display_name']}"
        assert (blank, between) == ("", "")
        assert when.startswith(LEADS[language][0])
        assert first.startswith(LEADS[language][1])

    def test_names_every_input_and_output_by_its_label(self, name, language):
        named = {
            label
            for table in tables(read(name, language))
            for first, *_ in table
            for label in re.split("[,、] ?", first)
        }
        node = WORDS[language][name]
        labels = {entry["name"] for group in ("inputs", "outputs") for entry in node.get(group, {}).values()}
        assert labels - named == set()

    def test_shows_one_picture_by_the_path_that_the_panel_resolves(self, name, language):
        pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", read(name, language))
        assert pictures == [f"{name}/picture.jpg"]
        assert (DOCS / pictures[0]).stat().st_size > 1000

    def test_has_tables_of_two_or_three_columns_whose_rows_are_whole(self, name, language):
        for header, *rows in tables(read(name, language)):
            assert len(header) in (2, 3), header
            for row in rows:
                assert len(row) == len(header), row

    def test_ends_with_its_paper(self, name, language):
        assert re.search(r"^(Papers?: |论文：)", read(name, language).rstrip().rpartition("\n\n")[2])

    def test_has_the_headings_of_the_english_page(self, name, language):
        pages = read(name, language), read(name, "en")
        assert len({len(re.findall("^##+ ", page, re.M)) for page in pages}) == 1
        assert len({tuple(len(table) for table in tables(page)) for page in pages}) == 1


@pytest.mark.parametrize("language", list(LEADS))
def test_no_label_has_an_underscore(language):
    labels = [
        entry["name"]
        for node in WORDS[language].values()
        for group in ("inputs", "outputs")
        for entry in node.get(group, {}).values()
    ]
    assert [label for label in labels if "_" in label] == []


def test_one_input_has_one_label_in_all_nodes():
    """An id that means two things may have two labels; they are named here."""
    labels = {}
    for node in WORDS["en"].values():
        for key, entry in node.get("inputs", {}).items():
            labels.setdefault(key, set()).add(entry["name"])
    assert {key for key, names in labels.items() if len(names) > 1} == {"noise"}
