"""Reading a corpus: the one place where text comes from a file."""

from pathlib import Path

from .._checks import describe


def read_corpus(path: Path | str | None = None) -> tuple[str, str]:
    """The text of a file, without a byte-order mark, and its name. Without a file: the English reference text that
    ships with every Python.

    **Raises** `ValueError` if the file cannot be read, is empty, or is not UTF-8 text.
    """
    if path is None:
        from pydoc_data.topics import topics

        return "\n\n".join(topics[name] for name in sorted(topics)), "pydoc_data.topics"
    if not isinstance(path, str | Path) or "\0" in str(path):
        raise ValueError(f"path must be the path of a file, got {describe(path)}.")
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")  # without the mark that some editors put first
    except OSError as error:
        raise ValueError(
            f"path must be that of a text file; {str(path)!r} cannot be read: {error.strerror}."
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"path must be that of UTF-8 text; {str(path)!r} is none at byte {error.start}.") from error
    if "\0" in text:
        raise ValueError(f"path must be that of a text file; {str(path)!r} holds null characters, as binary files do.")
    text = text.lstrip("\ufeff")  # a second mark
    if not any(letter.isprintable() and not letter.isspace() for letter in text):
        raise ValueError(f"path must be that of a text file; {str(path)!r} is empty.")
    return text, Path(path).name.encode("utf-8", "replace").decode()
