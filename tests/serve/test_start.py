"""What serving refuses before it begins."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from svit_deploy import api
from svit_deploy.bundle import Bundle
from svit_deploy.cli import main
from svit_deploy.errors import CapabilityError, InputError, UsageError
from svit_deploy.serve.guard import Gate
from svit_deploy.serve.refusals import Unauthorised, answer_of
from svit_deploy.serve.settings import ServeSettings
from svit_deploy.serve.start import address, choose_batch, named_bundles, require_kserve


def test_models_are_called_as_their_folders_or_as_told(tmp_path: Path) -> None:
    (tmp_path / "a=b").mkdir()
    found = named_bundles([tmp_path / "svit_s", f"other={tmp_path}/svit_s", f"x={tmp_path}/a=b"])
    assert found == {
        "svit_s": tmp_path / "svit_s",
        "other": tmp_path / "svit_s",
        "x": tmp_path / "a=b",
    }


@pytest.mark.parametrize(
    ("bundles", "why"),
    [
        ([], "nothing to serve"),
        (["out/a", "elsewhere/a"], "two models are called 'a'"),
        (["a/b=out"], "no name of a model"),
        (["größe"], "no name of a model"),
    ],
)
def test_names_that_cannot_be(bundles: list[str], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        named_bundles(bundles)


def test_batches_stay_within_what_the_bundle_was_exported_for(digits_bundle: Bundle) -> None:
    assert choose_batch(digits_bundle, ServeSettings()) == 16
    assert choose_batch(digits_bundle, ServeSettings(max_batch=32)) == 32
    with pytest.raises(UsageError, match="batches of up to 32, not 33"):
        choose_batch(digits_bundle, ServeSettings(max_batch=33))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"tls_cert": Path("cert.pem")}, "TLS lacks its key"),
        ({"tls_key": Path("key.pem")}, "TLS lacks its certificate"),
        ({"port": 9000, "grpc_port": 9000}, "cannot share port 9000"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, object], why: str) -> None:
    with pytest.raises(UsageError, match=why):
        ServeSettings(**settings)


def test_it_listens_to_this_machine_alone_unless_told() -> None:
    assert address(ServeSettings()) == "http://127.0.0.1:8080"
    assert address(ServeSettings(host="::1", port=1)) == "http://[::1]:1"


def test_a_dry_run_tells_what_would_be_served(
    digits_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("svit_deploy.serve.start.find_spec", lambda name: object())
    with api.DryRun() as plan:
        api.serve([f"digits={digits_bundle.path}"], grpc_port=0, plan=plan)
    assert plan.lines == [
        ("model", "digits, --task classify"),
        ("bundle", "dynamic, token mode dynamic, fp32"),
        ("runs on", "ONNX Runtime, provider cpu"),
        ("REST", "http://127.0.0.1:8080"),
        ("gRPC", "none"),
    ]
    assert (plan.missing, plan.files) == ([], [])


def test_without_kserve(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("svit_deploy.serve.start.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "kserve", None)
    with pytest.raises(CapabilityError, match=r"serve needs KServe.*'svit-deploy\[serve\]'"):
        require_kserve()
    assert main(["serve", "nothing"]) == 4
    assert "KServe" in capsys.readouterr().err


def test_tokens(tmp_path: Path) -> None:
    Gate.of(None).check(b"")
    file = tmp_path / "token"
    for bad in (
        b"",
        b"short\n",
        b"two long enough lines\nof something",
        "wörter-wörter-wörter".encode(),
    ):
        file.write_bytes(bad)
        with pytest.raises(InputError, match="holds no token"):
            Gate.of(file)
    file.write_bytes(b"a-long-random-word\n")
    gate = Gate.of(file)
    gate.check(b"Bearer a-long-random-word")
    gate.check(b"bearer  a-long-random-word ")
    for wrong in (b"", b"Bearer", b"Bearer a-long-random-wor", b"a-long-random-word"):
        with pytest.raises(Unauthorised):
            gate.check(wrong)


def test_what_nobody_foresaw_is_told_to_the_log_alone(caplog: pytest.LogCaptureFixture) -> None:
    answer = answer_of(ValueError("/home/secret/place"))
    assert (answer.http, answer.grpc) == (500, "INTERNAL")
    assert "secret" not in answer.sentence and "secret" in caplog.text
