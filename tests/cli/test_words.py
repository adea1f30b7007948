"""What commands say: help, near misses, JSON, exit codes."""

from __future__ import annotations

import itertools
import shlex
from pathlib import Path

import click
import pytest

from eventkeel.cli import main
from eventkeel.cli.root import root
from eventkeel.cli.shape import Command, Group
from tests.cli.kit import SAMPLE, Place, until


def child(group: click.Command, name: str) -> click.Command:
    assert isinstance(group, click.Group)
    command = group.get_command(click.Context(group), name)
    assert command is not None, name
    return command


def commands(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = [path]
    for name in group.list_commands(click.Context(group)):
        command = child(group, name)
        if isinstance(command, click.Group):
            found += commands(command, (*path, name))
        elif not command.hidden:
            found.append((*path, name))
    return found


@pytest.mark.parametrize("path", commands(root), ids=" ".join)
def test_help_begins_with_examples(path: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*path, "--help"])
    assert ended.value.code == 0
    usage, _, rest = capsys.readouterr().out.partition("\n\n")
    assert usage.startswith(" ".join(["Usage: eventkeel", *path]))
    assert rest.startswith("Examples:\n  ")


def examples(group: click.Group) -> list[str]:
    found: list[str] = []
    for path in commands(group):
        command: click.Command = group
        for name in path:
            command = child(command, name)
        assert isinstance(command, Command | Group)
        found += [line for line, _ in command.examples]
    return found


@pytest.mark.parametrize("line", examples(root))
def test_an_example_is_a_command_that_exists(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = list(itertools.dropwhile(lambda word: "=" in word, shlex.split(line.partition(" < ")[0])))
    assert words[0] == "eventkeel"
    with pytest.raises(SystemExit) as ended:
        main([*words[1:], "--help"])
    assert ended.value.code == 0, capsys.readouterr().err


@pytest.mark.parametrize(
    "path", [path for path in commands(root) if path and path not in {("dlq",), ("config",)}], ids=" ".join
)
def test_every_command_can_speak_json(path: tuple[str, ...]) -> None:
    command: click.Command = root
    for name in path:
        command = child(command, name)
    assert "--json" in [flag for parameter in command.params for flag in parameter.opts]


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["pubish"], "Did you mean 'publish'?"),
        (["dlq", "lsit"], "Did you mean 'list'?"),
        (["frobnicate"], "There are: run, publish, dlq, lag, refill, config."),
        (["publish", SAMPLE, "Boked", "{}"], "did you mean Booked?"),
        (["run", SAMPLE, "--wrokers", "2"], "--workers"),
        (["config", "show", "--set", "partitions"], "is not NAME=VALUE"),
        (["config", "show", "--set", "lease=-1"], "lease is -1.0; write a number above 0"),
        (["publish", "--raw", "x"], "--topic TOPIC"),
        (["publish", SAMPLE, "Booked", "{}", "--topic", "x"], "go with --raw"),
    ],
)
def test_wrong_usage_is_told_what_to_write(
    words: list[str], hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EVENTKEEL_DATA", str(tmp_path / "data"))
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    assert hint in capsys.readouterr().err


@pytest.mark.parametrize(
    ("body", "why"), [("{", "not-json"), ("{}", "seat"), ('{"seat": 7}', "seat"), ('{"seat": ""}', "key")]
)
def test_an_event_that_its_class_refuses_is_not_published(place: Place, body: str, why: str) -> None:
    said = place.say("publish", SAMPLE, "Booked", body)
    assert said.code == 2
    assert why in said.err
    assert "Traceback" not in said.err


def test_a_raw_message_for_a_topic_that_is_not_there_is_refused(place: Place) -> None:
    raw = ("publish", "--raw", "--topic", "cli_bokings", "--key", "1", "{}")
    assert "there is no broker at" in place.say(*raw).err
    assert place.say(*raw, "--create").code == 0
    said = place.say("publish", "--raw", "--topic", "cli_other", "--key", "1", "{}")
    assert said.code == 2
    assert "cli_other" in said.err


def test_config_show_says_value_and_origin_and_hides_passwords(place: Place) -> None:
    said = place.say("config", "show", "--json", "--store", "postgresql://me:hush@db/x", EVENTKEEL_PARTITIONS="16")
    assert said.json["partitions"] == {"value": "16", "origin": "EVENTKEEL_PARTITIONS"}
    assert said.json["store"] == {"value": "postgresql://me:***@db/x", "origin": "given"}
    assert "hush" not in said.out


def test_config_show_shows_whole_urls(place: Place) -> None:
    url = "kafka://one.example:9092,two.example:9092?security.protocol=sasl_ssl&sasl.password=hush&prefix=staging."
    said = place.say("config", "show", "--broker", url)
    assert url.replace("hush", "***") in said.out


def test_a_url_that_nobody_knows_is_refused_without_its_password(place: Place) -> None:
    said = place.say("run", SAMPLE, "--store", "mysql://me:hush@db/x")
    assert "store URL 'mysql://me:***@db/x': nothing is installed for 'mysql'" in said.err
    assert "sqlite:, postgresql:" in said.err


def test_lag_counts_what_nobody_has_handled(place: Place) -> None:
    with place.run(SAMPLE) as running:
        assert place.say("publish", SAMPLE, "Booked", '{"seat": "1"}').code == 0
        until(lambda: place.rows("select seat from seats"), "the group is there, and has handled the first")
        assert running.stop() == 0
    for number in range(3):
        assert place.say("publish", SAMPLE, "Booked", f'{{"seat": "{number}"}}').code == 0
    (lag,) = place.say("lag", SAMPLE, "--json").json["services"]
    assert (lag["service"], lag["messages"], lag["store"]["unsent"]) == ("bookings", 3, 0)
    assert lag["seconds"] > 0
    assert "bookings  cli_bookings" in place.say("lag", SAMPLE).out
