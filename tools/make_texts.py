"""Rebuild the two texts in src/zeropoint/texts from the packages that texts.toml lists.

    python tools/make_texts.py --cache .out/texts            # download, extract, write
    python tools/make_texts.py --cache .out/texts --check    # the same, and compare with what is there

Packages come through their own clients (pip, npm, apt-get), in pinned versions whose SHA-256 is checked, so that the
texts are the same bytes each time. A document is part of one file: its text is taken out of HTML, reStructuredText or
program code stays as it is, and a cut is made at the end of a paragraph. Runs on Debian 12 (apt-get, dpkg-deb).
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import re
import struct
import subprocess
import sys
import tarfile
import tomllib
import zlib
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TEXTS = HERE.parent / "src" / "zeropoint" / "texts"
BLOCKS = {"p", "div", "li", "ul", "ol", "dl", "dt", "dd", "h1", "h2", "h3", "h4", "h5", "blockquote", "section", "br"}
VOID = {"img", "br", "hr", "input", "meta", "link", "col", "area", "base", "wbr", "source", "circle", "line", "path"}
SKIPPED_TAGS = {"script", "style", "head", "nav", "table", "button", "svg", "form"}
SKIPPED_NAMES = {
    "navheader",
    "navfooter",
    "toc",
    "toc_sub",
    "quickview",
    "toplang",
    "bottomlang",
    "top",
    "up",
    "footer",
}
SKIPPED_NAMES |= {"page-header", "path", "comments_section", "nosearch", "fancy_toc", "fancy-toc1", "fancy-toc2"}
SKIPPED_NAMES |= {"menu-bar", "sidebar", "boring", "buttons", "nav-wrapper", "nav-wide-wrapper", "menu"}


class PageText(HTMLParser):
    """Collects the running text of one HTML page: a paragraph per line, code as it stands, no navigation."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.open: list[tuple[str, bool]] = []  # (tag, is its content left out)
        self.pre = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Open an element, and note whether its content is left out."""
        names = {n for key, value in attrs if key in ("class", "id") for n in (value or "").split()}
        if tag in BLOCKS or tag == "pre":
            self.parts.append("\n" if self.pre or tag in ("li", "br", "dd") else "\n\n")
        if tag == "li" and not self._skipping():
            self.parts.append("- ")
        self.pre += tag == "pre"
        if tag not in VOID:
            self.open.append((tag, tag in SKIPPED_TAGS or bool(names & SKIPPED_NAMES)))

    def handle_endtag(self, tag: str) -> None:
        """Close an element, with those inside it that were left open."""
        if tag not in {t for t, _ in self.open}:
            return
        while self.open.pop()[0] != tag:  # HTML may leave <li> and <p> open
            pass
        self.pre -= tag == "pre" and self.pre > 0
        if tag in BLOCKS or tag == "pre":
            self.parts.append("\n" if tag in ("li", "dt", "dd") else "\n\n")

    def handle_data(self, data: str) -> None:
        """Keep a run of text; outside of <pre> white space is one space."""
        if not self._skipping():
            self.parts.append(data if self.pre else re.sub(r"\s+", " ", data))

    def _skipping(self) -> bool:
        return any(skip for _, skip in self.open)


def page_text(raw: bytes) -> str:
    """Return the text of an HTML page."""
    charset = re.search(rb"charset=([\w-]+)", raw[:2000])
    page = PageText()
    page.feed(raw.decode(charset[1].decode() if charset else "utf-8"))
    text = "".join(page.parts).replace("\xa0", " ")
    text = re.sub(r"(?m) *¶|^ (?=\S)| +$", "", re.sub(r"\n-\s+", "\n- ", text))
    return re.sub(r"(?m)^(- .*)\n\n+(?=- )", r"\1\n", text)


def book_lines(raw: bytes, title: str) -> str:
    """Return one book of an R data base: the strings of the object whose first line is `title`."""
    at = 0
    while at < len(raw):
        (size,) = struct.unpack(">I", raw[at : at + 4])
        unpack = zlib.decompressobj()
        data = unpack.decompress(raw[at + 4 :])
        at = len(raw) - len(unpack.unused_data)
        start = data.find(struct.pack(">II", 0x00040009, len(title)) + title.encode())
        if len(data) != size or start < 0:
            continue
        lines = []
        while data[start + 1 : start + 4] == b"\x04\x00\x09":  # CHARSXP, ASCII
            (length,) = struct.unpack(">I", data[start + 4 : start + 8])
            lines.append(data[start + 8 : start + 8 + length].decode("ascii"))
            start += 8 + length
        return "\n".join(lines)
    sys.exit(f"no book is called {title!r}")


def unwrap(text: str) -> str:
    """Join the lines of each paragraph."""
    return re.sub(r"(?<=\S)\n[ \t]*(?=\S)", " ", text)


def extract(path: Path, document: dict[str, Any]) -> str:
    """Return the document's text, cleaned and cut to about document["bytes"]."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix in (".gz", ".dz") else path.read_bytes()
    how = document.get("how", "")
    if how.startswith("book:"):
        text = book_lines(raw, how.removeprefix("book:"))
    elif path.suffix == ".html" and how != "raw":
        text = page_text(raw)
    else:
        text = raw.decode("utf-8-sig")
    text = text.replace("\r\n", "\n").replace("\f", "\n")
    if "after" in document:
        if document["after"] not in text:
            sys.exit(f"{path.name}: {document['after']!r} does not occur in it")
        text = text.partition(document["after"])[2]
    text = re.sub(r"[ \t]+$", "", text, flags=re.MULTILINE)
    text = unwrap(text) if how.startswith("book:") or how == "unwrap" else text
    text = re.sub(r"\n{3,}", "\n\n", text).strip("\n")
    limit = document.get("bytes", 10**9)
    if len(text.encode()) > limit:
        text = text.encode()[:limit].decode("utf-8", "ignore")
        text = text[: text.rindex("\n\n" if "\n\n" in text[len(text) // 2 :] else "\n")]
    return text + "\n"


def fetch(package: dict[str, Any], cache: Path) -> Path:
    """Download and unpack one package into `cache`; return the folder."""
    name, version = package["name"], package["version"]
    folder = cache / f"{package['from']}-{name}"
    if package["from"] == "zeropoint":
        return HERE
    commands = {
        "pypi": f"{sys.executable} -m pip download -q --no-deps --no-binary :all: -d {folder}.dl {name}=={version}",
        "npm": f"npm pack --silent --pack-destination {folder}.dl {name}@{version}",
        "debian": f"apt-get download -q {name}={version}",
    }
    download = Path(f"{folder}.dl")
    if not list(download.glob("*.*")):
        download.mkdir(parents=True, exist_ok=True)
        subprocess.run(commands[package["from"]].split(), check=True, cwd=download)
    (archive,) = download.iterdir()
    if (digest := hashlib.sha256(archive.read_bytes()).hexdigest()) != package["sha256"]:
        sys.exit(f"{archive.name}: SHA-256 {digest}, texts.toml says {package['sha256']}")
    if not folder.exists():
        if package["from"] == "debian":
            subprocess.run(["dpkg-deb", "-x", archive, folder], check=True)
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
    return folder if package["from"] == "debian" else next(p for p in folder.iterdir() if p.is_dir())


def licence_text(root: Path, package: dict[str, Any]) -> str:
    """Return the notice that must go with the package's text."""
    text = "\n".join((root / f).read_text("utf-8").strip("\n") + "\n" for f in package["licence_files"])
    if stanza := package.get("stanza"):  # Debian's copyright file: only what covers the files we take
        parts = re.split(r"\n\s*\n", text)
        kept = [p for p in parts if p.startswith(("Files: *", f"License: {stanza}\n"))]
        text = "\n\n".join(kept) + "\n"
    return text


def main() -> None:
    """Write both texts, SOURCES.md and LICENSES/, or compare them with what is there."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--cache", type=Path, required=True, help="folder for the downloaded packages")
    arguments.add_argument("--check", action="store_true", help="change nothing; exit 1 if a file differs")
    options = arguments.parse_args()
    manifest = tomllib.loads((HERE / "texts.toml").read_text("utf-8"))
    texts: dict[str, list[str]] = {"calibration": [], "judge": []}
    rows: dict[str, list[str]] = {"calibration": [], "judge": []}
    files: dict[str, str] = {}
    for package in manifest["package"]:
        root = fetch(package, options.cache.absolute())
        if package["licence_files"]:
            files[f"LICENSES/{package['name']}.txt"] = licence_text(root, package)
        for document in package["documents"]:
            name = document["file"]
            text = extract(root / package.get("root", "") / name, document)
            texts[document["in"]].append(text)
            where = f"{package['from']}: {package['name']} {package['version']}"
            size = f"{len(text.encode()):,}"
            title = document.get("how", "").partition("book:")[2]
            name = f"{name} ({title.title()})" if title else name
            rows[document["in"]].append(f"| {document['kind']} | {where} | {name} | {package['licence']} | {size} |")
    head = "| kind | package | file | licence | bytes |\n|---|---|---|---|---:|\n"
    sources = manifest["sources"]
    for name, parts in texts.items():
        files[f"{name}.txt"] = "\n".join(parts)
        total = len(files[f"{name}.txt"].encode())
        sources += f"\n## {name}.txt: {len(parts)} documents, {total:,} bytes\n\n{head}" + "\n".join(rows[name]) + "\n"
    files["SOURCES.md"] = sources
    differing = [str(old) for old in (TEXTS / "LICENSES").glob("*") if f"LICENSES/{old.name}" not in files]
    for old in [] if options.check else differing:
        Path(old).unlink()
    for name, text in files.items():
        path = TEXTS / name
        if options.check and (not path.exists() or path.read_bytes() != text.encode()):
            differing.append(name)
        elif not options.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(text.encode())
    sys.exit(f"differing: {', '.join(differing)}" if options.check and differing else 0)


if __name__ == "__main__":
    main()
