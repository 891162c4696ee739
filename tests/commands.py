"""Commands as tests give them, on a screen of 200 columns: what is printed, and what is told of a mistake."""

from typer.testing import CliRunner

from flattail.cli import app


def asked(*words, code=0):
    """What a command prints; where it ends with another code than 0, what it tells on its error output, in a line."""
    result = CliRunner(env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"}).invoke(app, [str(w) for w in words])
    assert result.exit_code == code, result.output + result.stderr
    assert "Traceback" not in result.stderr
    return result.stdout if code == 0 else " ".join(result.stderr.replace("│", " ").split())


def refused(*words):
    """The message of a user's mistake."""
    said = asked(*words, code=2)
    assert said
    return said
