"""The text edits of a release, and the versions that it refuses."""

from datetime import date
from pathlib import Path

import pytest

VERSION_FILE = '"""The version."""\n\n__version__ = "0.2.0"\n'
CHANGELOG = """\
# Changelog

## Unreleased

### Added
- A thing.

## 0.2.0 - 2026-01-02

### Fixed
- Another.
"""


@pytest.fixture
def release(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "scripts")
    import release as script

    return script


def test_the_version_and_its_changes_are_written(release):
    assert release.with_version(VERSION_FILE, "0.3.0") == VERSION_FILE.replace("0.2.0", "0.3.0")
    changelog = release.with_release(CHANGELOG, "0.3.0", date(2026, 3, 4))
    heading = "## Unreleased\n\n## 0.3.0 - 2026-03-04\n\n### Added\n- A thing.\n\n## 0.2.0"
    assert heading in changelog
    assert changelog.replace("\n## 0.3.0 - 2026-03-04\n", "") == CHANGELOG
    with pytest.raises(release.ReleaseError, match="no changes under Unreleased"):
        release.with_release(changelog, "0.4.0", date(2026, 5, 6))


@pytest.mark.parametrize("version", ["0.2.0", "0.1.9", "0.3", "v0.3.0", "0.3.0rc1"])
def test_a_version_that_does_not_grow_is_refused(release, version):
    with pytest.raises(release.ReleaseError):
        release.check_version(version, VERSION_FILE, ["v0.1.0", "v0.2.0"])


@pytest.mark.parametrize("version", ["0.2.0", "0.10.0", "1.0.0"])
@pytest.mark.parametrize("current", ["0.2.0", "0.2.0.dev0"])
def test_a_higher_version_is_accepted(release, version, current):
    version_file = release.with_version(VERSION_FILE, current)
    release.check_version(version, version_file, ["v0.1.0"])


def test_development_goes_on_with_the_next_version(release):
    following = release.next_version("0.2.1")
    assert following == "0.3.0.dev0"
    version_file = release.with_version(VERSION_FILE, following)
    assert version_file == VERSION_FILE.replace("0.2.0", "0.3.0.dev0")
    release.check_version("0.3.0", version_file, ["v0.2.1"])
    with pytest.raises(release.ReleaseError):
        release.check_version("0.2.2", version_file, ["v0.2.1"])
