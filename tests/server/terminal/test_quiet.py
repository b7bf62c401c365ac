import logging

import pytest

from stonechat_server.terminal.quiet import NOISY, quiet_libraries


@pytest.mark.parametrize("name", NOISY)
def test_only_errors_of_noisy_libraries_are_shown(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger=name)
    quiet_libraries()
    logging.getLogger(name).warning("a part is missing")
    logging.getLogger(name).error("it is broken")
    assert caplog.messages == ["it is broken"]
