"""Deliveries in the ledger: sent when due, tried again on the schedule, ended with it or with the endpoint."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from standardwebhooks import Webhook

from core.contract.errors import FailureCode
from core.secret import Seal, service_secret
from tests.services import wait_until
from tests.worker.conftest import TENANT, Workshop
from tests.worker.endpoint import listening
from worker.keeper import removal
from worker.ledger import attempts as ledger
from worker.ledger.connection import Connection
from worker.webhooks import queue as webhooks
from worker.webhooks.delivery import deliver
from worker.webhooks.formats import MOST_CHARACTERS, body_of, line_of
from worker.webhooks.queue import MOST_GIVEN_UP, SCHEDULE, Answer, Due

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OLD_SECRET = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"
REFUSED = Answer(status=500, error=None, milliseconds=1)
TAKEN = Answer(status=204, error=None, milliseconds=1)


@pytest.fixture
def connection(workshop: Workshop) -> Iterator[Connection]:
    with workshop.connect() as connection:
        yield connection


def add_webhook(workshop: Workshop, url: str = "https://hooks.example.com/", number: int = 1) -> str:
    webhook_id = f"wh_{number}"
    seal = Seal(service_secret(workshop.settings))
    with workshop.connect() as connection:
        connection.execute(
            "INSERT INTO webhooks (id, tenant, url, event_types, secret, previous_secret, previous_until)"
            " VALUES (%s, %s, %s, %s, %s, %s, now() + interval '1 hour')",
            (
                webhook_id,
                TENANT,
                url,
                ["job.started", "job.failed"],
                seal.seal(SECRET, row=webhook_id),
                seal.seal(OLD_SECRET, row=webhook_id),
            ),
        )
    return webhook_id


def fail_a_job(workshop: Workshop) -> str:
    job_id = workshop.add_job()
    with workshop.connect() as connection:
        ledger.fail(connection, workshop.claim().ref, code=FailureCode.OUT_OF_DISK, message="full")
    return job_id


def take(connection: Connection) -> Due:
    (due,) = webhooks.take_due(connection, busy=(), limit=10)
    return due


def hurry(connection: Connection) -> None:
    connection.execute("UPDATE webhook_deliveries SET due_at = clock_timestamp() WHERE status = 'pending'")


def one(connection: Connection, query: str) -> dict[str, Any]:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return row


def test_a_failed_job_is_told_of_signed_and_logged(workshop: Workshop) -> None:
    """The keeper's thread, a real endpoint, and the official library as the receiver."""

    async def scene() -> None:
        async with listening() as endpoint:
            settings = workshop.settings.model_copy(update={"webhook_allow_http": True, "webhook_allow_private": True})
            add_webhook(workshop, f"http://127.0.0.1:{endpoint.port}/hook")
            job_id = await asyncio.to_thread(fail_a_job, workshop)
            stop = threading.Event()
            delivery = threading.Thread(target=deliver, args=(settings, stop))
            delivery.start()
            try:
                await asyncio.to_thread(
                    wait_until,
                    lambda: not workshop.rows("SELECT FROM webhook_deliveries WHERE status <> 'delivered'"),
                    what="both deliveries",
                )
            finally:
                stop.set()
                await asyncio.to_thread(delivery.join, 20)
            told = []
            for number in range(2):
                for secret in (SECRET, OLD_SECRET):
                    Webhook(secret).verify(endpoint.body(number), endpoint.headers(number))
                told.append(json.loads(endpoint.body(number)))
            assert [each["type"] for each in told] == ["job.started", "job.failed"]
            assert told[1]["data"]["job"]["id"] == job_id
            assert told[1]["data"]["event"]["error"]["code"] == "out_of_disk"
            seq = told[1]["data"]["seq"]
            assert endpoint.headers(1)["webhook-id"] == f"evt_{job_id[4:]}_{seq}"

    asyncio.run(scene())
    log = workshop.rows("SELECT number, status_code, error FROM webhook_attempts")
    assert log == [{"number": 1, "status_code": 200, "error": None}] * 2


