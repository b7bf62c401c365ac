"""Which models a server has: the command line, and the tables of the file."""

from pathlib import Path

import pytest

from stonechat_server.catalog.specs import model_entries
from stonechat_server.options import UserError
from stonechat_server.settings import Settings, load_settings, refuse_for_one_model


def from_file(folder: Path, text: str, **flags: object) -> Settings:
    file = folder / "stonechat.toml"
    file.write_text(text)
    return load_settings(flags, file)


def test_the_models_of_the_command_line() -> None:
    specs = model_entries(Settings(model="owner/name", threads=3), ["dir/small.gguf", "./folder"])
    assert [spec.name for spec in specs] == ["owner/name", "small", "folder"]
    assert [spec.settings.model for spec in specs] == ["owner/name", "dir/small.gguf", "./folder"]
    assert [spec.settings.load_at_start for spec in specs] == [True, False, False]
    assert {spec.settings.threads for spec in specs} == {3}
    assert all(spec.settings.engine_config().engine_process for spec in specs)


def test_the_tables_of_the_file(tmp_path: Path) -> None:
    settings = from_file(
        tmp_path,
        """
        threads = 3
        keep_alive = 60
        [models.chat]
        model = "owner/chat"
        aliases = ["gpt-4o", "default"]
        pinned = true
        kv_cache_size = "2GiB"
        [models."owner/other"]
        keep_alive = 0
        threads = 1
        """,
    )
    chat, other = model_entries(settings, [])
    assert chat.names == ("chat", "gpt-4o", "default")
    assert (chat.settings.model, chat.settings.pinned) == ("owner/chat", True)
    assert (chat.settings.keep_alive, chat.settings.threads) == (60.0, 3)
    assert chat.settings.engine_config().kv_cache_bytes == 2 << 30
    assert (other.name, other.settings.model) == ("owner/other", "owner/other")
    assert (other.settings.keep_alive, other.settings.threads) == (0.0, 1)
    assert not other.settings.load_at_start


def test_a_word_of_the_command_line_may_name_a_table(tmp_path: Path) -> None:
    text = '[models.a]\nmodel = "x"\n[models.b]\nmodel = "y"'
    specs = model_entries(from_file(tmp_path, text, model="b"), ["c"])
    assert [(spec.name, spec.settings.model) for spec in specs] == [
        ("b", "y"),
        ("c", "c"),
        ("a", "x"),
    ]
    assert [spec.settings.load_at_start for spec in specs] == [True, False, False]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kv_cach_size = 1", r"\[models\.a\]: kv_cach_size is no setting of a model; did you mean"),
        ("port = 1", r"\[models\.a\]: port is a setting of the whole server"),
        ("models = {}", r"\[models\.a\]: models is a setting of the whole server"),
        ('served_model_name = ["x"]', "served_model_name is a setting of the whole server"),
        ("threads = 0", r"\[models\.a\]: threads: a value of at least 1 is expected, not 0"),
        ('keep_alive = "soon"', r"\[models\.a\]: keep_alive: a number is expected, not soon"),
        ('aliases = "x"', r"\[models\.a\]: aliases must be a list of texts"),
        ('aliases = ["b"]', "two models are called b"),
        ('lora = ["a=x"]', r"\[models\.a\]: a names the model and an adapter"),
    ],
)
def test_a_wrong_table_is_told(tmp_path: Path, text: str, message: str) -> None:
    settings = from_file(tmp_path, f"[models.a]\n{text}\n[models.b]\n")
    with pytest.raises(UserError, match=message):
        model_entries(settings, [])


def test_what_is_for_one_model_belongs_into_a_table() -> None:
    with pytest.raises(UserError, match=r"--served-model-name .* put aliases into a table"):
        model_entries(Settings(model="a", served_model_name=["x"]), ["b"])
    with pytest.raises(UserError, match=r"--revision .* put revision into a table"):
        model_entries(Settings(model="a", revision="main"), ["b"])
    with pytest.raises(UserError, match="--tensor-parallel is for a server of one model"):
        model_entries(Settings(model="a", tensor_parallel=2), ["b"])
    with pytest.raises(UserError, match="two models are called small"):
        model_entries(Settings(model="a/small.gguf"), ["b/small.gguf"])


def test_what_is_for_several_models_is_refused_for_one() -> None:
    refuse_for_one_model(Settings())
    with pytest.raises(UserError, match=r"--keep-alive is for a server of several models"):
        refuse_for_one_model(Settings(keep_alive=3.0))
