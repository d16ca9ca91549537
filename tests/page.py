"""Reads pages that the project writes."""

from collections import Counter
from html.parser import HTMLParser


class Page(HTMLParser):
    """A page by its tags, attributes and texts; every element must be closed in order."""

    VOID = ("meta", "br", "img", "link", "input")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    def check_alone(self) -> None:
        """Check that it loads and runs nothing."""
        assert not self.tags["script"]
        assert not self.tags["img"]
        assert not [name for _, name, _ in self.attributes if name.startswith("on")]
        policy = "default-src 'none'; style-src 'unsafe-inline'"
        assert ("meta", "content", policy) in self.attributes
        assert not [a for a in self.attributes if a[1] in ("src", "href", "xlink:href", "action")]
        words = "".join([*self.texts, *(value for _, _, value in self.attributes)])
        assert "url(" not in words
        assert "@import" not in words