def test_slack_and_teams_get_a_line_in_which_they_read_no_markup(workshop: Workshop, connection: Connection) -> None:
    add_webhook(workshop)
    connection.execute("UPDATE webhooks SET format = 'slack'")
    fail_a_job(workshop)
    connection.execute("DELETE FROM webhook_deliveries WHERE event_type = 'job.started'")
    connection.execute(
        "UPDATE webhook_deliveries SET payload = jsonb_set(payload, '{data,job,name}', %s)", ('"<!channel>"',)
    )
    due = take(connection)
    said = json.loads(body_of(due.payload, form=due.form))
    job = due.payload["data"]["job"]
    line = f"failed: {job['model']}, {job['scheme']}, {job['method']}. out_of_disk: full {job['id']}"
    assert said == {"text": f"Job &lt;!channel&gt; {line}", "mrkdwn": False}
    (attachment,) = json.loads(body_of(due.payload, form="teams"))["attachments"]
    assert attachment["contentType"] == "application/vnd.microsoft.card.adaptive"
    assert attachment["content"]["body"][0]["inlines"] == [{"type": "TextRun", "text": f"Job <!channel> {line}"}]
    due.payload["data"]["event"]["error"]["message"] = "x" * 9000
    assert len(line_of(due.payload)) == MOST_CHARACTERS
    assert line_of(due.payload).endswith(f"x… {job['id']}")
    ping = {"type": "webhook.ping", "data": {"webhook": "wh_1"}}
    assert json.loads(body_of(ping, form="slack"))["text"] == "A test message of Quant Experts for webhook wh_1."


def test_the_schedule_is_the_specifications() -> None:
    minute, hour = 60, 3600
    hours = [2 * hour, 5 * hour, 10 * hour, 14 * hour, 20 * hour, 24 * hour]
    assert list(SCHEDULE) == [0, 5, 5 * minute, 30 * minute, *hours]


def test_every_attempt_waits_longer_and_after_the_last_the_delivery_has_failed(
    workshop: Workshop, connection: Connection
) -> None:
    add_webhook(workshop)
    fail_a_job(workshop)
    connection.execute("DELETE FROM webhook_deliveries WHERE event_type = 'job.started'")
    for number, seconds in enumerate((*SCHEDULE[1:], None), 1):
        due = take(connection)
        assert due.attempts == number
        webhooks.record(connection, due, REFUSED)
        row = one(
            connection,
            "SELECT status, extract(epoch FROM due_at - clock_timestamp())::float8 AS wait FROM webhook_deliveries",
        )
        if seconds is None:
            assert row == {"status": "failed", "wait": None}
        else:
            assert seconds * 0.9 - 5 <= row["wait"] <= seconds * 1.1
            assert webhooks.take_due(connection, busy=(), limit=10) == []
        hurry(connection)
    assert one(connection, "SELECT count(*) AS n FROM webhook_attempts") == {"n": len(SCHEDULE)}
    assert one(connection, "SELECT status, given_up_in_a_row AS n FROM webhooks") == {"status": "enabled", "n": 1}


def test_a_bounded_run_of_failures_disables_the_webhook_and_one_success_ends_the_run(
    workshop: Workshop, connection: Connection
) -> None:
    add_webhook(workshop)
    answers = [REFUSED] * (MOST_GIVEN_UP - 1) + [TAKEN] + [REFUSED] * MOST_GIVEN_UP
    for answer in answers:
        assert one(connection, "SELECT status FROM webhooks") == {"status": "enabled"}
        fail_a_job(workshop)
        connection.execute("DELETE FROM webhook_deliveries WHERE event_type = 'job.started'")
        connection.execute("UPDATE webhook_deliveries SET step = %s WHERE status = 'pending'", (len(SCHEDULE) - 1,))
        webhooks.record(connection, take(connection), answer)
    row = one(connection, "SELECT status, disabled_reason FROM webhooks")
    assert row["status"] == "disabled"
    assert "in a row" in row["disabled_reason"]
    fail_a_job(workshop)
    assert webhooks.take_due(connection, busy=(), limit=10) == []


def test_410_disables_at_once_and_what_waits_has_failed(workshop: Workshop, connection: Connection) -> None:
    add_webhook(workshop)
    fail_a_job(workshop)
    webhooks.record(connection, take(connection), Answer(status=410, error=None, milliseconds=1))
    assert one(connection, "SELECT status, disabled_reason FROM webhooks") == {
        "status": "disabled",
        "disabled_reason": "the endpoint answered 410 Gone",
    }
    assert workshop.rows("SELECT status FROM webhook_deliveries") == [{"status": "failed"}] * 2


