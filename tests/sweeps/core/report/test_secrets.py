"""What a report shows and what a reviewer gets holds no password, whatever a config, a command or a
failure has.
"""

import json
from pathlib import Path

from sweeps.core.report import write_bundle, write_report
from sweeps.core.store.ledger import Ledger
from tests.sweeps.core.records import FACTOR, make_study
from tests.sweeps.core.report.test_bundle import files
from tests.sweeps.core.report.test_write import write_study

ADDRESS = "http://me:pass@wo/rd@host:5000/data?token=pass"
AMEND = {
    label: {
        "config": {"data": {"name": "shapes", "root": ADDRESS}},
        "provenance": {"command": ["sweeps", "run", f"--tracking-uri={ADDRESS}"]},
    }
    for label in ("#10", "#8")
}


def lacks_secrets(text: str) -> bool:
    return not any(secret in text for secret in ("me:pass", "pass@", "wo/rd", "token="))


def test_a_report_and_a_bundle_show_no_password(tmp_path: Path):
    folder = write_study(tmp_path, amend=AMEND, states={("#8", 1): "failed"})
    trial = next(
        path.name.removesuffix(".failures") for path in tmp_path.glob("ledger/??/*.failures")
    )
    Ledger(tmp_path).add_failure(
        trial,
        f"ConnectionError: {ADDRESS} is gone",
        f"Traceback:\nConnectionError: {ADDRESS} is gone",
    )
    report = write_report(folder)
    for path in (*report.files, *tmp_path.glob("ledger/??/*.failures/*.json")):
        assert lacks_secrets(path.read_text()), path
    assert lacks_secrets(report.text)
    assert "http://host:5000/data is gone" in report.page.read_text()
    assert write_bundle(folder, tmp_path / "for_review.zip").is_file()


def test_a_bundle_has_no_password_in_any_file():
    study = make_study(
        {"#10": (0.6, 0.62), "#8": (0.5, 0.51)}, amend=AMEND, changes={"#8": {FACTOR: ADDRESS}}
    )
    bundle = files(study)
    for name, text in bundle.items():
        assert lacks_secrets(text), name
    (config, *_) = [
        json.loads(text) for name, text in bundle.items() if name.startswith("configs/")
    ]
    assert config["data"]["root"] == "http://host:5000/data"
    assert "sweeps" not in bundle["environments.json"]
