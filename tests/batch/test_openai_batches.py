"""OpenAI's own client: files and jobs, over fake engines."""

import http.client

import openai
import pytest

from orchestrator.batch.states import FINISHED
from orchestrator.gateway.auth import digest
from tests.batch.desk import CHAT, Engine, line, make_settings, open_desk
from tests.processes import wait_until


@pytest.fixture(scope="module")
def engine():
    return Engine()


@pytest.fixture(scope="module")
def desk(engine, tmp_path_factory):
    settings = make_settings(
        tmp_path_factory.mktemp("batch"), max_file_size=300_000, max_requests=5_000
    )
    with open_desk(settings, {"engine-0": engine}) as desk:
        yield desk


def upload(desk, data=b"{}\n", **arguments):
    return desk.client.files.create(file=("f.jsonl", data), purpose="batch", **arguments)


def errors_of(desk, lines):
    """(line, code) of what validation says."""
    job = desk.wait(desk.submit(lines))
    assert job.status == "failed"
    assert job.request_counts.completed == 0
    return [(error.line, error.code) for error in job.errors.data]


def test_a_job_from_its_file_to_its_answers(desk):
    job = desk.submit([line(f"r{n}", f"text {n}") for n in range(50)], metadata={"who": "me"})
    assert job.status == "validating"
    assert job.metadata == {"who": "me"}
    job = desk.wait(job)
    assert job.status == "completed"
    assert (job.request_counts.total, job.request_counts.completed) == (50, 50)
    assert job.error_file_id is None
    assert job.usage.total_tokens == 250
    lines = desk.lines(job.output_file_id)
    assert [one["custom_id"] for one in lines] == [f"r{n}" for n in range(50)]
    assert all(one["response"]["status_code"] == 200 and one["error"] is None for one in lines)
    texts = [one["response"]["body"]["choices"][0]["message"]["content"] for one in lines]
    assert texts == [f"echo text {n}" for n in range(50)]


def test_clients_set_no_priority(desk, engine):
    body = {"model": "tiny", "messages": [{"role": "user", "content": "mine"}], "priority": -5}
    desk.wait(desk.submit([line("a", body=body)]))
    (seen,) = [body for body in engine.seen if body["messages"][0]["content"] == "mine"]
    assert seen["priority"] > 0


def test_files_are_listed_page_by_page_and_come_back_as_they_were(desk):
    data = "ä☃".encode() * 1000
    made = [upload(desk, data).id for _ in range(5)]
    newest = [file.id for file in desk.client.files.list(limit=2)]  # asks for page after page
    assert newest[:5] == made[::-1]
    page = desk.client.files.list(limit=2, order="asc", after=made[2])
    assert [file.id for file in page.data] == made[3:5]
    assert desk.client.files.content(made[0]).content == data
    file = desk.client.files.retrieve(made[0])
    assert (file.bytes, file.filename, file.purpose) == (len(data), "f.jsonl", "batch")
    for file_id in made[:-1]:
        assert desk.client.files.delete(file_id).deleted
    assert desk.client.files.content(made[-1]).content == data
    with pytest.raises(openai.NotFoundError, match="there is no file"):
        desk.client.files.retrieve(made[0])


def test_jobs_are_listed_page_by_page(desk):
    jobs = [desk.submit([line("a")]).id for _ in range(3)]
    assert [job.id for job in desk.client.batches.list(limit=1)][:3] == jobs[::-1]
    page = desk.client.batches.list(limit=1, after=jobs[2])
    assert ([job.id for job in page.data], page.has_more) == ([jobs[1]], True)


def test_uploads_that_will_not_do(desk):
    with pytest.raises(openai.APIStatusError, match="larger than") as error:
        upload(desk, b"x" * 300_001)
    assert error.value.status_code == 413
    with pytest.raises(openai.BadRequestError, match="purpose must be 'batch'"):
        desk.client.files.create(file=("f", b"x"), purpose="fine-tune")
    with pytest.raises(openai.BadRequestError, match="3600"):
        upload(desk, expires_after={"anchor": "created_at", "seconds": 5})
    assert list((desk.settings.folder / "files" / "incoming").iterdir()) == []


def test_an_upload_that_breaks_off_leaves_nothing(desk):
    def uploaded():
        # Jobs of other tests may write their files meanwhile.
        return [file.id for file in desk.client.files.list() if file.purpose == "batch"]

    before = uploaded()
    host = desk.url.removeprefix("http://")
    connection = http.client.HTTPConnection(host)
    connection.putrequest("POST", "/v1/files")
    connection.putheader("content-type", "multipart/form-data; boundary=b")
    connection.putheader("content-length", "100000")
    connection.endheaders()
    head = b'--b\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\n'
    connection.send(head + b"y" * 5000)
    incoming = desk.settings.folder / "files" / "incoming"
    wait_until(lambda: list(incoming.iterdir()))
    connection.close()
    wait_until(lambda: not list(incoming.iterdir()))
    assert uploaded() == before


