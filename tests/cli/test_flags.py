import pytest

from protocaffe.cli.flags import Flag, parse
from protocaffe.errors import UsageError

FLAGS = [
    Flag("root", "the image folder", positional=True, required=True),
    Flag("out", "the result", positional=True),
    Flag("model", "the net"),
    Flag("snapshot_prefix", "where snapshots go", default="here"),
    Flag("iterations", "how many", default=50, at_least=1),
    Flag("scale", "a factor", default=1.0),
    Flag("shuffle", "mix the order", default=False),
    Flag("check", "look twice", default=True),
    Flag("sigint_effect", "on Ctrl-C", default="stop", choices=("stop", "none")),
]


def flags(*words):
    return parse("protocaffe try", "Try things.", FLAGS, ["ROOT", *words])


@pytest.mark.parametrize(
    "words",
    [
        ["--iterations=7"],
        ["--iterations", "7"],
        ["-iterations=7"],
        ["-iterations", "7"],
    ],
)
def test_a_value_in_all_spellings(words):
    assert flags(*words).iterations == 7


@pytest.mark.parametrize(
    "word",
    [
        "--snapshot_prefix=a/b",
        "--snapshot-prefix=a/b",
        "-snapshot_prefix=a/b",
        "-snapshot-prefix=a/b",
    ],
)
def test_underscores_and_dashes_are_one(word):
    assert flags(word).snapshot_prefix == "a/b"


@pytest.mark.parametrize("word", ["--shuffle", "-shuffle", "--shuffle=true", "--shuffle=1"])
def test_a_switch_turned_on(word):
    assert flags(word).shuffle is True


@pytest.mark.parametrize("word", ["--nocheck", "-nocheck", "--check=false", "--check=0"])
def test_a_switch_turned_off(word):
    assert flags(word).check is False


def test_a_switch_leaves_the_next_word_alone():
    values = parse("protocaffe try", "Try things.", FLAGS, ["--shuffle", "ROOT", "OUT"])
    assert (values.shuffle, values.root, values.out) == (True, "ROOT", "OUT")


def test_flags_may_stand_between_the_words():
    values = parse("protocaffe try", "Try things.", FLAGS, ["ROOT", "--iterations", "3", "OUT"])
    assert (values.root, values.out, values.iterations) == ("ROOT", "OUT", 3)


def test_defaults_and_types():
    values = flags()
    assert values.model == ""
    assert values.out == ""
    assert values.iterations == 50
    assert values.shuffle is False
    assert values.check is True
    assert flags("--scale=3").scale == 3.0


@pytest.mark.parametrize("value", ["-1", "-2.5e-3"])
def test_negative_numbers_are_values(value):
    assert flags("--scale", value).scale == float(value)


def test_values_may_hold_equals_signs_and_be_empty():
    assert flags("--model=a=b").model == "a=b"
    assert flags("--snapshot_prefix=").snapshot_prefix == ""


def test_the_last_one_counts():
    assert flags("--iterations=1", "--iterations=2").iterations == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--modle=x"], "unknown flag --modle; did you mean '--model'?"),
        (["--itertions", "3"], "did you mean '--iterations'?"),
        (["--iter=3"], "unknown flag --iter"),
        (["--nomodel"], "unknown flag --nomodel"),
        (["--iterations=many"], "--iterations: invalid int value: 'many'"),
        (["--iterations=0"], "--iterations: must be at least 1, got 0"),
        (["--iterations"], "--iterations: expected a value"),
        (["--iterations", "--shuffle"], "--iterations: expected a value"),
        (["--shuffle=perhaps"], "--shuffle: expected true or false, got 'perhaps'"),
        (["--sigint_effect=jump"], "--sigint_effect: invalid choice: 'jump'"),
        (["OUT", "MORE"], "'MORE' is one word too many"),
    ],
)
def test_mistakes_are_named(words, message):
    with pytest.raises(UsageError) as caught:
        flags(*words)
    assert message in str(caught.value)
    assert "'protocaffe try --help' lists what it takes." in str(caught.value)


def test_required_ones_are_missed():
    with pytest.raises(UsageError, match="required: root"):
        parse("protocaffe try", "Try things.", FLAGS, [])


@pytest.mark.parametrize("word", ["--help", "-help", "-h"])
def test_help_is_plain_and_complete(word, capsys):
    with pytest.raises(SystemExit) as left:
        flags(word)
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: protocaffe try ROOT [OUT] [flags]\n\nTry things.\n")
    assert "how many (default: 50)" in text
    assert "--[no]shuffle" in text
    assert "--sigint_effect=stop|none" in text
    assert "the image folder (required)" in text
    for flag in FLAGS:
        assert flag.help in text


def test_many_words():
    logs = Flag("logs", "what to plot", positional=True, required=True, many=True)
    words = ["a.log", "b.log"]
    values = parse("protocaffe try", "Try things.", [FLAGS[0], logs], ["ROOT", *words])
    assert (values.root, values.logs) == ("ROOT", words)
    with pytest.raises(UsageError, match="logs"):
        parse("protocaffe try", "Try things.", [FLAGS[0], logs], ["ROOT"])