def test_two_keepers_take_one_delivery_once_and_a_dead_one_loses_nothing(
    workshop: Workshop, connection: Connection
) -> None:
    add_webhook(workshop)
    fail_a_job(workshop)
    connection.execute("DELETE FROM webhook_deliveries WHERE event_type = 'job.started'")
    with workshop.connect() as other, connection.transaction():
        first = take(connection)
        assert webhooks.take_due(other, busy=(), limit=10) == []
    connection.execute("UPDATE webhook_deliveries SET due_at = due_at - interval '61 s'")  # its lease ran out
    connection.execute("UPDATE webhooks SET busy_until = busy_until - interval '61 s'")
    second = take(connection)
    assert (second.id, second.attempts) == (first.id, 2)
    webhooks.record(connection, second, TAKEN)
    webhooks.record(connection, first, REFUSED)  # the dead one was only slow: it changes nothing
    assert one(connection, "SELECT status FROM webhook_deliveries") == {"status": "delivered"}


def test_one_message_of_a_webhook_is_on_its_way_at_a_time(workshop: Workshop, connection: Connection) -> None:
    for number in (1, 2):
        add_webhook(workshop, number=number)
    fail_a_job(workshop)
    taken = webhooks.take_due(connection, busy=(), limit=10)
    assert sorted(due.webhook_id for due in taken) == ["wh_1", "wh_2"]
    assert webhooks.take_due(connection, busy=taken, limit=10) == []
    busy = [due for due in taken if due.webhook_id == "wh_1"]
    assert webhooks.take_due(connection, busy=busy, limit=10) == []  # another keeper's, for all that we know
    connection.execute("UPDATE webhooks SET busy_until = busy_until - interval '61 s'")
    assert [due.webhook_id for due in webhooks.take_due(connection, busy=busy, limit=10)] == ["wh_2"]


def test_one_event_is_queued_once_for_a_webhook(workshop: Workshop, connection: Connection) -> None:
    add_webhook(workshop)
    fail_a_job(workshop)
    with pytest.raises(psycopg.errors.UniqueViolation):
        connection.execute(
            "INSERT INTO webhook_deliveries (id, webhook_id, tenant, message_id, event_type, payload)"
            " SELECT 'whd_x', webhook_id, tenant, message_id, event_type, payload FROM webhook_deliveries LIMIT 1"
        )


def test_finished_deliveries_are_forgotten_after_a_month(workshop: Workshop, connection: Connection) -> None:
    add_webhook(workshop)
    fail_a_job(workshop)
    webhooks.record(connection, take(connection), TAKEN)
    assert removal.retire(connection, workshop.settings) == 0
    connection.execute("UPDATE webhook_deliveries SET finished_at = finished_at - interval '31 days'")
    assert removal.retire(connection, workshop.settings) == 1
    assert one(connection, "SELECT count(*) AS n FROM webhook_attempts") == {"n": 0}


def test_a_message_that_is_asked_for_again_while_its_last_attempt_is_under_way_is_sent_again(
    workshop: Workshop, connection: Connection
) -> None:
    webhook_id = add_webhook(workshop)
    fail_a_job(workshop)
    connection.execute("DELETE FROM webhook_deliveries WHERE event_type = 'job.started'")
    connection.execute("UPDATE webhook_deliveries SET step = %s", (len(SCHEDULE) - 1,))
    for answer in (REFUSED, TAKEN):
        due = take(connection)
        # As `app.webhooks.service.redeliver` does it.
        connection.execute(
            "UPDATE webhook_deliveries SET status = 'pending', step = 0, due_at = clock_timestamp(), finished_at = NULL"
        )
        webhooks.record(connection, due, answer)
        assert one(connection, "SELECT status, step FROM webhook_deliveries") == {"status": "pending", "step": 0}
        connection.execute("UPDATE webhook_deliveries SET step = 5")
    assert one(connection, "SELECT given_up_in_a_row AS n FROM webhooks") == {"n": 0}
    assert take(connection).webhook_id == webhook_id


