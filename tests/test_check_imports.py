"""The check of import directions finds what it is there to find, and nothing in this tree."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts" / "check_imports.py"
spec = importlib.util.spec_from_file_location("check_imports", SCRIPT)
assert spec is not None
assert spec.loader is not None
check_imports = importlib.util.module_from_spec(spec)
spec.loader.exec_module(check_imports)


@pytest.mark.parametrize(
    ("path", "code", "is_found"),
    [
        ("models/stonechat_models/a.py", "import stonechat_server", True),
        ("models/stonechat_models/a.py", "def f():\n    from stonechat_server.app import x", True),
        ("models/stonechat_models/a.py", "import fastapi", True),
        ("models/stonechat_models/deep/a.py", "from pydantic import BaseModel", True),
        ("models/stonechat_models/a.py", "import torch\nfrom stonechat_models.b import c", False),
        ("server/stonechat_server/a.py", "from stonechat_models.engine import Engine", True),
        ("server/stonechat_server/a.py", "import stonechat_models.engine", True),
        ("server/stonechat_server/deep/a.py", "import torch.nn", True),
        ("server/stonechat_server/a.py", "from stonechat_models import AsyncEngine", False),
        ("server/stonechat_server/a.py", "import fastapi", False),
    ],
)
def test_violations(path: str, code: str, is_found: bool, tmp_path: Path) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True)
    file.write_text(code)
    found = check_imports.violations(tmp_path)
    assert [line.split(":")[0] for line in found] == ([path] if is_found else [])


def test_this_tree_has_none() -> None:
    assert check_imports.violations(check_imports.ROOT) == []
