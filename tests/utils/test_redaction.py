"""Secrets are masked in text and data, and nothing else is."""

import logging
import sys

import pytest

from ppo_lab.utils.errors import ConfigError
from ppo_lab.utils.redaction import mask, mask_file, mask_output, mask_values, printable

CANARY = "cAnArY-0123456789"


@pytest.mark.parametrize(
    "text",
    [
        f"http://me:{CANARY}@host/path",
        f"https://{CANARY}@github.com/a/b",
        f"postgresql://me:a/b@c{CANARY}@host:5432/db",
        f"postgres:me:{CANARY}@host",
        f"me:{CANARY}@tcp(host)/db",
        f"http://host/?api_key={CANARY}&x=1",
        f"+env.kwargs.password={CANARY}",
        f"{{'dbPassword': '{CANARY} and more {CANARY}'}}",
        f'"access_token": "{CANARY}"',
        f"Authorization: Bearer {CANARY}",
        *(
            f"see {prefix}{CANARY}."
            for prefix in ("hf_", "ghp_", "github_pat_", "sk-", "AKIA", "wandb_v1_", "glpat-")
        ),
    ],
)
def test_secrets_are_masked(text):
    assert CANARY not in mask(text)
    assert "..." in mask(text)
    assert mask(mask(text)) == mask(text)


@pytest.mark.parametrize(
    "text",
    [
        "https://example.org/a?b=c",
        "sqlite:///outputs/study.db",
        "git@github.com:org/repo",
        "12:30:45 step 3: x@y",
        "losses/pass_frac=0.5, num_tokens=3, tokenizer: bpe",
        "no W&B key (WANDB_API_KEY or `wandb login`): tracking offline",
        "a commit 0123456789abcdef0123456789abcdef01234567",
        "memory=offloaded_optimizer, risk-taking, disk-offloaded",
        "env.kwargs.token=...: holds a password or token",
        "env.kwargs.token=${oc.env:MY_TOKEN}, api_key: '${oc.env:MY_KEY}'",
    ],
)
def test_everything_else_stays(text):
    assert mask(text) == text


def test_values_are_masked_by_their_keys_and_numbers_stay():
    data = {"login": {"apiKey": CANARY, "token": 12345, "user": "me"}, "pass_frac": 0.5, "n": 3}
    masked = {"login": {"apiKey": "...", "token": "...", "user": "me"}, "pass_frac": 0.5, "n": 3}
    assert mask_values(data) == masked
    assert mask_values(["x", (f"http://u:{CANARY}@h", None)]) == ["x", ["http://...@h", None]]


def test_secrets_of_the_environment_and_of_netrc_are_masked_wherever_they_are(
    tmp_path, monkeypatch
):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine api.wandb.ai\n  login user\n  password from-netrc-0123\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("MY_SECRET", "hunter2")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "falsetto")
    assert mask("hunter2 from-netrc-0123 falsetto") == "... ... falsetto"


def test_text_for_a_terminal_is_one_line_without_control_characters():
    assert printable("a\x1b]0;t\x07\u202eb\nc [red]") == r"a\x1b]0;t\x07\u202eb\nc [red]"


def test_log_lines_and_tracebacks_are_masked(capsys, monkeypatch):
    before = logging.getLogRecordFactory()
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    log = logging.getLogger("test_redaction")
    handler = logging.StreamHandler(sys.stderr)
    monkeypatch.setattr(log, "handlers", [handler])
    try:
        mask_output()
        mask_output()
        try:
            raise ValueError(f"http://u:{CANARY}@h")
        except ValueError as error:
            log.exception("url=%s", f"http://u:{CANARY}@h")
            sys.excepthook(type(error), error, error.__traceback__)
    finally:
        logging.setLogRecordFactory(before)
    shown = capsys.readouterr().err
    assert CANARY not in shown
    assert shown.count("ValueError: http://...@h") == 2
    assert "url=http://...@h" in shown


def test_refusals_and_files_are_masked(tmp_path):
    assert str(ConfigError("url", f"http://u:{CANARY}@h", "x")) == "url=http://...@h: x"
    path = tmp_path / "config.yaml"
    path.write_text(f"password: {CANARY}\nurl: http://u:{CANARY}@h\nseed: 1\n")
    mask_file(path)
    assert path.read_text() == "password: ...\nurl: http://...@h\nseed: 1\n"
