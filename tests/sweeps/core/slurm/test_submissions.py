import logging

from sweeps.core.slurm.submissions import Submission, Submissions


def submission(job, hour):
    return Submission(
        job=job,
        tasks=3,
        submitted=f"2026-12-01T{hour:02d}:00:00+00:00",
        options={"array": "1-3"},
        command=("python", "-m", "sweeps"),
    )


def test_submissions_are_read_back_in_their_order(tmp_path):
    submissions = Submissions(tmp_path)
    assert submissions.all() == []
    later, earlier = submission("9", 12), submission("10", 3)
    for each in (later, earlier):
        path = submissions.add(each, f"script of {each.job}")
        assert path == tmp_path / "slurm" / f"{each.job}.sbatch"
        assert path.read_text() == f"script of {each.job}"
    assert submissions.all() == [earlier, later]


def test_a_damaged_record_is_named_and_hides_no_other(tmp_path, caplog):
    submissions = Submissions(tmp_path)
    submissions.add(submission("9", 12), "")
    submissions.add(submission("10", 3), "")
    damaged = tmp_path / "slurm" / "9.json"
    damaged.write_bytes(damaged.read_bytes()[:-9])
    with caplog.at_level(logging.WARNING):
        assert [each.job for each in submissions.all()] == ["10"]
    assert str(damaged) in caplog.text
