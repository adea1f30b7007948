"""Configuration: each option is declared once, with its type, default, bounds and text.

Where a value comes from, the first that has one wins: what was given (command line, ``configure``),
the environment (``EVENTKEEL_PARTITIONS``), the file (``partitions = 8`` in ``eventkeel.toml``), the
default. ``eventkeel config show`` prints which it was.
"""

from __future__ import annotations

import difflib
import math
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, get_args, get_origin, get_type_hints

from eventkeel.errors import ConfigurationError

FILE = Path("eventkeel.toml")
PREFIX = "EVENTKEEL_"

Start = Literal["none", "earliest", "group", "store"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]


class Shown(NamedTuple):
    """One line of ``config show``: the value in force, secrets masked, and where it was said."""

    name: str
    value: str
    origin: str


class Option(NamedTuple):
    """One option, for help texts and the reference page."""

    name: str
    env: str
    kind: str
    default: str
    text: str


def option(default: Any, text: str, *, least: float | None = None, above: float | None = None) -> Any:
    """Declare an option of ``Config``. ``least`` is the smallest value allowed, ``above`` must be exceeded."""
    return field(default=default, metadata={"text": text, "least": least, "above": above})


@dataclass(frozen=True, kw_only=True)
class Config:
    """Every option, resolved and checked. Immutable; can be pickled. Made by ``Config.load``."""

    broker: str = option("", "URL of the broker; empty: sqlite:///DATA/broker.sqlite3")
    store: str = option("", "URL of the database, may contain {service}; empty: sqlite:///DATA/{service}.sqlite3")
    data: Path = option(Path(".data"), "directory of the default broker and store files")
    partitions: int = option(8, "partitions of a topic that is created", least=1)
    lanes: int = option(0, "lanes of a process; 0: as many as the store can run at once", least=0)
    batch_size: int = option(100, "most deliveries in one unit of work; 1: one transaction each", least=1)
    steps_concurrency: int = option(16, "most handlers with steps that a process runs at once", least=1)
    lease: float = option(5.0, "seconds after which a silent process loses its slices", above=0)
    budget_count: int = option(
        0, "most deliveries a process holds that are not settled; 0: four batches for each lane, at least 2000", least=0
    )
    budget_bytes: int = option(16 * 1024 * 1024, "most bytes of deliveries a process holds", least=1)
    retention_days: float = option(
        30.0,
        "days for which the inbox remembers what was handled; on RabbitMQ at least a day beyond its history=",
        above=0,
    )
    start: Start = option(
        "none",
        "where a group starts that only the broker knows, or that it has further back than the inbox remembers; none: "
        "stop and ask",
    )
    workers: int = option(1, "worker processes of each service", least=1)
    log_level: LogLevel = option("info", "least important log lines that are written")
    log_format: LogFormat = option("text", "text for people, json for machines")

    _origins: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def load(
        cls,
        overrides: Mapping[str, Any] | None = None,
        *,
        environ: Mapping[str, str] | None = None,
        file: Path | None = FILE,
    ) -> Self:
        """Resolve all options.

        ``overrides``: by option name; ``None`` means not given; text is read as in the environment.
        ``environ``: ``None`` means the process's own. ``file``: ``None`` means none; only the default
        file may be missing. Raises ConfigurationError for an unknown name or an unfit value.
        """
        values: dict[str, Any] = {}
        origins: dict[str, str] = {}
        for origin, name, value in _said(overrides or {}, os.environ if environ is None else environ, file):
            values[name] = value
            origins[name] = origin
        return cls(**values, _origins=origins)

    @property
    def broker_url(self) -> str:
        """The broker's URL in force."""
        return self.broker or self._default_url("broker")

    def store_url(self, service_name: str) -> str:
        """The URL in force of one service's database."""
        # The directory itself may contain braces: only what the user wrote as a template is one.
        return self.store.replace("{service}", service_name) if self.store else self._default_url(service_name)

    def origins(self) -> list[Shown]:
        """(name, value in force with secrets masked, origin) of every option, in order of declaration."""
        inferred = {"broker": self.broker_url, "store": self.store or self._default_url("{service}")}
        return [
            Shown(
                one.name,
                mask(str(inferred.get(one.name, getattr(self, one.name)))),
                self._origins.get(one.name, "default"),
            )
            for one in _declared().values()
        ]

    def _default_url(self, name: str) -> str:
        return f"sqlite:///{self.data / name}.sqlite3"