def test_lines_that_will_not_do_are_told_by_number(desk, engine):
    good = line("a", "never computed")
    assert errors_of(desk, [good, "{", "[]", good]) == [
        (2, "invalid_json_line"),
        (3, "invalid_json_line"),
    ]
    assert errors_of(desk, [good, "", line("b"), good]) == [(4, "duplicate_custom_id")]
    other = line("c", body={"model": "gpt", "messages": []})
    assert errors_of(desk, [line("b", url="/v1/completions"), other]) == [
        (1, "mismatched_endpoint"),
        (2, "model_not_found"),
    ]
    assert errors_of(desk, [line(""), line("x\0"), line("y", body=3), line("z", method="GET")]) == [
        (1, "invalid_custom_id"),
        (2, "invalid_custom_id"),
        (3, "invalid_body"),
        (4, "invalid_method"),
    ]
    assert errors_of(desk, [""]) == [(None, "empty_file")]
    assert "never computed" not in str(engine.seen)


def test_broken_utf8_and_a_doubled_id_far_down_the_file(desk):
    head = b'{"url":"%s","body":{"model":"tiny"},"custom_id":"' % CHAT.encode()
    lines = [head + b'%d"}' % n for n in range(3_500)]
    lines[3_000] = lines[3_000][:-3] + b'\xff"}'
    (error,) = _errors(desk, lines)
    assert (error.line, error.code) == (3_001, "invalid_utf8")
    lines[3_000] = lines[1]
    (error,) = _errors(desk, lines)
    assert (error.line, error.code) == (3_001, "duplicate_custom_id")


def _errors(desk, lines):
    file = upload(desk, b"\n".join(lines))
    job = desk.client.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
    return desk.wait(job).errors.data


def test_jobs_that_will_not_do(desk):
    file = upload(desk)

    def create(**changes):
        asked = {"input_file_id": file.id, "endpoint": CHAT, "completion_window": "24h"}
        return desk.client.batches.create(**asked | changes)

    with pytest.raises(openai.NotFoundError, match="there is no file 'file-x'"):
        create(input_file_id="file-x")
    with pytest.raises(openai.BadRequestError, match="endpoint must be one of"):
        create(endpoint="/v1/embeddings")
    with pytest.raises(openai.BadRequestError, match="between 1h and 7d"):
        create(completion_window="8d")
    with pytest.raises(openai.BadRequestError, match="metadata"):
        create(metadata={"k": "v" * 513})
    with pytest.raises(openai.NotFoundError, match="there is no batch"):
        desk.client.batches.retrieve("batch_x")
    with pytest.raises(openai.BadRequestError, match="no job batch_x"):
        desk.client.batches.list(after="batch_x")
    with pytest.raises(openai.BadRequestError, match="limit"):
        desk.client.batches.list(limit=0)


def test_a_finished_job_cannot_be_cancelled(desk):
    job = desk.wait(desk.submit([line("a")]))
    with pytest.raises(openai.BadRequestError, match="is finished \\(completed\\)"):
        desk.client.batches.cancel(job.id)


def test_names_see_their_own_files_and_jobs_only(tmp_path):
    names = {n: digest(f"key-{n}").hex() for n in ("alice", "bob")}
    settings = make_settings(tmp_path / "state", max_open_jobs=1, max_stored=400, names=names)
    keys = frozenset(digest(f"key-{n}") for n in ("alice", "bob"))
    with open_desk(settings, {"engine-0": Engine(delay_s=60)}, keys) as desk:
        alice, bob = (desk.client.with_options(api_key=f"key-{n}") for n in ("alice", "bob"))
        with pytest.raises(openai.AuthenticationError):
            desk.client.files.list()
        data = (line("a") + "\n").encode()
        file = alice.files.create(file=("f", data), purpose="batch")
        with pytest.raises(openai.NotFoundError):
            bob.files.content(file.id)
        with pytest.raises(openai.NotFoundError):
            bob.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
        job = alice.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
        with pytest.raises(openai.NotFoundError):
            bob.batches.cancel(job.id)
        assert list(bob.batches.list()) == []
        with pytest.raises(openai.RateLimitError, match="unfinished jobs"):
            alice.batches.create(input_file_id=file.id, endpoint=CHAT, completion_window="24h")
        with pytest.raises(openai.BadRequestError, match="cancel that first"):
            alice.files.delete(file.id)
        with pytest.raises(openai.APIStatusError, match="larger than"):
            alice.files.create(file=("f", b"x" * 400), purpose="batch")
        alice.batches.cancel(job.id)
        wait_until(lambda: alice.batches.retrieve(job.id).status in FINISHED)
        assert alice.files.delete(file.id).deleted
