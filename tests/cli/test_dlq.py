"""Dead letters by command: seen, explained, redriven, skipped."""

from __future__ import annotations

import json

from tests.cli.kit import SAMPLE, Place, Said, until


def letters(place: Place) -> list[dict[str, object]]:
    said = place.say("dlq", "list", SAMPLE, "--json")
    found: list[dict[str, object]] = said.json["dead_letters"] if said.code == 0 else []
    return found


def book(place: Place, guest: str) -> None:
    said = place.say("publish", SAMPLE, "Booked", json.dumps({"seat": "12A", "guest": guest}))
    assert said.code == 0, said.err


def test_a_dead_letter_is_redriven_and_its_key_goes_on(place: Place) -> None:
    with place.run(SAMPLE) as running:
        book(place, "trouble")
        book(place, "Ada")
        until(lambda: letters(place), "a dead letter")
        until(lambda: place.rows("select count(*) from eventkeel_held") == [(2,)], "Ada waits behind it")
        (letter,) = letters(place)
        number = str(letter["number"])
        assert (letter["key"], letter["state"], letter["consumer"]) == ("12A", "dead", "bookings/book")
        shown = place.say("dlq", "show", SAMPLE, number)
        assert shown.code == 0
        assert "the seat is broken" in shown.out
        assert '{"seat":"12A","guest":"trouble"}' in shown.out
        listed = place.say("dlq", "list", SAMPLE, "--data", str(place.data), "--set", "lanes=1")
        assert f"eventkeel dlq show {SAMPLE} {number} --data {place.data} --set lanes=1" in listed.err
        assert "FinalError: the seat is broken" in listed.out
        assert "blocked by a dead letter: 1" in place.say("lag", SAMPLE).err

        place.mended.touch()
        said = place.say("dlq", "redrive", SAMPLE, number, "--actor", "ada")
        assert (said.code, said.out.split(":")[0]) == (0, f"redriven {number}")
        until(
            lambda: place.rows("select guest from seats order by number") == [("trouble",), ("Ada",)], "both, in order"
        )
        assert letters(place) == []
        assert running.stop() == 0
    assert place.rows("select actor, action from eventkeel_audit") == [("ada", "redrive")]


def test_a_skip_needs_a_note_and_lets_the_key_go_on(place: Place) -> None:
    with place.run(SAMPLE):
        book(place, "trouble")
        book(place, "Ada")
        until(lambda: letters(place), "a dead letter")
        number = str(letters(place)[0]["number"])
        assert place.say("dlq", "skip", SAMPLE, number).code == 2
        assert "needs a note" in place.say("dlq", "skip", SAMPLE, number, "--note", " ").err
        said = place.say("dlq", "skip", SAMPLE, number, "--note", "seated by hand", "--json")
        assert (said.code, said.json["action"]) == (0, "skipped")
        until(lambda: place.rows("select guest from seats") == [("Ada",)], "Ada's seat")


def test_poison_from_a_foreign_program_is_listed_with_its_bytes(place: Place) -> None:
    with place.run(SAMPLE):
        until(lambda: place.say("lag", SAMPLE).code == 0, "the service's files")
        raw = ("publish", "--raw", "--topic", "cli_bookings", "--key", "k\x1b[31m")
        until(lambda: place.say(*raw, "-", stdin="{not json").code == 0, "the topic")
        until(lambda: letters(place), "a dead letter")
        (letter,) = letters(place)
        number = str(letter["number"])
        assert letter["reason"] == "not-json" or letter["reason"] == "no-type"
        assert place.say("dlq", "show", SAMPLE, number, "--json").json["body"] == "{not json"
        for said in (place.say("dlq", "list", SAMPLE), place.say("dlq", "show", SAMPLE, number)):
            assert said.code == 0
            assert "\x1b" not in said.out, "a foreign key must not colour an operator's screen"
        assert place.say("publish", "--raw", "--topic", "cli_bookings", "{not json either").code == 0
        until(lambda: len(letters(place)) == 2, "another dead letter")
        assert letters(place)[1]["key"] is None


def test_what_is_not_there_is_said(place: Place) -> None:
    nowhere = place.say("dlq", "list", SAMPLE)
    assert nowhere.code == 2
    assert "there is no database of service bookings" in nowhere.err
    assert not place.data.exists(), "a question made files"
    book(place, "Ada")
    nothing = place.say("dlq", "list", SAMPLE)
    assert nothing == Said(0, "", "no dead letters\n")
    for words in (("show", SAMPLE, "7"), ("redrive", SAMPLE, "7"), ("skip", SAMPLE, "7", "--note", "x")):
        said = place.say("dlq", *words)
        assert said.code == 2
        assert "7" in said.err
        assert "Traceback" not in said.err