def options() -> list[Option]:
    """What there is to set, in order of declaration."""
    return [
        Option(name, PREFIX + name.upper(), _kind(name), str(one.default), one.metadata["text"])
        for name, one in _declared().items()
    ]


def environment(config: Config) -> dict[str, str]:
    """The variables from which ``Config.load(environ=…, file=None)`` makes the same configuration again: how a
    parent hands it to its processes (a command line shows passwords to everybody on the machine)."""
    return {one.env: str(getattr(config, one.name)) for one in options()}


def reference_page() -> str:
    """The page docs/reference/configuration.md, whole."""
    rows = [
        f"| `{one.name}` | `{one.env}` | {one.kind.replace('|', 'or')} | {_cell(one.default)} | {one.text} |"
        for one in options()
    ]
    return _PAGE + "\n".join(rows) + "\n"


def _cell(text: str) -> str:
    return f"`{text}`" if text else ""


_PAGE = """\
# Configuration

<!-- made by scripts/reference from src/eventkeel/config.py -->

Each option is looked for in four places; the first that has it wins:

1. what was given: an option of the command line (`--broker`, `--set partitions=16`), or `service.configure(…)`,
2. the environment; an empty variable counts as not set,
3. `eventkeel.toml` in the current directory (or `--config FILE`), flat: `partitions = 16`,
4. the default.

`eventkeel config show` prints every value in force and where it was said. An unknown name in the file is refused.

URLs:

- `sqlite:///PATH` is a path from here, `sqlite:////PATH` one from the root.
- Broker: `kafka://HOST:PORT[,HOST:PORT…]?OPTION=VALUE&…`. Any option of librdkafka goes into the query (for both of its
  clients, or `producer.OPTION` and `consumer.OPTION` for one): `security.protocol=sasl_ssl&sasl.username=…`. Our own
  are `replication` (of a topic that is created; default: what the broker says), `create.SETTING` (any other setting of
  a topic that is created: `create.min.insync.replicas=2`) and `prefix` (in front of every topic and group on the
  broker). What would lose messages or their order, such as `acks`, is refused.
- Or `amqp://USER:PASSWORD@HOST:PORT/VHOST?OPTION=VALUE&…` for RabbitMQ, `amqps://` over TLS.
- Store: `postgresql://USER:PASSWORD@HOST:PORT/DATABASE?schema=NAME&pool=16&…`. `schema` holds Eventkeel's tables and
  the service's own, and is made if missing (default `public`); `pool` is the most connections of a process for
  transactions (six more are its own); everything else is libpq's, such as `sslmode=verify-full`.

In the store's URL `{service}` stands for the service's name: `?schema={service}` gives each service a schema of its
own. Pages: [Kafka and PostgreSQL](../howto/kafka-and-postgresql.md), [RabbitMQ](../howto/rabbitmq.md).

| Option | Variable | Kind | Default | What it says |
|---|---|---|---|---|
"""


def mask(value: str) -> str:
    """The text with passwords of URLs, in the authority or in the query, replaced by ``***``."""
    # Greedy up to the last @ of the authority: an unescaped @ in a password must not show its tail.
    masked, found = re.subn(r"(://[^:/?#\s]*):[^/?#\s]*@", r"\1:***@", value)
    if not found:  # nor an unescaped slash, question mark or hash in what is no port
        masked = re.sub(r"(://[^:/?#\s]*):(?!\d*(?:[/?#,]|$)).*@", r"\1:***@", masked, flags=re.DOTALL)
    return re.sub(rf"(?i)([?&][^=&]*(?:{_SECRET})=)[^&]*", r"\1***", masked)


