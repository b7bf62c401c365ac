"""Release a version: write it, check everything, commit and tag. Nothing is pushed.

    python scripts/release.py VERSION [--dry-run]

The changes under "Unreleased" in CHANGELOG.md become those of the version. The tree must be clean,
and the version must be higher than that of every tag. A version in development is 1.2.3.dev0 until
1.2.3 is released; the commit after the tag starts the next one. `--dry-run` shows the changes only.
"""

import argparse
import difflib
import re
import subprocess
import sys
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSION_FILE = "models/stonechat_models/version.py"
CHANGELOG = "CHANGELOG.md"
PLACEHOLDER = "URL-OF-THIS-REPOSITORY"
FILES_WITH_ADDRESS = ("pyproject.toml", "README.md", "docs/index.md")
UNRELEASED = "## Unreleased\n"


class ReleaseError(Exception):
    """Why the release is refused."""


def main(words: list[str] | None = None) -> int:
    """Return 0, or 1 if the release is refused or a check fails."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("version", help="as 1.2.3")
    parser.add_argument("--dry-run", action="store_true", help="show the changes, write nothing")
    arguments = parser.parse_args(words)
    try:
        release(arguments.version, arguments.dry_run)
    except (ReleaseError, subprocess.CalledProcessError) as error:
        print(f"not released: {error}", file=sys.stderr)
        return 1
    return 0


def release(version: str, is_dry_run: bool) -> None:
    old_texts = {name: (ROOT / name).read_text("utf-8") for name in (VERSION_FILE, CHANGELOG)}
    check_version(version, old_texts[VERSION_FILE], git("tag", "--list", "v*").split())
    new_texts = {
        VERSION_FILE: with_version(old_texts[VERSION_FILE], version),
        CHANGELOG: with_release(old_texts[CHANGELOG], version, date.today()),
    }
    for name in FILES_WITH_ADDRESS:
        if PLACEHOLDER in (ROOT / name).read_text("utf-8"):
            print(f"note: {name} still has {PLACEHOLDER}", file=sys.stderr)
    if is_dry_run:
        for name, old in old_texts.items():
            show_changes(name, old, new_texts[name])
        return
    if git("status", "--porcelain"):
        raise ReleaseError("the tree has changes that are not committed")
    write(new_texts)
    try:
        run("scripts/check")
        run(sys.executable, "scripts/check_wheel.py")
        run(sys.executable, "scripts/check_wheel.py", "--kernels")
    except subprocess.CalledProcessError:
        write(old_texts)
        raise
    git("commit", "--quiet", "--message", f"Release {version}", "--", VERSION_FILE, CHANGELOG)
    git("tag", "--annotate", f"v{version}", "--message", f"Stonechat {version}")
    start_next(new_texts[VERSION_FILE], next_version(version))
    branch = git("branch", "--show-current")
    print(f"Released {version}; the wheels are in dist/. Now: git push origin {branch} v{version}")


def start_next(version_file: str, version: str) -> None:
    """Commit the version that is in development from now on."""
    write({VERSION_FILE: with_version(version_file, version)})
    git("commit", "--quiet", "--message", f"Start {version}", "--", VERSION_FILE)


def check_version(version: str, version_file: str, tags: list[str]) -> None:
    """Raise `ReleaseError` if the version is below the current one, or not above all tags."""
    new = number(version)
    current = number(version_of(version_file).partition(".dev")[0])
    released = [number(tag.removeprefix("v")) for tag in tags]
    if new < current or new <= max(released, default=(0, 0, 0)):
        raise ReleaseError(f"{version} is not higher than the versions before")


def next_version(version: str) -> str:
    """Return the version that follows in development: 0.3.0.dev0 for 0.2.1."""
    major, minor, _ = number(version)
    return f"{major}.{minor + 1}.0.dev0"


def number(version: str) -> tuple[int, ...]:
    """Return the three numbers of a version."""
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise ReleaseError(f"{version} is not a version such as 1.2.3")
    return tuple(map(int, version.split(".")))


def version_of(version_file: str) -> str:
    return version_file.partition('__version__ = "')[2].partition('"')[0]


def with_version(version_file: str, version: str) -> str:
    """Return the text of version.py with the new version."""
    return version_file.replace(f'"{version_of(version_file)}"', f'"{version}"')


def with_release(changelog: str, version: str, day: date) -> str:
    """Return the changelog with the unreleased changes under the version and its date."""
    head, mark, rest = changelog.partition(UNRELEASED)
    changes = rest.partition("\n## ")[0]
    if not (mark and changes.strip()):
        raise ReleaseError(f"{CHANGELOG} has no changes under Unreleased")
    return f"{head}{mark}\n## {version} - {day.isoformat()}\n{rest}"


def show_changes(name: str, old: str, new: str) -> None:
    lines = difflib.unified_diff(old.splitlines(True), new.splitlines(True), name, name, n=1)
    sys.stdout.writelines(lines)


def write(texts: dict[str, str]) -> None:
    for name, text in texts.items():
        (ROOT / name).write_text(text, encoding="utf-8")


def git(*words: str) -> str:
    """Run git and return what it prints."""
    command = ("git", "-C", str(ROOT), *words)
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def run(*command: str) -> None:
    subprocess.run(command, check=True, cwd=ROOT)


if __name__ == "__main__":
    raise SystemExit(main())
