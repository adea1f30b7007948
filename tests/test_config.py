"""Options: where a value comes from, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from eventkeel.config import Config, environment, mask, options, reference_page
from eventkeel.errors import ConfigurationError


def load(overrides: dict[str, Any] | None = None, file: Path | None = None, **environ: str) -> Config:
    return Config.load(overrides, environ=environ, file=file)


def toml(folder: Path, text: str) -> Path:
    path = folder / "eventkeel.toml"
    path.write_text(text, encoding="utf-8")
    return path


def origin(config: Config, name: str) -> tuple[str, str]:
    return next((shown.value, shown.origin) for shown in config.origins() if shown.name == name)


def test_without_any_setting_the_documented_defaults_are_in_force() -> None:
    config = load()
    assert config.broker_url == "sqlite:///.data/broker.sqlite3"
    assert config.store_url("payments") == "sqlite:///.data/payments.sqlite3"
    assert (config.partitions, config.lanes, config.batch_size, config.lease) == (8, 0, 100, 5.0)
    assert (config.budget_count, config.budget_bytes) == (0, 16 * 1024 * 1024)
    assert (config.retention_days, config.start, config.workers) == (30.0, "none", 1)
    assert (config.log_level, config.log_format) == ("info", "text")
    assert {shown.origin for shown in config.origins()} == {"default"}


def test_what_is_given_beats_the_environment_which_beats_the_file(tmp_path: Path) -> None:
    file = toml(tmp_path, "partitions = 2\nlanes = 2\nworkers = 2\n")
    config = load({"partitions": 4}, file, EVENTKEEL_PARTITIONS="3", EVENTKEEL_LANES="3")
    assert origin(config, "partitions") == ("4", "given")
    assert origin(config, "lanes") == ("3", "EVENTKEEL_LANES")
    assert origin(config, "workers") == ("2", str(file))
    assert origin(config, "batch_size") == ("100", "default")


def test_an_absolute_data_directory_gives_four_slashes(tmp_path: Path) -> None:
    config = load({"data": str(tmp_path)})
    assert config.broker_url == f"sqlite:///{tmp_path}/broker.sqlite3"
    assert config.broker_url.startswith("sqlite:////")


def test_a_store_url_is_a_template_for_each_service() -> None:
    assert load({"store": "sqlite:///x/{service}.db"}).store_url("orders") == "sqlite:///x/orders.db"


def test_braces_in_the_data_directory_are_no_template() -> None:
    assert load({"data": "a{service}"}).store_url("orders") == "sqlite:///a{service}/orders.sqlite3"


def test_none_and_an_empty_variable_mean_not_given() -> None:
    assert load({"partitions": None}, EVENTKEEL_PARTITIONS="").partitions == 8


def test_a_missing_default_file_is_fine_and_a_missing_named_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Config.load(environ={}).partitions == 8
    with pytest.raises(ConfigurationError, match="no configuration file"):
        load(file=tmp_path / "mine.toml")


def test_the_default_file_is_read_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    toml(tmp_path, "partitions = 5")
    assert origin(Config.load(environ={}), "partitions") == ("5", "eventkeel.toml")


def test_an_unknown_name_is_refused_with_the_nearest_known_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="'partition'; did you mean 'partitions'"):
        load({"partition": 4})
    with pytest.raises(ConfigurationError, match=r"eventkeel\.toml: .*'batch-size'; did you mean 'batch_size'"):
        load(file=toml(tmp_path, "batch-size = 4"))
    with pytest.raises(ConfigurationError, match="there are: broker, store"):
        load({"zzz": 1})


@pytest.mark.parametrize(
    ("line", "advice"),
    [
        ('partitions = "8"', "partitions is '8'; write a whole number of at least 1, such as partitions = 8"),
        ("partitions = true", "partitions is True; write a whole number"),
        ("partitions = 0", "of at least 1"),
        ("batch_size = 1.5", "write a whole number"),
        ("lease = 0", "write a number above 0, such as lease = 5.0"),
        ("lease = inf", "write a number"),
        ("broker = 3", "broker is 3; write text"),
        ("data = 3", "data is 3; write a path"),
        ('start = "latest"', "start is 'latest'; write none | earliest | group"),
        ("start = [1]", "start is a list"),
        ("[broker]", "broker is a dict; write text"),
        ("partitions = ", "is not TOML"),
    ],
)
def test_an_unfit_value_is_refused_with_what_to_write(tmp_path: Path, line: str, advice: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        load(file=toml(tmp_path, line))
    assert advice in str(refused.value)
    assert "eventkeel.toml" in str(refused.value)


def test_an_unfit_variable_is_refused_under_its_own_name() -> None:
    with pytest.raises(ConfigurationError, match=r"EVENTKEEL_LEASE: lease is 'soon'; .* such as EVENTKEEL_LEASE=5"):
        load(EVENTKEEL_LEASE="soon")


def test_whole_numbers_serve_where_a_number_is_wanted() -> None:
    lease = load({"lease": 2}).lease
    assert lease == 2.0
    assert isinstance(lease, float)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("kafka://me:s3cret@host:9092/x", "kafka://me:***@host:9092/x"),
        ("kafka://me:s3@cret@host", "kafka://me:***@host"),
        ("postgresql://h/db?sslpassword=s3cret&x=1", "postgresql://h/db?sslpassword=***&x=1"),
        ("postgresql://me:s3c/ret@h/db?x=1", "postgresql://me:***@h/db?x=1"),
        ("postgresql://me:s3c?ret#s3cret@h/db", "postgresql://me:***@h/db"),
        ("postgresql://h:5432/db?application_name=a@b", "postgresql://h:5432/db?application_name=a@b"),
        ("kafka://a:1?consumer.sasl.password=s3#cr et&x=1", "kafka://a:1?consumer.sasl.password=***&x=1"),
        ("kafka://a:1?ssl.key.pem=s3cret", "kafka://a:1?ssl.key.pem=***"),
        ("kafka://a:1?sasl.oauthbearer.config=s=s3cret", "kafka://a:1?sasl.oauthbearer.config=***"),
        ("sqlite:///a/b", "sqlite:///a/b"),
        ("kafka://a:9092,b:9092", "kafka://a:9092,b:9092"),
    ],
)
def test_secrets_are_not_shown(url: str, shown: str) -> None:
    assert mask(url) == shown
    assert origin(load({"broker": url}), "broker")[0] == shown
    assert load({"broker": url}).broker_url == url


def test_a_config_reaches_a_spawned_worker_whole() -> None:
    config = load({"partitions": 4}, EVENTKEEL_LANES="3")
    copy = pickle.loads(pickle.dumps(config))
    assert copy == config
    assert copy.origins() == config.origins()


def test_every_option_has_a_text_and_a_variable() -> None:
    assert all(one.text and one.env == f"EVENTKEEL_{one.name.upper()}" for one in options())


def test_the_reference_page_is_made_from_the_declarations() -> None:
    page = Path(__file__).parent.parent / "docs" / "reference" / "configuration.md"
    assert page.read_text(encoding="utf-8") == reference_page(), "run scripts/reference"


def test_a_child_process_gets_the_same_configuration_by_its_environment(tmp_path: Path) -> None:
    file = toml(tmp_path, 'broker = "sqlite:///b"\nlanes = 2\nlease = 0.1\n')
    config = load({"store": "sqlite:///s/{service}", "data": tmp_path, "start": "earliest"}, file)
    assert Config.load(environ=environment(config), file=None) == config