_SECRET = r"password|passwd|secret|token|key|\.pem|oauthbearer\.config"
"""How names of options end whose values nobody is shown."""


# ------------------------------------------------------------------ where values come from


def _said(
    overrides: Mapping[str, Any], environ: Mapping[str, str], file: Path | None
) -> Iterator[tuple[str, str, Any]]:
    """(origin, name, checked value), weakest first."""
    for name, value in _from_file(file).items():
        _known(name, str(file))
        yield str(file), name, _checked(name, value, str(file))
    for name in _declared():
        variable = PREFIX + name.upper()
        text = environ.get(variable, "")
        if text:  # an empty variable is how shells and compose files say "not set"
            yield variable, name, _checked(name, _parsed(name, text), variable)
    for name, value in overrides.items():
        _known(name, "settings")
        if value is not None:
            yield "given", name, _checked(name, _parsed(name, value), "settings")


def _from_file(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if file == FILE:
            return {}
        raise ConfigurationError(f"there is no configuration file {file}") from error
    except OSError as error:
        raise ConfigurationError(f"the configuration file {file} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} is not TOML: {error}") from error


# ------------------------------------------------------------------ names and values


def _declared() -> dict[str, Field[Any]]:
    return {one.name: one for one in fields(Config) if "text" in one.metadata}


_HINTS = get_type_hints(Config)
_EXAMPLE = {int: "a whole number", float: "a number", str: "text", Path: "a path"}


def _known(name: str, where: str) -> None:
    names = list(_declared())
    if name in names:
        return
    near = difflib.get_close_matches(name.lower().replace("-", "_"), names, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(names)}"
    raise ConfigurationError(f"{where}: there is no option {name!r}; {hint}")


def _kind(name: str) -> str:
    hint = _HINTS[name]
    return " | ".join(get_args(hint)) if get_origin(hint) is Literal else _EXAMPLE[hint]


def _parsed(name: str, value: Any) -> Any:
    """Text from outside as the option's type; what is no number stays text, and is refused as such."""
    kind = _HINTS[name]
    if not isinstance(value, str) or kind not in (int, float):
        return value
    try:
        return kind(value.strip())
    except ValueError:
        return value


def _checked(name: str, value: Any, where: str) -> Any:
    kind = _HINTS[name]
    if get_origin(kind) is Literal:
        if value in get_args(kind):
            return value
    elif kind is Path:
        if isinstance(value, Path) or (isinstance(value, str) and value):
            return Path(value)
    elif kind is float:
        if isinstance(value, int | float) and not isinstance(value, bool) and _within(name, float(value)):
            return float(value)
    elif isinstance(value, kind) and not isinstance(value, bool) and (kind is str or _within(name, value)):
        return value
    raise ConfigurationError(f"{where}: {name} is {_quoted(value)}; write {_wanted(name, where)}")


def _within(name: str, value: float) -> bool:
    bounds = _declared()[name].metadata
    least, above = bounds["least"], bounds["above"]
    return math.isfinite(value) and (least is None or value >= least) and (above is None or value > above)


def _quoted(value: Any) -> str:
    if isinstance(value, str):
        return repr(mask(value))
    return repr(value) if isinstance(value, int | float | bool) else f"a {type(value).__name__}"


def _wanted(name: str, where: str) -> str:
    one = _declared()[name]
    bound = "".join(
        f" {word} {one.metadata[key]:g}"
        for key, word in (("least", "of at least"), ("above", "above"))
        if one.metadata[key] is not None
    )
    default = one.default
    if where.startswith(PREFIX):
        example = f"{where}={default}"
    elif isinstance(default, int | float):
        example = f"{name} = {default}"
    else:
        example = f'{name} = "{default}"'
    return f"{_kind(name)}{bound}, such as {example}"
