"""Comparisons over HTTP: one job per candidate, one table, the frontier and its picture."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from app.comparisons.plot import draw
from app.comparisons.schemas import ComparedJob, ComparisonView, frontier_of
from core.ledger.states import JobStatus
from tests.app.conftest import HUB_DATASET, MODEL, Api, ok, problem

CANDIDATES = [
    {"scheme": "W4A6"},
    {"scheme": "W4A6", "method": "gptq"},
    {"scheme": "W8A8", "method": "rtn", "label": "<eight> & more"},
]


def body(**changes: Any) -> dict[str, Any]:
    return {"model": {"id": MODEL}, "calibration": {"dataset": HUB_DATASET}, "candidates": CANDIDATES, **changes}


async def compare(api: Api, **changes: Any) -> dict[str, Any]:
    answer = await api.client.post("/v1/comparisons", json=body(**changes))
    found: dict[str, Any] = ok(answer, 201)
    assert answer.headers["Location"] == f"/v1/comparisons/{found['id']}"
    return found


def succeed(api: Api, job_id: str, *, kl: float, size: int, verdict: str | None = None) -> None:
    api.start(job_id)
    summary = {
        "kl": kl,
        "top1_agreement": 0.9,
        "effective_bits": 4.5,
        "bytes_after": size,
        "bytes_before": 4000,
        "seconds": 7,
    }
    api.execute("UPDATE jobs SET summary = %s, verdict = %s WHERE id = %s", [json.dumps(summary), verdict, job_id])
    api.end(job_id, "succeeded")


async def test_a_comparison_queues_one_job_per_candidate(api: Api) -> None:
    found = await compare(
        api, name="sizes", options={"seed": 5, "experts": 2}, labels={"team": "a"}, accept_if={"max_kl": 1}
    )
    assert [row["label"] for row in found["jobs"]] == ["W4A6 balanced", "W4A6 gptq", "<eight> & more"]
    assert not found["finished"]
    assert found["frontier"] == []
    jobs = [ok(await api.client.get(f"/v1/jobs/{row['job_id']}")) for row in found["jobs"]]
    assert [(job["scheme"], job["method"]) for job in jobs] == [("W4A6", "balanced"), ("W4A6", "gptq"), ("W8A8", "rtn")]
    for job in jobs:
        assert (job["comparison_id"], job["options"]["seed"], job["labels"]) == (found["id"], 5, {"team": "a"})
        assert job["accept_if"]["max_kl"] == 1
    assert jobs[1]["name"] == "sizes: W4A6 gptq"
    listed = ok(await api.client.get("/v1/comparisons"))
    assert [row["id"] for row in listed["data"]] == [found["id"]]


async def test_the_table_has_the_figures_and_says_what_nothing_beats(api: Api) -> None:
    found = await compare(api)
    first, second, third = (row["job_id"] for row in found["jobs"])
    succeed(api, first, kl=0.02, size=1000, verdict="accepted")
    succeed(api, second, kl=0.03, size=1000)
    api.start(third)
    api.end(third, "failed", {"code": "out_of_memory", "message": "no room", "retryable": True})
    table = ok(await api.client.get(f"/v1/comparisons/{found['id']}"))
    assert table["finished"]
    assert table["bytes_before"] == 4000
    assert table["frontier"] == [first]
    assert [row["frontier"] for row in table["jobs"]] == [True, False, False]
    assert table["jobs"][0] | {"job_id": "", "label": ""} == {
        "label": "",
        "job_id": "",
        "status": "succeeded",
        "scheme": "W4A6",
        "method": "balanced",
        "kl": 0.02,
        "top1_agreement": 0.9,
        "effective_bits": 4.5,
        "bytes_after": 1000,
        "seconds": 7,
        "scores": None,
        "verdict": "accepted",
        "frontier": True,
        "error": None,
    }
    assert table["jobs"][2]["error"]["code"] == "out_of_memory"


async def test_the_plot_is_a_drawing_that_holds_nothing_but_text(api: Api) -> None:
    found = await compare(api)
    path = f"/v1/comparisons/{found['id']}/plot"
    assert "No candidate has succeeded yet" in (await api.client.get(path)).text
    figures = [(0.02, 5_402_000_000), (0.03, 6_214_000_000), (0.0, 8_811_000_000)]
    for row, (kl, size) in zip(found["jobs"], figures, strict=True):
        succeed(api, row["job_id"], kl=kl, size=size)
    answer = await api.client.get(path, headers={"Accept": "image/svg+xml"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/svg+xml")
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    drawing = ET.fromstring(answer.text)
    circles = [element for element in drawing.iter() if element.tag.endswith("circle")]
    assert sorted(circle.attrib["class"] for circle in circles) == ["beaten", "best", "best"]
    assert len([element for element in drawing.iter() if element.tag.endswith("polyline")]) == 1
    texts = list(drawing.itertext())
    assert "<eight> & more" in "".join(texts)
    assert [text for text in texts if text.endswith("GiB")] == ["0 GiB", "2 GiB", "4 GiB", "6 GiB", "8 GiB"]
    assert "5.03 GiB, KL 0.02" in "".join(texts)  # as the table of the dashboard has it
    assert not [element for element in drawing.iter() if element.tag.endswith(("script", "image", "foreignObject"))]
    problem(await api.client.get(path, headers={"Accept": "image/png"}), 406, "not-acceptable")


async def test_cancelling_ends_what_has_not_ended_and_deleting_leaves_the_jobs(api: Api) -> None:
    found = await compare(api)
    first, second, third = (row["job_id"] for row in found["jobs"])
    succeed(api, first, kl=0.1, size=10)
    api.start(second)
    for _ in range(2):
        table = ok(await api.client.post(f"/v1/comparisons/{found['id']}/cancel"))
        assert [row["status"] for row in table["jobs"]] == ["succeeded", "cancelling", "cancelled"]
    assert (await api.client.delete(f"/v1/comparisons/{found['id']}")).status_code == 204
    problem(await api.client.get(f"/v1/comparisons/{found['id']}"), 404, "not-found")
    job = ok(await api.client.get(f"/v1/jobs/{first}"))
    assert (job["status"], job["comparison_id"]) == ("succeeded", None)
    assert ok(await api.client.get(f"/v1/jobs/{third}"))["status"] == "cancelled"


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"candidates": CANDIDATES[:1]}, "/candidates"),
        ({"candidates": [{"scheme": "W4A6"}, {"scheme": "W4A6"}]}, ""),
        ({"candidates": [{"scheme": "W4A6"}, {"scheme": "W9A9"}]}, ""),
        (
            {"candidates": [{"scheme": "W4A6"}, {"scheme": "W4A6", "options": {"frob": 1}}]},
            "/candidates/1/options/frob",
        ),
        ({"labels": {"Bad Key": "x"}}, ""),
        ({"plan": "0" * 64}, "/plan"),
    ],
)
async def test_a_comparison_that_makes_no_jobs_is_refused_whole(
    api: Api, changes: dict[str, Any], pointer: str
) -> None:
    answer = problem(await api.client.post("/v1/comparisons", json=body(**changes)), 422, "invalid-request")
    assert answer["errors"][0]["pointer"] == pointer
    assert api.execute("SELECT count(*) FROM jobs") == [(0,)]


async def test_a_comparison_is_made_once_per_key_or_not_at_all(api: Api) -> None:
    headers = {"Idempotency-Key": "k"}
    absent = body(calibration={"dataset": "ds_" + "0" * 32})
    problem(await api.client.post("/v1/comparisons", json=absent, headers=headers), 422, "dataset-not-found")
    assert api.execute("SELECT count(*) FROM comparisons") == [(0,)]
    first = ok(await api.client.post("/v1/comparisons", json=body(), headers=headers), 201)
    assert ok(await api.client.post("/v1/comparisons", json=body(), headers=headers), 201)["id"] == first["id"]
    assert api.execute("SELECT count(*) FROM jobs") == [(3,)]


def row(name: str, size: int | None, kl: float | None) -> ComparedJob:
    return ComparedJob(
        label=name, job_id=name, status=JobStatus.SUCCEEDED, scheme="W4A6", method="qe", kl=kl, top1_agreement=None,
        effective_bits=None, bytes_after=size, seconds=None, verdict=None, frontier=False, error=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "best"),
    [
        ([], []),
        ([row("a", None, 0.1), row("b", 5, None)], []),
        ([row("a", 10, 0.1), row("b", 5, 0.2), row("c", 7, 0.3)], ["b", "a"]),
        ([row("a", 10, 0.1), row("b", 10, 0.1)], ["a", "b"]),
        ([row("a", 10, 0.1), row("b", 10, 0.2)], ["a"]),
    ],
)
def test_the_frontier_is_what_no_other_beats(rows: list[ComparedJob], best: list[str]) -> None:
    assert frontier_of(rows) == best


@pytest.mark.parametrize("figures", [[(1, 0.0)], [(10**12, 5.0), (10**12, 5.0)], [(5, 1e-8), (5, 1e3), (6, 0.0)]])
def test_any_figures_can_be_drawn(figures: list[tuple[int, float]]) -> None:
    rows = [row(str(i), size, kl) for i, (size, kl) in enumerate(figures)]
    view = ComparisonView.model_construct(model=type("M", (), {"id": "a/b"})(), jobs=rows, bytes_before=10**6)
    drawing = ET.fromstring(draw(view))
    numbers = [
        float(element.attrib[name]) for element in drawing.iter() for name in ("cx", "cy") if name in element.attrib
    ]
    assert len(numbers) == 2 * len(rows)
    assert all(0 <= number <= 880 for number in numbers)
    (original,) = [line for line in drawing.iter() if line.attrib.get("class") == "original"]
    assert 0 <= float(original.attrib["x1"]) <= 880