def test_what_came_of_a_message_waits_for_who_holds_its_webhook(workshop: Workshop, connection: Connection) -> None:
    """The owner's requests lock the webhook, then a delivery; in the other order the two would be locked for ever."""
    webhook_id = add_webhook(workshop)
    fail_a_job(workshop)
    due = take(connection)
    errors: list[Exception] = []

    def record() -> None:
        try:
            webhooks.record(connection, due, TAKEN)
        except psycopg.Error as error:
            errors.append(error)

    with workshop.connect() as owner, owner.transaction():
        owner.execute("SELECT FROM webhooks WHERE id = %s FOR UPDATE", (webhook_id,))
        thread = threading.Thread(target=record)
        thread.start()
        wait_until(
            lambda: workshop.rows("SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query ~ 'webhook'"),
            what="the keeper at the lock",
        )
        owner.execute("SELECT FROM webhook_deliveries WHERE id = %s FOR UPDATE", (due.id,))
    thread.join(20)
    assert not thread.is_alive()
    assert errors == []
    assert one(connection, f"SELECT status FROM webhook_deliveries WHERE id = '{due.id}'") == {"status": "delivered"}


def test_a_tenant_with_many_webhooks_leaves_room_for_others(workshop: Workshop, connection: Connection) -> None:
    for number in range(1, 7):
        add_webhook(workshop, number=number)
    fail_a_job(workshop)
    for number in (7, 8):
        add_webhook(workshop, number=number)
    connection.execute("UPDATE webhooks SET tenant = 'another' WHERE id IN ('wh_7', 'wh_8')")
    connection.execute(
        "INSERT INTO webhook_deliveries (id, webhook_id, tenant, message_id, event_type, payload)"
        " SELECT 'whd_' || id, id, 'another', 'evt_' || id, 'job.failed', '{}' FROM webhooks WHERE tenant = 'another'"
    )
    first = webhooks.take_due(connection, busy=(), limit=4)
    assert sorted(due.tenant for due in first) == ["another", "another", TENANT, TENANT]
    connection.execute("UPDATE webhook_deliveries SET due_at = clock_timestamp() WHERE webhook_id = 'wh_7'")
    connection.execute("UPDATE webhooks SET busy_until = NULL WHERE id = 'wh_7'")
    busy = [due for due in first if due.webhook_id != "wh_7"]
    assert [due.webhook_id for due in webhooks.take_due(connection, busy=busy, limit=1)] == ["wh_7"]


def test_the_postman_survives_what_nobody_thought_of(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a thread of the keeper: were it gone, nobody would notice."""
    taken = threading.Semaphore(0)

    def take_due(*_: Any, **__: Any) -> list[Due]:
        taken.release()
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(webhooks, "take_due", take_due)
    stop = threading.Event()
    settings = workshop.settings.model_copy(update={"keeper_interval": 0.01})
    delivery = threading.Thread(target=deliver, args=(settings, stop))
    delivery.start()
    try:
        assert taken.acquire(timeout=20)
        assert taken.acquire(timeout=20)
    finally:
        stop.set()
        delivery.join(20)


def test_two_keepers_send_one_message_of_a_webhook_at_a_time(workshop: Workshop, connection: Connection) -> None:
    add_webhook(workshop)
    fail_a_job(workshop)  # two messages
    with workshop.connect() as other:
        first = take(connection)
        assert webhooks.take_due(other, busy=(), limit=10) == []
        webhooks.record(connection, first, TAKEN)
        second = take(other)
        assert webhooks.take_due(connection, busy=(), limit=10) == []
        webhooks.record(other, second, TAKEN)
    assert one(connection, "SELECT count(*) AS n FROM webhook_deliveries WHERE status = 'delivered'") == {"n": 2}


def test_a_webhook_whose_keeper_died_is_served_again(workshop: Workshop, connection: Connection) -> None:
    add_webhook(workshop)
    fail_a_job(workshop)
    take(connection)
    connection.execute("UPDATE webhooks SET busy_until = clock_timestamp()")
    take(connection)


def test_a_tenants_messages_to_one_host_keep_apart(workshop: Workshop, connection: Connection) -> None:
    for number, host in enumerate(("one", "one", "other")):
        add_webhook(workshop, f"https://{host}.example.com/{number}", number)
    fail_a_job(workshop)
    taken = webhooks.take_due(connection, busy=(), limit=10, rate=0.1)
    assert sorted(due.url.split("/")[2] for due in taken) == ["one.example.com", "other.example.com"]
    for due in taken:
        webhooks.record(connection, due, TAKEN)
    assert webhooks.take_due(connection, busy=(), limit=10, rate=0.1) == []
    connection.execute("UPDATE webhooks SET taken_at = taken_at - interval '11 s'")
    assert len(webhooks.take_due(connection, busy=(), limit=10, rate=0.1)) == 2
