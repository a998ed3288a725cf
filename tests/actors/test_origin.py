"""Other code has another digest, wherever it is installed."""

from pathlib import Path

from actors.origin import PACKAGES, UNKNOWN_ORIGIN, Origin, code_digest, digest_of


def test_the_digest_follows_sources_and_their_names(tmp_path: Path) -> None:
    def tree(name: str, **files: str) -> Path:
        for file, text in files.items():
            path = tmp_path / name / "actors" / f"{file}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path / name

    def digest(root: Path) -> str:
        return digest_of(root, PACKAGES)

    one = tree("one", a="x = 1")
    assert digest(one) == digest(tree("two", a="x = 1"))
    others = [digest(tree("three", a="x = 2")), digest(tree("four", b="x = 1"))]
    assert len({digest(one), *others}) == 3


def test_what_is_said_of_a_process() -> None:
    assert str(Origin(code_digest(), "s")) == f"{code_digest()}/s"
    assert str(UNKNOWN_ORIGIN) == ""
