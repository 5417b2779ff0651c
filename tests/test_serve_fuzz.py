"""Whatever is sent to the API, it answers as /openapi.json says, and never with a 5xx: requests made by Schemathesis.

Half of the requests fit the document, the others break it in some way. The server is a real one.
"""

import httpx
import hypothesis
import pytest
import schemathesis
from schemathesis import GenerationMode
from schemathesis.checks import load_all_checks
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from serve_cases import rendered, shared

# 2025-02-31 and a text of blanks fit any schema and are refused; in a query string "false" is a name like any other.
EXCLUDED = [positive_data_acceptance, negative_data_rejection]


@pytest.fixture(scope="module")
def server():
    return shared()[0]


@pytest.fixture(scope="module")
def known(server):
    """Ids that are there: of a video, and of a job that had nothing to do."""
    video = httpx.get(f"{server.url}/api/videos").json()["videos"][0]
    with (rendered() / video["name"]).open("rb") as file:
        job = httpx.post(f"{server.url}/api/encode", files={"file": (video["name"], file)}).json()
    assert job["state"] == "done"
    return {"video": video["video"], "job": job["job"]}


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_answers_are_those_of_the_document(server, known, mode):
    load_all_checks()
    document = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
    operations = [found.ok() for found in document.get_all_operations()]
    assert len(operations) >= 14
    statuses = set()
    for operation in operations:

        @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
        @hypothesis.settings(
            max_examples=8,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        def ask(case):
            if mode is GenerationMode.POSITIVE and case.method != "DELETE":  # a random id is never there
                case.path_parameters.update({name: known[name] for name in case.path_parameters or ()})
            response = case.call()
            statuses.add(response.status_code)
            case.validate_response(response, excluded_checks=EXCLUDED)

        try:
            ask()
        except hypothesis.errors.Unsatisfiable:  # an operation without parameters cannot be asked wrongly
            assert mode is GenerationMode.NEGATIVE and not operation.query and not operation.path_parameters
    assert statuses >= ({200, 404, 415, 422} if mode is GenerationMode.POSITIVE else {404, 422})
    assert server.process.poll() is None
    assert not server.errors
